//! Tests of the iptables backend against the model. Those that need a kernel are beside them in `kernel.rs`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod agreement;
mod common;
mod mutations;
mod scale;
