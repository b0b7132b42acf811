//! `netpol-loader status`: what is in force.

use crate::compare::differences;
use crate::kernel::Kernel;
use crate::observe::{View, observe};
use crate::{Error, routes};
use netpolc_bundle::Bundle;
use netpolc_bundle::nft;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whether a version is in force and nothing differs from it.
    pub in_force: bool,
    /// The version, where it is in force.
    pub version: Option<String>,
    /// `nftables`, where a table of ours is there.
    pub backend: Option<&'static str>,
    /// Our tables.
    pub tables: Vec<TableStatus>,
    /// What differs from the version that the markers name, or from the bundle that was given.
    pub drift: Vec<String>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableStatus {
    /// `ip` or `ip6`.
    pub family: String,
    /// The versions that its markers name; one, if all is well.
    pub versions: Vec<String>,
    /// How many chains it has.
    pub chains: usize,
    /// How many rules; absent if the listing could not be read.
    pub rules: Option<usize>,
    /// How many sets and maps it has.
    pub sets: usize,
    /// How many elements the sets and maps have together; absent if the listing could not be read.
    pub elements: Option<usize>,
    /// The interfaces of local pods.
    pub interfaces: Vec<String>,
    /// Packets that counting rules dropped, by the first part of the chain's name (`deny` for `deny_c0c0`).
    pub dropped_packets: BTreeMap<String, u64>,
}

/// Looks at the kernel, and compares it with a bundle if one is given.
///
/// # Errors
/// If nft cannot be run or may not look, or if the bundle is not sound.
pub fn status(kernel: &mut dyn Kernel, bundle: Option<&Path>) -> Result<Status, Error> {
    let seen = observe(kernel)?;
    let mut drift = seen.drift();
    if let Some(dir) = bundle {
        let bundle = Bundle::open(dir)?;
        let wanted = bundle.read_back()?.nftables.unwrap_or_default();
        if let Some(there) = seen.ruleset() {
            drift.extend(differences(&wanted, &there));
        }
        let (interfaces, _) = routes::local_interfaces(&bundle.bindings()?, &kernel.routes()?);
        for (family, view) in &seen.tables {
            if view.interfaces().is_some_and(|there| there != interfaces) {
                drift.push(format!("table {family}: other interfaces of pods than the routes say"));
            }
        }
    }
    let version = seen.in_force().map(|version| version.to_string());
    Ok(Status {
        in_force: version.is_some() && drift.is_empty(),
        version,
        backend: if seen.tables.is_empty() { None } else { Some("nftables") },
        tables: seen.tables.iter().map(|(family, view)| table_status(family.to_string(), view)).collect(),
        drift,
    })
}

fn table_status(family: String, view: &View) -> TableStatus {
    let table = view.table.as_ref().ok();
    let versions = table.map(nft::markers).unwrap_or_default();
    TableStatus {
        family,
        versions: versions.iter().map(ToString::to_string).collect(),
        chains: view.names.chains.len(),
        rules: table.map(|table| table.chains.values().map(|chain| chain.rules.len()).sum()),
        sets: view.names.sets.len() + view.names.maps.len(),
        elements: table.map(|table| table.sets.values().map(|set| set.elements.len()).sum()),
        interfaces: view.interfaces().unwrap_or_default().into_iter().collect(),
        dropped_packets: dropped(&view.text),
    }
}

/// The figures of `counter packets N bytes N drop`, which the parser leaves out.
fn dropped(listing: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    let mut chain = "";
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["chain", name, "{"] = words.as_slice() {
            chain = name.split('_').next().unwrap_or_default();
        }
        let figures = words.windows(6).find_map(|window| match window {
            ["counter", "packets", number, "bytes", _, "drop"] => number.parse::<u64>().ok(),
            _ => None,
        });
        if let Some(packets) = figures {
            let sum: &mut u64 = sums.entry(chain.to_owned()).or_default();
            *sum = sum.saturating_add(packets);
        }
    }
    sums
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.version, self.backend) {
            (Some(version), _) => writeln!(f, "in force: version {version}, backend nftables")?,
            (None, Some(_)) => writeln!(f, "drifted: the rules in the kernel are no version of ours")?,
            (None, None) => writeln!(f, "nothing in force: there is no table of netpolc")?,
        }
        for table in &self.tables {
            let known = |figure: Option<usize>| figure.map_or("?".to_owned(), |figure| figure.to_string());
            writeln!(
                f,
                "table {}: {} chains, {} rules, {} sets, {} elements, {} interfaces of local pods",
                table.family,
                table.chains,
                known(table.rules),
                table.sets,
                known(table.elements),
                table.interfaces.len()
            )?;
            for (chain, packets) in &table.dropped_packets {
                writeln!(f, "table {}: {packets} packets dropped by {chain}", table.family)?;
            }
        }
        for line in &self.drift {
            writeln!(f, "drift: {line}")?;
        }
        Ok(())
    }
}
