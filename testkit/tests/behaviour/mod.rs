//! What the rules do in a running kernel: real packets between pods that are network namespaces, with artifacts that the
//! real `netpol-loader` applied. Needs root, `ip`, `nft` and `iptables`.
//!
//! Every test has a sandbox of its own, and a control run without rules in which every packet arrives that the rules
//! stop.
//!
//! One program for each backend has these tests; which it is, its name says.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests")]

mod around;
mod basics;
mod established;
mod foreign;
mod reload;
mod segments;
mod world;
