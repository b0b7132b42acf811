//! The loader of netpolc: makes the kernel of one network namespace enforce a bundle.
//!
//! It has privileges, so it does little: it reads a bundle with [`netpolc_bundle`], chooses a backend ([`dataplane`]), looks
//! at what is in force and switches in one step ([`nftables`], [`iptables`], [`ebpf`]). It keeps no memory: what it needs
//! to know of its predecessors is in the kernel, so it may be killed at any instant and started again. [`daemon`] does
//! this for a node from boot to shutdown, and [`node`] makes the node's network where no one else does.
//!
//! What is absent: this crate knows no YAML, no policies and no IR, and of ours depends on `netpolc-bundle` alone. Only
//! [`kernel`], [`lock`], [`netlink`], [`daemon`] and [`node`] touch processes, system files and sockets.

pub mod apply;
pub mod batch;
pub mod bridges;
pub mod conntrack;
pub mod cut;
pub mod daemon;
pub mod dataplane;
pub mod ebpf;
mod error;
pub mod generation;
pub mod iptables;
pub mod judge;
pub mod kernel;
pub mod live;
pub mod lock;
pub mod netlink;
pub mod nftables;
pub mod node;
pub mod remove;
pub mod routes;
pub mod rtnetlink;
pub mod status;
pub mod tables;
pub mod witness;

pub use error::Error;
