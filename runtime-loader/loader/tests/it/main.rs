//! The loader on the real kernel: each test has a network namespace of its own. Needs root, nft and ip.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests")]

mod apply;
mod common;
mod daemon;
mod disturbed;
mod fake;
mod foreign;
mod lan;
mod node;
