//! The artifact format of netpolc, shared by compiler and loader.
//!
//! A bundle is a directory for one node: a manifest, what the kernel is to enforce in one or more languages, the addresses
//! of the node's pods, where each object of the rules comes from, and the policies as IR. The loader has privileges and the bundle comes from
//! elsewhere, so nothing here trusts it: sizes are bounded before anything is read ([`limits`]), digests are checked,
//! unknown and repeated fields are refused, and the artifacts are parsed by [`nft::parse`], [`ipt::parse`] and
//! [`bpf::object::decode`], which know our own objects only.
//!
//! What is absent: this crate knows no YAML, no Kubernetes, no IR and no kernel. It reads and writes bytes; the only
//! module that touches files is [`store`].

mod artifacts;
pub mod bpf;
mod bundle;
pub mod comment;
pub mod ipt;
mod json;
pub mod limits;
mod manifest;
pub mod nft;
pub mod rebind;
pub mod store;
pub mod wire;

pub use artifacts::{
    Artifacts, EBPF_CUT, EBPF_KEEP, EBPF_MAPS, EbpfFiles, IP6TABLES, IP6TABLES_PLAIN, IPSET, IPTABLES,
    IPTABLES_PLAIN, IptablesFiles, ReadBack, SCRIPT,
};
pub use bundle::{BINDINGS, Bundle, BundleError, MANIFEST, POLICIES, PROVENANCE, Parts, limit};
pub use manifest::{
    Artifact, Backend, Bindings, CLASSES, FORMAT, FileEntry, LocalPod, Manifest, Origin, Provenance,
};
pub use nft::Version;
