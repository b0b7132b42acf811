//! The iptables backend: the matrix of a cluster -> the files of one node, and back.
//!
//! [`select`](mod@select) plans a [`Ruleset`](netpolc_bundle::ipt::Ruleset) for a node and is the only stage that may
//! refuse; [`emit`](mod@emit) prints it and is total; [`decode`](mod@decode) reads the texts back with the strict parser
//! of the bundle crate and says what they do with packets, one by one or for whole sets of peers at once; [`cost`] bounds
//! how many rules a packet meets.
//!
//! What is absent: this crate knows no YAML, no Kubernetes, no file, no process, no kernel, and no other backend.

pub mod cost;
pub mod decode;
pub mod emit;
pub mod limits;
pub mod select;
