//! What a packet costs on a node whose rules come from netpolc, against a node without rules; and what it takes to load
//! and change the rules.
//!
//! Every [`Design`](designs::Design) has a sandbox of its own: a client pod and a server pod (which stand for all pods
//! that matter, by having their addresses) and the node that routes between them and has the design's rules. One
//! pinned thread owns all sockets. A veth pair delivers inside the sender's system call, so the whole way of a packet
//! is charged to that thread's CPU clock, and what other processes do in the meantime is not.
//!
//! Slices of a few hundred packets are measured in random order, so that designs are compared under the same
//! conditions; what is reported are medians of ratios of slices of the same round.
//!
//! Everything is built several times, each time by a process of its own ([`measure::repeat`]): whatever way it ends, the
//! kernel then removes its namespaces, rules and pinned programs.

pub mod bundles;
pub mod designs;
pub mod install;
pub mod load;
pub mod measure;
pub mod report;
pub mod scripts;

/// Something that stops a measurement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] netpolc_sandbox::Error),
    /// A socket or a file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The compiler.
    #[error(transparent)]
    Compile(#[from] crate::compile::CompileError),
    /// A system call.
    #[error("{0}")]
    Nix(#[from] nix::Error),
    /// JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Rules cannot be loaded here.
    #[error("{0}")]
    Refused(String),
    /// The rules do not do what they should, so their cost is of no interest.
    #[error("{0}")]
    Wrong(String),
}
