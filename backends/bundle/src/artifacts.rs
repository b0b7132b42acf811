//! What a bundle has for the kernel: the files of each artifact, and what they are once they were read back.

use crate::bundle::BundleError;
use crate::manifest::Artifact;
use crate::nft::Version;
use crate::{bpf, ipt, nft};
use std::collections::BTreeMap;

/// The name of the nftables script.
pub const SCRIPT: &str = "nftables.nft";
/// The name of the rules for `iptables-restore`.
pub const IPTABLES: &str = "iptables.rules";
/// The name of the rules for `ip6tables-restore`.
pub const IP6TABLES: &str = "ip6tables.rules";
/// The name of the sets for `ipset restore`.
pub const IPSET: &str = "ipset.rules";
/// The name of the rules for `iptables-restore` where the kernel has no ipset.
pub const IPTABLES_PLAIN: &str = "iptables-plain.rules";
/// The name of the rules for `ip6tables-restore` where the kernel has no ipset.
pub const IP6TABLES_PLAIN: &str = "ip6tables-plain.rules";
/// The name of the object whose program judges packets of established connections too.
pub const EBPF_CUT: &str = "ebpf-cut.o";
/// The name of the object whose program lets packets of established connections pass.
pub const EBPF_KEEP: &str = "ebpf-keep.o";
/// The name of the contents of the maps of both.
pub const EBPF_MAPS: &str = "ebpf.maps";
/// The files that the kernel's rules are made from. At least one of them must be there.
#[derive(Debug, Clone, Default)]
pub struct Artifacts {
    /// The nftables script, with the marker of its own version in each table.
    pub nftables: Option<String>,
    /// Rules and sets for iptables.
    pub iptables: Option<IptablesFiles>,
    /// Rules for iptables without sets.
    pub iptables_plain: Option<IptablesFiles>,
    /// The objects, and the contents of their maps.
    pub ebpf: Option<EbpfFiles>,
}

/// The texts for iptables, each with the marker of its own version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IptablesFiles {
    /// For `ipset restore`; empty in the variant without sets.
    pub sets: String,
    /// For `iptables-restore`.
    pub v4: String,
    /// For `ip6tables-restore`.
    pub v6: String,
}

/// The files for eBPF.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EbpfFiles {
    /// The object that judges packets of established connections too.
    pub cut: Vec<u8>,
    /// The object that lets them pass.
    pub keep: Vec<u8>,
    /// The contents of the maps of both.
    pub maps: String,
}

/// All artifacts of a bundle, read back, each of the version that the manifest says.
#[derive(Debug, Clone, Default)]
pub struct ReadBack {
    /// [`Artifact::Nftables`].
    pub nftables: Option<nft::Ruleset>,
    /// [`Artifact::Iptables`].
    pub iptables: Option<ipt::Ruleset>,
    /// [`Artifact::IptablesPlain`].
    pub iptables_plain: Option<ipt::Ruleset>,
    /// [`Artifact::Ebpf`].
    pub ebpf: Option<bpf::Pair>,
}

impl Artifacts {
    /// The files by name.
    pub(crate) fn into_files(self) -> BTreeMap<String, Vec<u8>> {
        let mut files = Vec::new();
        files.extend(self.nftables.map(|script| (SCRIPT, script.into_bytes())));
        if let Some(IptablesFiles { sets, v4, v6 }) = self.iptables {
            let texts = [(IPTABLES, v4), (IP6TABLES, v6), (IPSET, sets)];
            files.extend(texts.map(|(name, text)| (name, text.into_bytes())));
        }
        if let Some(IptablesFiles { v4, v6, .. }) = self.iptables_plain {
            let texts = [(IPTABLES_PLAIN, v4), (IP6TABLES_PLAIN, v6)];
            files.extend(texts.map(|(name, text)| (name, text.into_bytes())));
        }
        if let Some(EbpfFiles { cut, keep, maps }) = self.ebpf {
            files.extend([(EBPF_CUT, cut), (EBPF_KEEP, keep), (EBPF_MAPS, maps.into_bytes())]);
        }
        files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
    }
}

/// What can be said of rulesets without the kernel: they are whole, and the markers name their versions.
pub(crate) fn judge(read: &ReadBack) -> Result<(), BundleError> {
    if let Some(ruleset) = &read.nftables {
        judge_nftables(ruleset).map_err(|message| BundleError::new(SCRIPT, message))?;
    }
    for (name, ruleset) in [(IPTABLES, &read.iptables), (IPTABLES_PLAIN, &read.iptables_plain)] {
        if let Some(ruleset) = ruleset {
            judge_iptables(ruleset).map_err(|message| BundleError::new(name, message))?;
        }
    }
    Ok(())
}

/// The versions of what was read back.
pub(crate) fn versions(read: &ReadBack) -> BTreeMap<Artifact, Version> {
    let found = [
        (Artifact::Ebpf, read.ebpf.as_ref().map(bpf::digest)),
        (Artifact::Nftables, read.nftables.as_ref().map(nft::digest)),
        (Artifact::Iptables, read.iptables.as_ref().map(ipt::digest)),
        (Artifact::IptablesPlain, read.iptables_plain.as_ref().map(ipt::digest)),
    ];
    found.into_iter().filter_map(|(artifact, version)| Some((artifact, version?))).collect()
}

fn judge_nftables(ruleset: &nft::Ruleset) -> Result<(), String> {
    nft::check(ruleset).map_err(|error| error.to_string())?;
    let marker = nft::marker(nft::digest(ruleset));
    for (family, table) in &ruleset.tables {
        let markers: Vec<&String> =
            table.chains.keys().filter(|name| name.starts_with(nft::MARKER_PREFIX)).collect();
        if markers != [&marker] {
            return Err(format!("table {family} netpolc: the one marker chain must be `{marker}`"));
        }
    }
    Ok(())
}

fn judge_iptables(ruleset: &ipt::Ruleset) -> Result<(), String> {
    ipt::check(ruleset).map_err(|error| error.to_string())?;
    let version = ipt::digest(ruleset);
    for family in ipt::Family::ALL {
        let filter = ruleset.tables.get(&(family, ipt::Table::Filter));
        let markers: Vec<Version> = filter.map(ipt::markers).into_iter().flatten().collect();
        if markers != [version] {
            return Err(format!("{family}: the one marker chain must be `{}`", ipt::marker(version)));
        }
    }
    Ok(())
}
