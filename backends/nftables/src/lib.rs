//! The nftables backend: the matrix of a cluster -> the script of one node, and back.
//!
//! [`select`](mod@select) plans a [`Ruleset`](netpolc_bundle::nft::Ruleset) for a node and is the only stage that may refuse;
//! [`emit`](mod@emit), which the loader has too, prints it and is total; [`decode`] reads a script back with the strict parser of the bundle crate and
//! says what it does with packets, one by one or for whole sets of peers at once.
//!
//! What is absent: this crate knows no YAML, no Kubernetes, no file, no process, no kernel, and no other backend.

pub mod decode;
pub mod limits;
pub mod review;
pub mod select;

pub use netpolc_bundle::nft::emit;
