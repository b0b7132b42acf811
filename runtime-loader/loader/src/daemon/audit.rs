//! Audit mode: the same rules, but what they would drop passes and is counted.
//!
//! Each artifact is changed where it drops, read back, and compared with what it was: nothing else may differ, and nothing
//! may drop any more. An artifact that drops in a way that is not known here is refused, so audit mode never drops by
//! mistake. What comes out has a version of its own: the loader never takes one for the other.

mod ebpf;
mod iptables;
mod nftables;
#[cfg(test)]
mod tests;

use crate::Error;
use netpolc_bundle::ipt::Texts;
use netpolc_bundle::{
    Artifact, Artifacts, Bundle, BundleError, EBPF_CUT, EBPF_KEEP, EBPF_MAPS, EbpfFiles, IptablesFiles, Parts,
};

/// The bundle whose rules and programs let pass what those of this one drop. It has the same artifacts. All rules that drop
/// count, and so do programs what no policy allows, so the counters say what would have been dropped.
///
/// # Errors
/// If the bundle is not sound, or an artifact drops in a way that this module does not know.
pub fn audited(bundle: &Bundle) -> Result<Bundle, Error> {
    let read = bundle.read_back()?;
    let manifest = &bundle.manifest;
    let mut artifacts = Artifacts::default();
    if let Some(version) = manifest.artifacts.get(&Artifact::Nftables) {
        artifacts.nftables = Some(nftables::accepting(bundle.script()?, *version)?);
    }
    if let (Some(version), Some(rules)) = (manifest.artifacts.get(&Artifact::Iptables), &read.iptables) {
        artifacts.iptables = Some(iptables(&bundle.iptables(true)?, rules, *version)?);
    }
    let plain = manifest.artifacts.get(&Artifact::IptablesPlain);
    if let (Some(version), Some(rules)) = (plain, &read.iptables_plain) {
        artifacts.iptables_plain = Some(iptables(&bundle.iptables(false)?, rules, *version)?);
    }
    if let Some(pair) = &read.ebpf {
        let file = |name: &str| {
            let missing = || BundleError { file: name.to_owned(), message: "missing".to_owned() };
            bundle.files.get(name).ok_or_else(missing)
        };
        let maps = String::from_utf8_lossy(file(EBPF_MAPS)?).into_owned();
        let cut = ebpf::accepting(file(EBPF_CUT)?, &maps, &pair.cut)?;
        let keep = ebpf::accepting(file(EBPF_KEEP)?, &maps, &pair.keep)?;
        artifacts.ebpf = Some(EbpfFiles { cut, keep, maps });
    }
    Ok(Bundle::new(Parts {
        compiler: manifest.compiler.clone(),
        node: manifest.node.clone(),
        node_addresses: manifest.node_addresses.clone(),
        artifacts,
        bindings: bundle.bindings()?,
        ..Parts::default()
    })?)
}

fn iptables(
    texts: &Texts<'_>,
    rules: &netpolc_bundle::ipt::Ruleset,
    version: netpolc_bundle::Version,
) -> Result<IptablesFiles, Error> {
    let (v4, v6) = iptables::returning(texts, rules, version)?;
    Ok(IptablesFiles { sets: texts.sets.to_owned(), v4, v6 })
}

/// The answer to an artifact that cannot be had without its drops.
fn refused(what: &str, why: impl std::fmt::Display) -> Error {
    Error::Refused(format!("audit mode does not know how {what}: {why}"))
}
