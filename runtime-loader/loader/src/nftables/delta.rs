//! The switch from one of our versions to another, as what differs between them.
//!
//! What [`super::plan::switch`] says of names and generations holds here too. But here it is known what is in the kernel
//! without a look, since this process has put it there; so only new sets and chains are told, and those that the versions
//! share stay as they are, with their counters. If another hand has been there meanwhile, that is found at the next look,
//! as it would have been without the switch.

use crate::batch::Batch;
use crate::nftables::filled::{Behind, filling};
use netpolc_bundle::nft::{
    Edit, Elements, FILLED, Family, Key, MARKER_PREFIX, Ruleset, Set, TABLE, Table, Verdict, is_filled,
};
use std::collections::BTreeMap;

/// The transaction that leads from what is there to the goal. `None` if it takes more than this module can say; then nft
/// has to read the script.
pub fn switch(there: &Ruleset, goal: &Ruleset) -> Option<Batch> {
    if !there.tables.keys().eq(goal.tables.keys()) {
        return None;
    }
    let mut batch = Batch::default();
    for (family, goal) in &goal.tables {
        table(&mut batch, *family, there.tables.get(family)?, goal)?;
    }
    batch.fits().then_some(batch)
}

/// The interfaces of pods that come, and their addresses. `known` are those that are in the sets already. What is gone is
/// taken out at the next look.
#[must_use]
pub fn interfaces(batch: &mut Batch, goal: &Ruleset, known: &Behind, behind: &Behind) -> Option<()> {
    for (family, table) in &goal.tables {
        for set in FILLED.into_iter().filter(|set| table.sets.contains_key(*set)) {
            let known = filling(set, *family, known);
            for key in filling(set, *family, behind).difference(&known).cloned() {
                let edit = Edit { family: *family, set: set.to_owned(), key, verdict: None, comes: true };
                batch.ensure(TABLE, &edit)?;
            }
        }
    }
    Some(())
}

fn table(batch: &mut Batch, family: Family, there: &Table, goal: &Table) -> Option<()> {
    let mut edits = Vec::new();
    let mut new_sets = Vec::new();
    for (name, set) in &goal.sets {
        match there.sets.get(name) {
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
        match there.chains.get(name) {
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
    for name in old_markers(there, goal) {
        batch.chain(TABLE, family, name, false);
    }
    Some(())
}

fn old_markers<'a>(there: &'a Table, goal: &'a Table) -> impl Iterator<Item = &'a String> {
    there.chains.keys().filter(|name| name.starts_with(MARKER_PREFIX) && !goal.chains.contains_key(*name))
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

/// What is there after [`switch`] beside the goal: what the goal does not use, until a look clears it up.
pub fn left(there: &Ruleset, goal: &Ruleset) -> Ruleset {
    let mut left = there.clone();
    for (family, table) in &mut left.tables {
        let Some(goal) = goal.tables.get(family) else { continue };
        let markers: Vec<String> = old_markers(table, goal).cloned().collect();
        table.chains.retain(|name, _| !goal.chains.contains_key(name) && !markers.contains(name));
        table.sets.retain(|name, _| !goal.sets.contains_key(name));
    }
    left
}

/// The goal with what is left beside it.
pub fn union(goal: &Ruleset, left: &Ruleset) -> Ruleset {
    let mut union = goal.clone();
    for (family, table) in &mut union.tables {
        if let Some(left) = left.tables.get(family) {
            let chains = left.chains.iter().map(|(name, chain)| (name.clone(), chain.clone()));
            table.chains.extend(chains);
            table.sets.extend(left.sets.iter().map(|(name, set)| (name.clone(), set.clone())));
        }
    }
    union
}
