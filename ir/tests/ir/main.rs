//! Tests of the IR from outside: what passes, verifier, text and matrix promise, on written and on random units.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests fail by panicking")]

mod common;
mod cover;
mod passes;
mod properties;
mod speed;
mod text;
mod verify;
