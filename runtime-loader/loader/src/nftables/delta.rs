//! The switch from one of our versions to another, as what differs between them.
//!
//! What [`super::plan::switch`] says of names and generations holds here too. But here it is known what is in the kernel
//! without a look, since this process has put it there; so only new sets and chains are told, and those that the versions
//! share stay as they are, with their counters. If another hand has been there meanwhile, that is found at the next look,
//! as it would have been without the switch.

use crate::batch::Batch;
use crate::nftables::filled::{Behind, filling};
use netpolc_bundle::nft::{
    Chain, Edit, Elements, FILLED, Family, Key, MARKER_PREFIX, PODADDR, Ruleset, Set, TABLE, Table, Verdict,
    is_filled,
};
use std::collections::BTreeMap;

/// What is there: a version, and beside it what earlier switches have [left](There::left_by).
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the fields' names say it")]
pub struct There<'a> {
    pub version: &'a Ruleset,
    pub left: &'a Ruleset,
}

impl<'a> There<'a> {
    fn table(self, family: Family) -> Option<ThereTable<'a>> {
        Some(ThereTable { version: self.version.tables.get(&family)?, left: self.left.tables.get(&family) })
    }

    /// What is there after [`switch`] beside the goal: what the goal does not use, until a look clears it up.
    pub fn left_by(self, goal: &Ruleset) -> Ruleset {
        let mut left = Ruleset::default();
        for (family, goal) in &goal.tables {
            let Some(there) = self.table(*family) else { continue };
            let sets = there.sets().filter(|(name, _)| !goal.sets.contains_key(*name));
            // The markers of other versions were deleted.
            let unused = |name: &str| !goal.chains.contains_key(name) && !name.starts_with(MARKER_PREFIX);
            let chains = there.chains().filter(|(name, _)| unused(name));
            let table = Table {
                sets: sets.map(|(name, set)| (name.clone(), set.clone())).collect(),
                chains: chains.map(|(name, chain)| (name.clone(), chain.clone())).collect(),
                ..Table::default()
            };
            left.tables.insert(*family, table);
        }
        left
    }
}

/// One table of what is there.
#[derive(Clone, Copy)]
struct ThereTable<'a> {
    version: &'a Table,
    left: Option<&'a Table>,
}

impl<'a> ThereTable<'a> {
    fn sets(self) -> impl Iterator<Item = (&'a String, &'a Set)> {
        self.left.into_iter().chain([self.version]).flat_map(|table| &table.sets)
    }

    fn chains(self) -> impl Iterator<Item = (&'a String, &'a Chain)> {
        self.left.into_iter().chain([self.version]).flat_map(|table| &table.chains)
    }

    fn set(self, name: &str) -> Option<&'a Set> {
        self.version.sets.get(name).or_else(|| self.left?.sets.get(name))
    }

    fn chain(self, name: &str) -> Option<&'a Chain> {
        self.version.chains.get(name).or_else(|| self.left?.chains.get(name))
    }
}

/// The transaction that leads from what is there to the goal. `None` if it takes more than this module can say; then nft
/// has to read the script.
pub fn switch(there: There<'_>, goal: &Ruleset) -> Option<Batch> {
    if !there.version.tables.keys().eq(goal.tables.keys()) {
        return None;
    }
    let mut batch = Batch::default();
    for (family, goal) in &goal.tables {
        table(&mut batch, *family, there.table(*family)?, goal)?;
    }
    batch.fits().then_some(batch)
}

/// The interfaces of pods that come, and which addresses go and come behind them. `known` are those that are in the sets
/// already. A pair of interface and address goes at once, since a pod made anew may have its predecessor's interface, and
/// must not send from that one's address; an interface that no longer leads to a pod is taken out at the next look, and what
/// comes from it is dropped until then.
#[must_use]
pub fn interfaces(batch: &mut Batch, goal: &Ruleset, known: &Behind, behind: &Behind) -> Option<()> {
    for (family, table) in &goal.tables {
        for set in FILLED.into_iter().filter(|set| table.sets.contains_key(*set)) {
            let (known, wanted) = (filling(set, *family, known), filling(set, *family, behind));
            let edit = |key: &Vec<Key>, comes| Edit {
                family: *family,
                set: set.to_owned(),
                key: key.clone(),
                verdict: None,
                comes,
            };
            for key in known.difference(&wanted).filter(|_| set == PODADDR) {
                // A look may have taken it out meanwhile.
                batch.ensure(TABLE, &edit(key, true))?;
                batch.element(TABLE, &edit(key, false))?;
            }
            for key in wanted.difference(&known) {
                batch.ensure(TABLE, &edit(key, true))?;
            }
        }
    }
    Some(())
}

fn table(batch: &mut Batch, family: Family, there: ThereTable<'_>, goal: &Table) -> Option<()> {
    let mut edits = Vec::new();
    let mut new_sets = Vec::new();
    for (name, set) in &goal.sets {
        match there.set(name) {
            None => {
                batch.set(TABLE, family, name, set)?;
                new_sets.push((name, set));
            }
            Some(seen) if (&seen.key, seen.map, seen.interval) != (&set.key, set.map, set.interval) => {
                return None;
            }
            Some(seen) if is_filled(name) || seen.elements == set.elements => {}
            Some(_) if set.interval => return None,
            Some(seen) => edits.extend(differences(family, name, seen, set)),
        }
    }
    // Chains before what leads to them: elements of maps, and rules.
    let mut new_rules = Vec::new();
    for (name, chain) in &goal.chains {
        match there.chain(name) {
            None if chain.hook.is_some() => return None,
            None => batch.new_chain(TABLE, family, name, chain),
            Some(seen) if seen.hook != chain.hook => return None,
            Some(seen) if seen.rules == chain.rules => continue,
            Some(_) => batch.flush_chain(TABLE, family, name),
        }
        new_rules.push((name, chain));
    }
    for (name, set) in new_sets {
        batch.elements(TABLE, family, name, &set.elements)?;
    }
    for edit in edits {
        batch.element(TABLE, &edit)?;
    }
    for (name, chain) in new_rules {
        for rule in &chain.rules {
            batch.rule(TABLE, family, name, rule)?;
        }
    }
    let markers = there.chains().map(|(name, _)| name).filter(|name| name.starts_with(MARKER_PREFIX));
    for name in markers.filter(|name| !goal.chains.contains_key(*name)) {
        batch.chain(TABLE, family, name, false);
    }
    Some(())
}

/// What goes from a set's elements, and then what comes.
fn differences(family: Family, name: &str, seen: &Set, goal: &Set) -> Vec<Edit> {
    let (seen, goal) = (elements(&seen.elements), elements(&goal.elements));
    let edit = |key: &Vec<Key>, verdict: &Option<Verdict>, comes| {
        let (set, key, verdict) = (name.to_owned(), key.clone(), verdict.clone());
        Edit { family, set, key, verdict, comes }
    };
    let gone = seen.iter().filter(|(key, verdict)| goal.get(*key) != Some(verdict));
    let come = goal.iter().filter(|(key, verdict)| seen.get(*key) != Some(verdict));
    let gone = gone.map(|(key, verdict)| edit(key, verdict, false));
    gone.chain(come.map(|(key, verdict)| edit(key, verdict, true))).collect()
}

fn elements(elements: &Elements) -> BTreeMap<Vec<Key>, Option<Verdict>> {
    match elements {
        Elements::Addrs(addrs) => addrs.iter().map(|addr| (vec![Key::Addr(*addr, *addr)], None)).collect(),
        Elements::General(elements) => elements.clone(),
    }
}
