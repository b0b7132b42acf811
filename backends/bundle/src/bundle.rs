//! A bundle in memory: its invariants, and the way to and from the bytes of its files.

use crate::artifacts::*;
use crate::bpf::contents::Established;
use crate::ipt::Texts;
use crate::manifest::{Bindings, FORMAT, FileEntry, Manifest, Provenance};
use crate::{bpf, ipt, limits, nft};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

/// The name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// The name of the bindings.
pub const BINDINGS: &str = "bindings.json";
/// The name of the provenance.
pub const PROVENANCE: &str = "provenance.json";
/// The name of the policies.
pub const POLICIES: &str = "policies.json";

/// Most bytes that the file of this name may have; `None` if no file of a bundle has this name.
pub fn limit(name: &str) -> Option<u64> {
    match name {
        MANIFEST => Some(limits::MANIFEST_BYTES),
        SCRIPT => Some(limits::SCRIPT_BYTES),
        IPTABLES | IP6TABLES | IPSET | IPTABLES_PLAIN | IP6TABLES_PLAIN => Some(limits::IPT_BYTES),
        EBPF_CUT | EBPF_KEEP => Some(limits::BPF_OBJECT_BYTES),
        EBPF_MAPS => Some(limits::BPF_CONTENTS_BYTES),
        BINDINGS => Some(limits::BINDINGS_BYTES),
        PROVENANCE => Some(limits::PROVENANCE_BYTES),
        POLICIES => Some(limits::POLICIES_BYTES),
        _ => None,
    }
}

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {message}")]
pub struct BundleError {
    /// The file, or the directory.
    pub file: String,
    /// What is wrong with it.
    pub message: String,
}

impl BundleError {
    pub(crate) fn new(file: &str, message: impl Into<String>) -> BundleError {
        BundleError { file: file.to_owned(), message: message.into() }
    }
}

/// What a compiler puts into a bundle; see the fields of [`Manifest`].
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// The version of the compiler.
    pub compiler: String,
    /// The name of the node.
    pub node: String,
    /// The node's own addresses.
    pub node_addresses: Vec<IpAddr>,
    /// Figures for people.
    pub counts: BTreeMap<String, u64>,
    /// What was proven, in figures.
    pub proof: BTreeMap<String, u64>,
    /// What the kernel is to enforce.
    pub artifacts: Artifacts,
    /// The pods of the node.
    pub bindings: Bindings,
    /// Where the script's objects come from.
    pub provenance: Provenance,
    /// The policies that the artifacts were made of, as a Kubernetes `List` in JSON; `None` if the bundle is for a loader
    /// alone, which has no use for them.
    pub policies: Option<String>,
}

/// A bundle whose manifest describes its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// `manifest.json`.
    pub manifest: Manifest,
    /// The other files by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Bundle {
    /// Makes a bundle.
    ///
    /// # Errors
    /// If an artifact is not of the subset or lacks the marker of its own version, or if a limit is passed.
    pub fn new(parts: Parts) -> Result<Bundle, BundleError> {
        Bundle::with_read_back(parts).map(|(bundle, _)| bundle)
    }

    /// As [`Bundle::new`], and gives the artifacts as they were read back, so that they need not be parsed again to be
    /// proven.
    ///
    /// # Errors
    /// As [`Bundle::new`].
    pub fn with_read_back(parts: Parts) -> Result<(Bundle, ReadBack), BundleError> {
        let mut files = parts.artifacts.into_files();
        let mut add = |name: &str, bytes: Vec<u8>| drop(files.insert(name.to_owned(), bytes));
        add(BINDINGS, to_json(BINDINGS, &parts.bindings)?);
        add(PROVENANCE, to_json(PROVENANCE, &parts.provenance)?);
        if let Some(policies) = parts.policies {
            add(POLICIES, policies.into_bytes());
        }
        let entries = files.iter().map(|(name, bytes)| (name.clone(), Manifest::describe(bytes))).collect();
        let manifest = Manifest {
            format: FORMAT,
            compiler: parts.compiler,
            node: parts.node,
            node_addresses: parts.node_addresses,
            artifacts: BTreeMap::new(),
            files: entries,
            counts: parts.counts,
            proof: parts.proof,
        };
        let mut bundle = Bundle { manifest, files };
        let read = bundle.parse()?;
        bundle.manifest.artifacts = versions(&read);
        bundle.validate()?;
        judge(&read)?;
        Ok((bundle, read))
    }

    /// The bytes of all files, the manifest included.
    ///
    /// # Errors
    /// If the manifest is beyond its limit.
    pub fn to_files(&self) -> Result<BTreeMap<String, Vec<u8>>, BundleError> {
        let mut files = self.files.clone();
        files.insert(MANIFEST.to_owned(), to_json(MANIFEST, &self.manifest)?);
        Ok(files)
    }

    /// Reads a bundle from the bytes of its files, the manifest included. Files that the manifest does not name are an
    /// error.
    ///
    /// # Errors
    /// Whatever is missing, unknown, beyond a limit, or not as the manifest says.
    pub fn from_files(mut files: BTreeMap<String, Vec<u8>>) -> Result<Bundle, BundleError> {
        let bytes = files.remove(MANIFEST).ok_or_else(|| BundleError::new(MANIFEST, "missing"))?;
        let bundle = Bundle { manifest: parse_manifest(&bytes)?, files };
        bundle.validate()?;
        Ok(bundle)
    }

    /// All artifacts: parsed, checked as a whole, and of the versions that the manifest and the markers say.
    ///
    /// # Errors
    /// If any of that does not hold.
    pub fn read_back(&self) -> Result<ReadBack, BundleError> {
        let read = self.parse()?;
        let versions = versions(&read);
        for (artifact, said) in &self.manifest.artifacts {
            let name = artifact.files().first().copied().unwrap_or(MANIFEST);
            match versions.get(artifact) {
                Some(version) if version == said => {}
                Some(version) => {
                    return Err(BundleError::new(
                        name,
                        format!("its version is {version}, the manifest says {said}"),
                    ));
                }
                None => return Err(BundleError::new(name, "missing")),
            }
        }
        if let Some(artifact) = versions.keys().find(|a| !self.manifest.artifacts.contains_key(*a)) {
            let name = artifact.files().first().copied().unwrap_or(MANIFEST);
            return Err(BundleError::new(name, "the manifest gives no version for it"));
        }
        judge(&read)?;
        Ok(read)
    }

    /// The text of the nftables script.
    ///
    /// # Errors
    /// If there is none, or if it is not UTF-8.
    pub fn script(&self) -> Result<&str, BundleError> {
        self.text(SCRIPT)
    }

    /// The texts for iptables, with sets or without.
    ///
    /// # Errors
    /// If they are not there, or not UTF-8.
    pub fn iptables(&self, with_sets: bool) -> Result<Texts<'_>, BundleError> {
        let [v4, v6] = if with_sets { [IPTABLES, IP6TABLES] } else { [IPTABLES_PLAIN, IP6TABLES_PLAIN] };
        let sets = if with_sets { self.text(IPSET)? } else { "" };
        Ok(Texts { sets, v4: self.text(v4)?, v6: self.text(v6)? })
    }

    /// The pods of the node.
    ///
    /// # Errors
    /// If the file is missing or not as it should be.
    pub fn bindings(&self) -> Result<Bindings, BundleError> {
        let bindings: Bindings = from_json(BINDINGS, self.bytes(BINDINGS)?)?;
        bindings.check().map_err(|message| BundleError::new(BINDINGS, message))?;
        Ok(bindings)
    }

    /// Where the objects of the script come from.
    ///
    /// # Errors
    /// If the file is missing or not as it should be.
    pub fn provenance(&self) -> Result<Provenance, BundleError> {
        let provenance: Provenance = from_json(PROVENANCE, self.bytes(PROVENANCE)?)?;
        provenance.check().map_err(|message| BundleError::new(PROVENANCE, message))?;
        Ok(provenance)
    }

    fn bytes(&self, name: &str) -> Result<&[u8], BundleError> {
        self.files.get(name).map(Vec::as_slice).ok_or_else(|| BundleError::new(name, "missing"))
    }

    fn text(&self, name: &str) -> Result<&str, BundleError> {
        str::from_utf8(self.bytes(name)?).map_err(|_| BundleError::new(name, "not UTF-8"))
    }

    /// Parses what is there.
    fn parse(&self) -> Result<ReadBack, BundleError> {
        let mut read = ReadBack::default();
        if self.files.contains_key(SCRIPT) {
            let parsed = nft::parse(self.script()?);
            read.nftables = Some(parsed.map_err(|error| BundleError::new(SCRIPT, error.to_string()))?);
        }
        let parse = |with_sets: bool| {
            let parsed = ipt::parse(&self.iptables(with_sets)?);
            parsed.map_err(|error| BundleError::new(error.file, error.to_string()))
        };
        if self.files.contains_key(IPTABLES) {
            read.iptables = Some(parse(true)?);
        }
        if self.files.contains_key(IPTABLES_PLAIN) {
            read.iptables_plain = Some(parse(false)?);
        }
        if self.files.contains_key(EBPF_MAPS) {
            let maps = self.text(EBPF_MAPS)?;
            let object = |name: &str, wanted: Established| {
                let found = bpf::object::decode(self.bytes(name)?, maps)
                    .map_err(|error| BundleError::new(name, error.to_string()))?;
                match found.established == wanted {
                    true => Ok(found),
                    false => Err(BundleError::new(name, "it holds the other of the two programs")),
                }
            };
            let (cut, keep) = (object(EBPF_CUT, Established::Cut)?, object(EBPF_KEEP, Established::Keep)?);
            read.ebpf = Some(bpf::Pair { cut, keep });
        }
        Ok(read)
    }

    fn validate(&self) -> Result<(), BundleError> {
        check_manifest(&self.manifest)?;
        for (name, bytes) in &self.files {
            if bytes.len() as u64 > limit(name).unwrap_or(0) {
                return Err(BundleError::new(name, "too large, or no file of a bundle"));
            }
            match self.manifest.files.get(name) {
                None => return Err(BundleError::new(name, "the manifest does not name it")),
                Some(known) if known.size != bytes.len() as u64 => {
                    let message = format!("{} bytes, the manifest says {}", bytes.len(), known.size);
                    return Err(BundleError::new(name, message));
                }
                Some(known) if *known != Manifest::describe(bytes) => {
                    return Err(BundleError::new(name, "its SHA-256 is not the one in the manifest"));
                }
                Some(_) => {}
            }
        }
        if let Some(name) = self.manifest.files.keys().find(|name| !self.files.contains_key(*name)) {
            return Err(BundleError::new(name, "missing"));
        }
        Ok(())
    }
}

impl Manifest {
    /// The entry of a file of these bytes.
    pub fn describe(bytes: &[u8]) -> FileEntry {
        let mut sha256 = String::with_capacity(64);
        for byte in Sha256::digest(bytes) {
            // Writing into a string cannot fail.
            let _ = write!(sha256, "{byte:02x}");
        }
        FileEntry { size: bytes.len() as u64, sha256 }
    }
}

/// Reads a manifest and checks it by itself.
pub(crate) fn parse_manifest(bytes: &[u8]) -> Result<Manifest, BundleError> {
    /// Read first, so that a bundle of another format says so instead of complaining of its fields.
    #[derive(serde::Deserialize)]
    struct Probe {
        format: u32,
    }
    if bytes.len() as u64 > limits::MANIFEST_BYTES {
        return Err(BundleError::new(MANIFEST, "too large"));
    }
    if let Ok(Probe { format }) = serde_json::from_slice(bytes)
        && format != FORMAT
    {
        return Err(BundleError::new(
            MANIFEST,
            format!("format {format}; this program reads format {FORMAT}"),
        ));
    }
    let manifest = from_json(MANIFEST, bytes)?;
    check_manifest(&manifest)?;
    Ok(manifest)
}

fn check_manifest(manifest: &Manifest) -> Result<(), BundleError> {
    let fault = |message: String| Err(BundleError::new(MANIFEST, message));
    if manifest.format != FORMAT {
        return fault(format!("format {}; this program reads format {FORMAT}", manifest.format));
    }
    for (what, text) in [("node", &manifest.node), ("compiler", &manifest.compiler)] {
        let fits = !text.is_empty() && text.len() <= limits::OBJECT_NAME_BYTES;
        if !fits || text.chars().any(char::is_control) {
            return fault(format!("`{what}` is empty, too long, or has control characters"));
        }
    }
    if manifest.node_addresses.len() > limits::ADDRESSES {
        return fault("too many addresses of the node".into());
    }
    if manifest.counts.len().max(manifest.proof.len()) > limits::FIGURES {
        return fault("too many figures".into());
    }
    for (name, entry) in &manifest.files {
        match limit(name) {
            None => return fault(format!("{name:?} is no file of a bundle")),
            Some(_) if name == MANIFEST => return fault("the manifest names itself".into()),
            Some(limit) if entry.size > limit => return fault(format!("{name}: more than {limit} bytes")),
            Some(_) => {}
        }
    }
    if manifest.artifacts.is_empty() {
        return fault("no artifact".into());
    }
    let artifacts = manifest.artifacts.keys().flat_map(|artifact| artifact.files());
    if let Some(name) = artifacts.chain(&[BINDINGS]).find(|name| !manifest.files.contains_key(**name)) {
        return fault(format!("{name} is missing"));
    }
    Ok(())
}

fn to_json<T: Serialize>(name: &str, value: &T) -> Result<Vec<u8>, BundleError> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|error| BundleError::new(name, error.to_string()))?;
    bytes.push(b'\n');
    if bytes.len() as u64 > limit(name).unwrap_or(0) {
        return Err(BundleError::new(name, "too large"));
    }
    Ok(bytes)
}

fn from_json<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, BundleError> {
    serde_json::from_slice(bytes).map_err(|error| BundleError::new(name, error.to_string()))
}
