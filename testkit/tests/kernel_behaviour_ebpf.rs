//! What the rules do in a running kernel, enforced by ebpf.

#[path = "behaviour/mod.rs"]
mod behaviour;
