//! What the rules do in a running kernel, enforced by iptables.

#[path = "behaviour/mod.rs"]
mod behaviour;
