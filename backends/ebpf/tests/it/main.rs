//! The backend against the model, against damage, and against a real kernel.
#![expect(clippy::panic, clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking")]

mod agreement;
mod artifact;
mod bpf;
mod common;
mod kernel;
mod mutations;
mod speed;
