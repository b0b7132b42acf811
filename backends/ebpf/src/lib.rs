//! The eBPF backend: the matrix of a cluster -> an object and the contents of its maps for one node, and back.
//!
//! [`select`](mod@select) plans the [`contents`] of a node's maps and is the only stage that may refuse; [`emit`](mod@emit) writes the
//! object, whose [`program`] is the same for every node; [`decode`] reads object and contents back, and [`machine`]
//! executes the very instructions on packets.
//!
//! What is absent: this crate knows no YAML, no Kubernetes, no file, no process, no kernel, and no other backend.

pub mod asm;
pub mod btf;
pub mod emit;
pub mod limits;
pub mod machine;
pub mod program;
pub mod select;

pub use netpolc_bundle::bpf::{contents, insn, layout, object as decode};
