//! The JSON files of a bundle as types.

use crate::json::unique;
use crate::nft::Version;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The version of the format itself.
pub const FORMAT: u32 = 1;

/// A way to enforce policies that a bundle has artifacts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Backend {
    /// `nftables.nft`.
    Nftables,
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of the compiler.
    pub compiler: String,
    /// The name of the node.
    pub node: String,
    /// The node's own addresses, sorted.
    pub node_addresses: Vec<IpAddr>,
    /// The version of the ruleset; see [`crate::nft::digest`].
    pub version: Version,
    /// What the bundle has artifacts for.
    pub backends: BTreeSet<Backend>,
    /// The other files by name.
    #[serde(deserialize_with = "unique")]
    pub files: BTreeMap<String, FileEntry>,
    /// Figures for people, such as `sets`, `elements`, `policies`. The loader does not read them.
    #[serde(deserialize_with = "unique")]
    pub counts: BTreeMap<String, u64>,
    /// What the compiler proved before it wrote the bundle, in figures such as `flows` and `classes`. The loader does
    /// not read them.
    #[serde(deserialize_with = "unique")]
    pub proof: BTreeMap<String, u64>,
}

/// A file as the manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 in 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// `bindings.json`: which addresses the pods of this node have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bindings {
    /// The pods of the node, sorted by name.
    pub pods: Vec<LocalPod>,
}

/// A pod of the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalPod {
    /// `namespace/name`.
    pub name: String,
    /// Its addresses, sorted.
    pub addresses: Vec<IpAddr>,
}

/// `provenance.json`: where each object of the script comes from. The loader does not read it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// By the object's name in the script.
    #[serde(deserialize_with = "unique")]
    pub objects: BTreeMap<String, Vec<Origin>>,
}

/// A place in a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// `namespace/name` of the policy.
    pub policy: String,
    /// The file, as it was given to the compiler.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}
