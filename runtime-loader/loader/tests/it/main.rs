//! The loader on the real kernel: each test has a network namespace of its own. Needs root, nft, ip,
//! iptables (legacy and nft) and ipset.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests")]

mod apply;
mod audit;
mod bridged;
mod closed;
mod cluster;
mod common;
mod daemon;
mod disturbed;
mod ebpf;
mod fake;
mod foreign;
mod handover;
mod iptables;
mod iptables_disturbed;
mod iptables_half;
mod lacking;
mod lan;
mod large;
mod node;
mod rebind;
mod settled;
mod sources;
mod switch;
mod switch_iptables;
