//! The JSON files of a bundle as types.

use crate::artifacts::{
    EBPF_CUT, EBPF_KEEP, EBPF_MAPS, IP6TABLES, IP6TABLES_PLAIN, IPSET, IPTABLES, IPTABLES_PLAIN, SCRIPT,
};
use crate::json::unique;
use crate::limits;
use crate::nft::Version;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// The version of the format itself.
pub const FORMAT: u32 = 2;

/// Among the [figures](Manifest::counts): how many kinds of pods the rules tell apart.
pub const CLASSES: &str = "classes";

/// A way to enforce policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Programs at the FORWARD hook.
    Ebpf,
    /// Tables of nftables.
    Nftables,
    /// Chains of iptables, with ipsets where the kernel has them.
    Iptables,
}

impl Backend {
    /// All, in the order in which the loader prefers them.
    pub const ALL: [Backend; 3] = [Backend::Ebpf, Backend::Nftables, Backend::Iptables];
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Ebpf => "ebpf",
            Backend::Nftables => "nftables",
            Backend::Iptables => "iptables",
        })
    }
}

/// What a bundle may have for a node: files that come into force together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Artifact {
    /// `ebpf-cut.o` or `ebpf-keep.o`, with `ebpf.maps`.
    Ebpf,
    /// `nftables.nft`.
    Nftables,
    /// `iptables.rules`, `ip6tables.rules` and `ipset.rules`.
    Iptables,
    /// `iptables-plain.rules` and `ip6tables-plain.rules`: the same for kernels without ipset.
    IptablesPlain,
}

impl Artifact {
    /// All, in order.
    pub const ALL: [Artifact; 4] =
        [Artifact::Ebpf, Artifact::Nftables, Artifact::Iptables, Artifact::IptablesPlain];

    /// What enforces it.
    pub fn backend(self) -> Backend {
        match self {
            Artifact::Ebpf => Backend::Ebpf,
            Artifact::Nftables => Backend::Nftables,
            Artifact::Iptables | Artifact::IptablesPlain => Backend::Iptables,
        }
    }

    /// Its files.
    pub fn files(self) -> &'static [&'static str] {
        match self {
            Artifact::Ebpf => &[EBPF_CUT, EBPF_KEEP, EBPF_MAPS],
            Artifact::Nftables => &[SCRIPT],
            Artifact::Iptables => &[IPTABLES, IP6TABLES, IPSET],
            Artifact::IptablesPlain => &[IPTABLES_PLAIN, IP6TABLES_PLAIN],
        }
    }
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
    /// What the bundle has, each with its version: [`crate::nft::digest`], [`crate::ipt::digest`], [`crate::bpf::digest`].
    #[serde(deserialize_with = "unique")]
    pub artifacts: BTreeMap<Artifact, Version>,
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

impl Manifest {
    /// The backends that the bundle has artifacts for, in the order in which the loader prefers them.
    pub fn backends(&self) -> BTreeSet<Backend> {
        self.artifacts.keys().map(|artifact| artifact.backend()).collect()
    }
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

impl Bindings {
    /// Whether a node can have these.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.pods.len() > limits::LOCAL_PODS {
            return Err("too many pods");
        }
        for pod in &self.pods {
            if pod.name.len() > limits::OBJECT_NAME_BYTES || pod.name.chars().any(char::is_control) {
                return Err("a pod's name that none can have");
            }
            if pod.addresses.len() > limits::ADDRESSES {
                return Err("a pod with too many addresses");
            }
        }
        Ok(())
    }
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

/// `provenance.json`: where each object of the rules comes from. The loader does not read it.
///
/// Each place stands there once, however many objects lead back to it: with many policies for a pod, each of its chains
/// leads back to all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The places, sorted.
    places: Vec<Origin>,
    /// By the object's name in the rules: which of the places, counted from 0.
    #[serde(deserialize_with = "unique")]
    objects: BTreeMap<String, Vec<usize>>,
}

impl Provenance {
    /// From what is behind each object.
    pub fn new<'a>(objects: impl IntoIterator<Item = (String, Vec<&'a Origin>)>) -> Provenance {
        let objects: BTreeMap<String, Vec<&Origin>> = objects.into_iter().collect();
        let places: BTreeSet<&Origin> = objects.values().flatten().copied().collect();
        let numbers: BTreeMap<&Origin, usize> = places.iter().copied().zip(0..).collect();
        let numbered = |origins: Vec<&Origin>| {
            origins.iter().filter_map(|origin| numbers.get(origin).copied()).collect()
        };
        let objects = objects.into_iter().map(|(name, origins)| (name, numbered(origins))).collect();
        Provenance { places: places.into_iter().cloned().collect(), objects }
    }

    /// The places behind an object; none for an object that is not there.
    pub fn behind<'a>(&'a self, object: &str) -> impl Iterator<Item = &'a Origin> {
        self.objects.get(object).into_iter().flatten().filter_map(|number| self.places.get(*number))
    }

    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        let known = self.places.len();
        let odd = self.objects.iter().find(|(_, numbers)| numbers.iter().any(|number| *number >= known));
        odd.map_or(Ok(()), |(name, _)| Err(format!("{name} leads to a place that is not there")))
    }
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
