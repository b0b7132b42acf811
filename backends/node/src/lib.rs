//! One node: plan, emit, read back, prove and bundle, with whatever backends are asked for.
//!
//! Command line and agent both come this way, so that what a node enforces does not depend on who compiled it. [`compile()`]
//! is what all nodes have in common; [`NodeBuilder`] makes the bundle of one, [`Machines`] reads a bundle back, and
//! [`NodeJudge`] says what a node does with a packet.
//!
//! What is absent: this crate knows no file, no process, no clock and no kernel.

mod build;
mod compile;
mod judge;
mod labels;
mod machines;
mod proving;

pub use build::{BuildError, Built, NodeBuilder, local_bindings};
pub use compile::{Compiled, compile};
pub use judge::NodeJudge;
pub use labels::Labels;
pub use machines::{Machines, MachinesError};
