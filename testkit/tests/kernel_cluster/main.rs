//! The whole way, on one machine: from an object that an API server is told to what the kernel does with packets, by the
//! real agent, the real loader, and the real plugins, under each backend.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

mod chaos;
mod closed;
mod full_disk;
mod lan;
mod netns;
mod node;
mod objects;
mod race;
mod rig;
mod server;
mod services;
mod whole;
