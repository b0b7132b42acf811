//! The transactions.
//!
//! A switch of versions is one transaction of the kernel: the script flushes the table's rules and adds its own. The
//! kernel keeps two generations of rules; a packet reads which one is current when it enters the hook, and follows the
//! rules of that generation to its end (`nft_do_chain`, `net/netfilter/nf_tables_core.c`). Not so with sets: an element
//! is looked up in the generation that is current at that moment. So a packet in flight during the switch follows old
//! rules, and must find the old sets whole. They are: names of chains and sets carry a hash of their content, so those
//! of the old version and of the new live side by side, and what really changes is the one rule in the base chain.
//!
//! What only the old version used is deleted in a second transaction, after the switch: maps first, since their elements
//! hold chains, then chains, then sets. If that fails, garbage stays that no packet meets, and the next run takes it
//! out.
//!
//! If another hand has left objects that cannot be mended in place (a set of our name with another type, an object of a
//! kind that we do not know), the table is deleted and made anew, still in one transaction. A packet that is in flight
//! then follows old rules while the old maps are empty already, so it may be judged as if nobody isolated its pod: under
//! full load about one new connection in a hundred thousand got through. That is why only tampered tables are mended so.

use super::filled::{Behind, filling};
use super::observe::{Observed, View};
use crate::batch::Batch;
use netpolc_bundle::nft::{FILLED, Family, MARKER_PREFIX, Ruleset, TABLE, Table, element_text, is_filled};
use std::fmt::Write as _;

/// What is wanted.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields' names say it")]
pub struct Goal<'a> {
    pub script: &'a str,
    pub ruleset: &'a Ruleset,
    pub interfaces: &'a Behind,
}

/// Appends a line. Writing into a string cannot fail.
macro_rules! line {
    ($text:expr, $($arg:tt)*) => {{ let _ = writeln!($text, $($arg)*); }};
}

/// The switch to the goal's version beside what is in force.
pub fn switch(goal: &Goal<'_>, seen: &Observed) -> String {
    let mut text = String::new();
    for (family, view) in &seen.tables {
        match goal.ruleset.tables.get(family) {
            None => line!(text, "flush table {family} {TABLE}"),
            Some(table) => flush_changed(&mut text, *family, table, view),
        }
    }
    text.push_str(goal.script);
    text.push('\n');
    for (family, view) in &seen.tables {
        let Some(table) = goal.ruleset.tables.get(family) else { continue };
        for name in view.names.chains.iter().filter(|name| is_old_marker(name, table)) {
            line!(text, "delete chain {family} {TABLE} {name}");
        }
    }
    text.push_str(&interfaces(goal, seen));
    text
}

fn is_old_marker(name: &str, table: &Table) -> bool {
    name.starts_with(MARKER_PREFIX) && !table.chains.contains_key(name)
}

/// Empties the sets and maps that have other elements than the script will give them; it fills them again.
fn flush_changed(text: &mut String, family: Family, table: &Table, view: &View) {
    for (name, set) in &table.sets {
        let there = view.names.sets.contains(name) || view.names.maps.contains(name);
        let seen = view.table.as_ref().ok().and_then(|table| table.sets.get(name));
        let same = seen.is_some_and(|seen| is_filled(name) || seen.elements == set.elements);
        if there && !same {
            line!(text, "flush {} {family} {TABLE} {name}", if set.map { "map" } else { "set" });
        }
    }
}

/// What brings the sets of pods' interfaces from what is seen to the goal; empty if they are as they should be.
pub fn interfaces(goal: &Goal<'_>, seen: &Observed) -> String {
    let mut script = String::new();
    for (family, table) in &goal.ruleset.tables {
        for set in FILLED.into_iter().filter(|set| table.sets.contains_key(*set)) {
            let old = seen.tables.get(family).and_then(|view| view.filling(set)).unwrap_or_default();
            let new = filling(set, *family, goal.interfaces);
            for (verb, keys) in [("delete", old.difference(&new)), ("add", new.difference(&old))] {
                let keys: Vec<String> = keys.map(|key| element_text(*family, key)).collect();
                if !keys.is_empty() {
                    line!(script, "{verb} element {family} {TABLE} {set} {{ {} }}", keys.join(", "));
                }
            }
        }
    }
    script
}

/// Whether something of a name that the script uses is in the way: of another type, or no longer what it was made as.
pub fn conflict(goal: &Goal<'_>, seen: &Observed) -> bool {
    goal.ruleset.tables.iter().any(|(family, table)| {
        let Some(Ok(seen)) = seen.tables.get(family).map(|view| view.table.as_ref()) else { return false };
        let sets = table.sets.iter().any(|(name, set)| {
            let other = |seen: &netpolc_bundle::nft::Set| {
                (&seen.key, seen.map, seen.interval) != (&set.key, set.map, set.interval)
            };
            seen.sets.get(name).is_some_and(other)
        });
        let chains = table
            .chains
            .iter()
            .any(|(name, chain)| seen.chains.get(name).is_some_and(|seen| seen.hook != chain.hook));
        sets || chains
    })
}

/// The goal's version in tables made anew.
pub fn rebuild(goal: &Goal<'_>, seen: &Observed) -> String {
    let mut text = remove(seen.tables.keys());
    text.push_str(goal.script);
    text.push('\n');
    text.push_str(&interfaces(goal, &Observed::default()));
    text
}

/// Back to what was seen before, in tables made anew.
pub fn restore(before: &Observed, now: &Observed) -> String {
    let mut text = remove(now.tables.keys());
    for view in before.tables.values() {
        text.push_str(&view.text);
        text.push('\n');
    }
    text
}

/// Our tables of these families, and nothing else.
pub fn remove<'a>(families: impl Iterator<Item = &'a Family>) -> String {
    let mut text = String::new();
    for family in families {
        line!(text, "delete table {family} {TABLE}");
    }
    text
}

/// What the goal does not have of one table.
struct Leftovers<'a> {
    chains: Vec<&'a String>,
    maps: Vec<&'a String>,
    sets: Vec<&'a String>,
}

impl<'a> Leftovers<'a> {
    fn of(goal: &Table, view: &'a View) -> Leftovers<'a> {
        let kept = |name: &str, map: bool| goal.sets.get(name).is_some_and(|set| set.map == map);
        Leftovers {
            chains: view.names.chains.iter().filter(|name| !goal.chains.contains_key(*name)).collect(),
            maps: view.names.maps.iter().filter(|name| !kept(name, true)).collect(),
            sets: view.names.sets.iter().filter(|name| !kept(name, false)).collect(),
        }
    }
}

/// Deletes what the goal does not have; empty if there is nothing.
pub fn clean(goal: &Ruleset, seen: &Observed) -> String {
    let mut text = String::new();
    for (family, view) in &seen.tables {
        let Some(table) = goal.tables.get(family) else {
            line!(text, "delete table {family} {TABLE}");
            continue;
        };
        let Leftovers { chains, maps, sets } = Leftovers::of(table, view);
        chains.iter().for_each(|name| line!(text, "flush chain {family} {TABLE} {name}"));
        maps.iter().for_each(|name| line!(text, "delete map {family} {TABLE} {name}"));
        chains.iter().for_each(|name| line!(text, "delete chain {family} {TABLE} {name}"));
        sets.iter().for_each(|name| line!(text, "delete set {family} {TABLE} {name}"));
    }
    text
}

/// The same as a transaction of our own, which does not wait for what it deletes to be freed. `None` if it takes more than
/// that: a table that the goal does not have.
pub fn clean_batch(goal: &Ruleset, seen: &Observed) -> Option<Batch> {
    let mut batch = Batch::default();
    for (family, view) in &seen.tables {
        let Leftovers { chains, maps, sets } = Leftovers::of(goal.tables.get(family)?, view);
        chains.iter().for_each(|name| batch.flush_chain(TABLE, *family, name));
        maps.iter().for_each(|name| batch.delete_set(TABLE, *family, name));
        chains.iter().for_each(|name| batch.chain(TABLE, *family, name, false));
        sets.iter().for_each(|name| batch.delete_set(TABLE, *family, name));
    }
    batch.fits().then_some(batch)
}
