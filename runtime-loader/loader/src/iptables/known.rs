//! Rules of iptables that are known to be in force, so that a new bundle can be brought into force by what it changes.
//!
//! The daemon has loaded them, or has looked at them since. It makes the sets that are new, and restores the chains that
//! differ, in the order and with the way back of a whole bundle. It neither lists before nor after: its next look does, and
//! takes away sets that are left over. Until then what another hand has changed stays changed, as between two looks.

use super::observe::{Observed, Scan};
use super::plan::{self, Wanted};
use super::variant::{Scope, Tools, Views, has_ipv6};
use super::{passed, restore};
use crate::Error;
use crate::judge::Judge;
use crate::kernel::Kernel;
use crate::routes::{self, PodInterfaces};
use netpolc_bundle::ipt::{Family, PODIF, Ruleset, Set, Table};
use netpolc_bundle::{Artifact, Bundle, ReadBack, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is in force.
#[derive(Debug)]
pub struct Known {
    artifact: Artifact,
    version: Version,
    ruleset: Arc<Ruleset>,
    /// The rules as they were loaded, to be put back.
    texts: BTreeMap<Family, String>,
    /// The sets that are there, those too that no rule asks any more.
    sets: BTreeMap<String, Set>,
    /// The interfaces of pods that the rules know.
    interfaces: BTreeSet<String>,
}

/// What came of [`Known::switch`].
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields' names say it")]
pub struct Switched {
    pub known: Known,
    pub interfaces: PodInterfaces,
    pub notes: Vec<String>,
}

impl Known {
    /// What a bundle has brought into force under this version, with these interfaces of pods; `None` if it has no such version.
    pub fn new(
        bundle: &Bundle,
        read: &ReadBack,
        version: Version,
        interfaces: &BTreeSet<String>,
    ) -> Option<Known> {
        let (artifact, ruleset) = rules(bundle, read, |_, found| found == version)?;
        let texts = bundle.iptables(artifact == Artifact::Iptables).ok()?;
        Some(Known {
            artifact,
            version,
            ruleset: Arc::new(ruleset.clone()),
            texts: [(Family::V4, texts.v4.to_owned()), (Family::V6, texts.v6.to_owned())].into(),
            sets: ruleset.sets.clone(),
            interfaces: plan::interfaces(interfaces),
        })
    }

    /// The version in force.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Brings another version into force by what it changes. `tools` are those that the rules were loaded with, if that is
    /// known. `None` if the bundle has no such version, or if it could not be done so, since another hand was there, say:
    /// then the rules are those before, and the bundle has to be applied as a whole.
    ///
    /// # Errors
    /// If the bundle is refused, or if the kernel cannot be looked at.
    pub fn switch(
        &self,
        kernel: &mut dyn Kernel,
        tools: &mut Option<Tools>,
        bundle: &Bundle,
        read: &ReadBack,
    ) -> Result<Option<Switched>, Error> {
        let same_kind = |artifact, version| artifact == self.artifact && version != self.version;
        let Some((artifact, ruleset)) = rules(bundle, read, same_kind) else { return Ok(None) };
        let Some(version) = bundle.manifest.artifacts.get(&artifact).copied() else { return Ok(None) };
        let notes: Vec<String> = kernel.lock()?.into_iter().collect();
        // Without IPv6 half a version is in force, which takes more care.
        if !has_ipv6(kernel) {
            return Ok(None);
        }
        if tools.is_none() {
            *tools = in_use(kernel)?;
        }
        let Some(tools) = tools.as_ref() else { return Ok(None) };
        let (interfaces, missing) = routes::pod_interfaces(&bundle.bindings()?, &kernel.routes()?);
        let wanted = Wanted {
            texts: bundle.iptables(artifact == Artifact::Iptables)?,
            ruleset,
            version,
            interfaces: plan::interfaces(&interfaces.all()),
            families: Family::ALL.to_vec(),
            half: None,
        };
        let seen = self.as_seen(tools);
        let sets = plan::sets(&wanted, &seen);
        if !sets.is_empty() && kernel.program("ipset", &["restore"], &sets).is_err() {
            return Ok(None);
        }
        let texts = Family::ALL.map(|family| {
            let same = |table, chain: &str| self.has(&wanted, family, table, chain);
            let switch = plan::without(&plan::switch(&wanted, &seen, family), &same);
            (family, switch, plan::undo(&wanted, &seen, family))
        });
        if restore(kernel, tools, texts.into()).is_err() {
            return Ok(None);
        }
        let Some(mut known) = Known::new(bundle, read, version, &interfaces.all()) else { return Ok(None) };
        known.sets.extend(self.sets.clone());
        Ok(Some(Switched { known, interfaces, notes: notes.into_iter().chain(missing).collect() }))
    }

    /// Whether a chain that is wanted is there already.
    fn has(&self, wanted: &Wanted<'_>, family: Family, table: Table, chain: &str) -> bool {
        if chain == PODIF && self.interfaces != wanted.interfaces {
            return false;
        }
        let of = |ruleset: &Ruleset| ruleset.tables.get(&(family, table))?.get(chain).cloned();
        let there = of(&self.ruleset);
        there.is_some() && there == of(wanted.ruleset)
    }

    /// As a look would show it, as far as a plan needs it.
    fn as_seen(&self, tools: &Tools) -> Observed {
        let tables = Family::ALL.into_iter().flat_map(|family| Table::ALL.map(|table| (family, table)));
        let scan = |key: (Family, Table)| {
            let (family, table) = key;
            let text = self.texts.get(&family).map(String::as_str).unwrap_or_default();
            let chains = self.ruleset.tables.get(&key);
            let mut scan = Scan::of(text, table);
            if chains.is_some_and(|chains| chains.contains_key(table.entry())) {
                (scan.first, scan.jumps) = (true, 1);
            }
            if table == Table::Mangle {
                let audit = passed::audits(&self.ruleset);
                scan.rules.extend(plan::podif_rules(&self.interfaces, audit));
            }
            (key, scan)
        };
        let kind = |set: &Set| format!("{} family {}", set.kind, set.family);
        Observed {
            tools: tools.clone(),
            sets: Ok(self.sets.clone()),
            set_names: self.sets.iter().map(|(name, set)| (name.clone(), kind(set))).collect(),
            tables: BTreeMap::new(),
            scans: tables.map(scan).collect(),
        }
    }

    /// Judges the packets that open connections.
    pub fn judge(&self) -> Judge {
        Judge::iptables(self.version, &self.ruleset)
    }
}

/// The artifact of a bundle that is wanted, and its rules.
fn rules<'r>(
    bundle: &Bundle,
    read: &'r ReadBack,
    wanted: impl Fn(Artifact, Version) -> bool,
) -> Option<(Artifact, &'r Ruleset)> {
    let there = [(Artifact::Iptables, &read.iptables), (Artifact::IptablesPlain, &read.iptables_plain)];
    there.into_iter().find_map(|(artifact, ruleset)| {
        let version = *bundle.manifest.artifacts.get(&artifact)?;
        ruleset.as_ref().filter(|_| wanted(artifact, version)).map(|ruleset| (artifact, ruleset))
    })
}

/// The programs of the one variant that has chains of ours.
fn in_use(kernel: &mut dyn Kernel) -> Result<Option<Tools>, Error> {
    let views = Views::take_ours(kernel, Scope::Ours)?.views;
    let mut ours = views.into_iter().filter(|view| view.has_ours());
    Ok(ours.next().filter(|_| ours.next().is_none()).map(|view| view.tools))
}
