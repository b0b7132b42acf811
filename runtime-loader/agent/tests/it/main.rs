//! The agent as a process, between a stand-in API server and a stand-in loader.
#![expect(clippy::print_stderr, clippy::unwrap_used, reason = "tests")]

mod cluster;
mod collect;
mod fails;
mod live;
mod loader;
mod plugin;
mod rig;
