//! The intermediate representation of netpolc.
//!
//! A [`Unit`](unit::Unit) says what the policies of a cluster say, over classes of addresses; passes make it smaller
//! without changing any verdict; [`fold`](matrix::fold) turns it into the [`Matrix`](matrix::Matrix), in which every
//! class has one answer for every peer, protocol and port, and from which every backend plans its rules.
//!
//! What is absent: this crate knows no YAML, no Kubernetes object, no label, no kernel, no file.

pub mod addr;
pub mod bitset;
pub mod eval;
pub mod matrix;
pub mod passes;
pub mod ports;
pub mod proof;
pub mod text;
pub mod unit;
pub mod verify;
