//! What the rules do in a running kernel, enforced by nftables.

#[path = "behaviour/mod.rs"]
mod behaviour;
