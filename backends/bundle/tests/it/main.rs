//! The tests of the artifact format.
#![expect(clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::unwrap_used, reason = "tests")]

mod bundle;
mod common;
mod ipt;
mod nft;
mod rebind;
mod rebind_maps;
mod rebind_pods;
