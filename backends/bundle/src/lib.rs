//! The artifact format of netpolc, shared by compiler and loader.
//!
//! A bundle is a directory for one node: a manifest, the nftables script, the addresses of the node's pods, where each
//! object of the script comes from, and the policies as IR. The loader has privileges and the bundle comes from
//! elsewhere, so nothing here trusts it: sizes are bounded before anything is read ([`limits`]), digests are checked,
//! unknown and repeated fields are refused, and the script is parsed by [`nft::parse`], which knows our own tables only.
//!
//! What is absent: this crate knows no YAML, no Kubernetes, no IR and no kernel. It reads and writes bytes; the only
//! module that touches files is [`store`].

pub mod bpf;
mod bundle;
pub mod ipt;
mod json;
pub mod limits;
mod manifest;
pub mod nft;
pub mod store;
pub mod wire;

pub use bundle::{BINDINGS, Bundle, BundleError, IR, MANIFEST, PROVENANCE, Parts, SCRIPT, limit};
pub use manifest::{Backend, Bindings, FORMAT, FileEntry, LocalPod, Manifest, Origin, Provenance};
