//! The inputs for `ipset restore` and for the restore programs.
//!
//! Everything that a family's rules become, they become in one text, with `--noflush`: chains that the text declares are
//! emptied and filled, chains that are no longer wanted are deleted, the jumps from the built-in chains are put in front.
//! Each table of the text is one step of the kernel (the compiler's module `emit` says why), `filter` first.
//!
//! The text that takes a family back declares the chains of both versions, so that it can be loaded whatever was done, and
//! then deletes those of the new one.

use super::observe::{HALF_PREFIX, Observed, Scan};
use super::passed;
use netpolc_bundle::Version;
use netpolc_bundle::ipt::{Family, PODIF, Ruleset, Set, Table, Texts, is_interface, marker, with_lines};
use std::collections::{BTreeMap, BTreeSet};

/// The set that a set with wrong elements is swapped with.
const REPAIR: &str = "NETPOLC-REPAIR";

/// What is wanted.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields' names say it")]
pub struct Wanted<'a> {
    pub texts: Texts<'a>,
    pub ruleset: &'a Ruleset,
    pub version: Version,
    pub interfaces: BTreeSet<String>,
    /// The families that this kernel has.
    pub families: Vec<Family>,
    /// The version of IPv4's half, where only that can be enforced.
    pub half: Option<Version>,
}

impl Wanted<'_> {
    fn text(&self, family: Family) -> &str {
        match family {
            Family::V4 => self.texts.v4,
            Family::V6 => self.texts.v6,
        }
    }

    /// The names of the chains of a table.
    fn chains(&self, family: Family, table: Table) -> BTreeSet<&str> {
        let chains = self.ruleset.tables.get(&(family, table)).into_iter().flatten();
        let mut names: BTreeSet<&str> = chains.map(|(name, _)| name.as_str()).collect();
        if !self.families.contains(&family) {
            names.clear();
        }
        names
    }

    /// The sets of the families that this kernel has.
    pub fn sets(&self) -> impl Iterator<Item = (&String, &Set)> {
        self.ruleset.sets.iter().filter(|(_, set)| self.families.contains(&set.family))
    }

    fn has_podif(&self, family: Family) -> bool {
        self.chains(family, Table::Mangle).contains(PODIF)
    }

    /// The families whose rules know other interfaces than they should, or do something else about what comes from them.
    pub fn other_interfaces(&self, seen: &Observed) -> Vec<Family> {
        let audit = passed::audits(self.ruleset);
        let other = |family: &Family| {
            self.has_podif(*family)
                && (seen.interfaces(*family).as_ref() != Some(&self.interfaces)
                    || !seen.podif(*family).into_iter().flatten().all(|rule| passed::takes(rule, audit)))
        };
        self.families.iter().copied().filter(other).collect()
    }
}

/// The interfaces that can stand in a rule; others cannot be a pod's.
pub fn interfaces(names: &BTreeSet<String>) -> BTreeSet<String> {
    names.iter().filter(|name| is_interface(name)).cloned().collect()
}

/// The switch of a family to the goal's version.
pub fn switch(wanted: &Wanted<'_>, seen: &Observed, family: Family) -> String {
    let mut text = wanted.text(family).to_owned();
    for table in Table::ALL {
        let keep = wanted.chains(family, table);
        let empty = Scan::default();
        let scan = seen.scans.get(&(family, table)).unwrap_or(&empty);
        let mut lines = Vec::new();
        if table == Table::Mangle && wanted.has_podif(family) {
            lines = podif_rules(&wanted.interfaces, passed::audits(wanted.ruleset));
        }
        lines.extend(ways(table, scan, keep.contains(table.entry())));
        let half = wanted.half.filter(|_| table == Table::Filter).map(half_marker);
        lines.extend(half.iter().map(|name| format!(":{name} - [0:0]")));
        let stale = scan.chains.iter().map(String::as_str);
        lines.extend(deleted(stale.filter(|name| !keep.contains(name) && half.as_deref() != Some(name))));
        text = match with_lines(&text, table, &[], &lines) {
            Some(text) => text,
            // The artifact has no such table.
            None if lines.is_empty() => text,
            None => text + &section(table, &lines),
        };
    }
    text
}

/// A text without the lines about some chains of its tables: they stay as they are, since only chains that a text declares
/// are emptied.
pub fn without(text: &str, same: &dyn Fn(Table, &str) -> bool) -> String {
    let mut table = None;
    let keep = |line: &&str| {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.to_string() == name);
        }
        let chain = match line.strip_prefix(':') {
            Some(declared) => declared.split(' ').next(),
            None => line.strip_prefix("-A ").and_then(|rule| rule.split(' ').next()),
        };
        !table.zip(chain).is_some_and(|(table, chain)| same(table, chain))
    };
    text.lines().filter(keep).flat_map(|line| [line, "\n"]).collect()
}

fn half_marker(version: Version) -> String {
    marker(version).replacen(netpolc_bundle::ipt::MARKER_PREFIX, HALF_PREFIX, 1)
}

/// Makes the jump to our entry the first rule of the built-in chain, or takes it out; rules of other hands that lead to our
/// chains go, since a chain that a rule leads to cannot be deleted.
fn ways(table: Table, scan: &Scan, wanted: bool) -> Vec<String> {
    let (built_in, entry) = (table.built_in(), table.entry());
    let mut lines: Vec<String> = scan.strays.iter().map(|rule| format!("-D {rule}")).collect();
    if wanted && scan.first && scan.jumps == 1 {
        return lines;
    }
    lines.extend((0..scan.jumps).map(|_| format!("-D {built_in} -j {entry}")));
    lines.extend(wanted.then(|| format!("-I {built_in} 1 -j {entry}")));
    lines
}

/// Empties chains, then deletes them: rules of some may lead to others.
fn deleted<'a>(chains: impl Iterator<Item = &'a str>) -> Vec<String> {
    let chains: Vec<&str> = chains.collect();
    let verb = |verb: &'static str| chains.iter().map(move |name| format!("{verb} {name}"));
    verb("-F").chain(verb("-X")).collect()
}

fn section(table: Table, lines: &[String]) -> String {
    format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"))
}

/// Back from the switch of a family to what was seen before it.
pub fn undo(wanted: &Wanted<'_>, before: &Observed, family: Family) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let empty = Scan::default();
        let scan = before.scans.get(&(family, table)).unwrap_or(&empty);
        let half = wanted.half.filter(|_| table == Table::Filter).map(half_marker);
        let mut new = wanted.chains(family, table);
        new.extend(half.as_deref());
        let mut lines: Vec<String> = scan.chains.iter().map(|name| format!(":{name} - [0:0]")).collect();
        let added: Vec<&str> = new.into_iter().filter(|name| !scan.chains.contains(*name)).collect();
        lines.extend(added.iter().map(|name| format!(":{name} - [0:0]")));
        lines.extend(scan.rules.iter().cloned());
        if scan.jumps == 0 && !added.is_empty() {
            // If this rule is not there, the switch has not been at this table, and nothing of this text takes effect.
            lines.push(format!("-D {} -j {}", table.built_in(), table.entry()));
        }
        lines.extend(deleted(added.into_iter()));
        if !lines.is_empty() {
            text.push_str(&section(table, &lines));
        }
    }
    text
}

/// Gives a family's chain of interfaces these rules, in one step.
pub fn podif(wanted: &Wanted<'_>, interfaces: &BTreeSet<String>) -> String {
    let mut lines = vec![format!(":{PODIF} - [0:0]")];
    lines.extend(podif_rules(interfaces, passed::audits(wanted.ruleset)));
    section(Table::Mangle, &lines)
}

/// The rules of the chain of interfaces. In audit mode they return, as the goal's own rules do.
pub fn podif_rules(interfaces: &BTreeSet<String>, audit: bool) -> Vec<String> {
    let target = passed::target(audit);
    interfaces.iter().map(|name| format!("-A {PODIF} -i {name} {target}")).collect()
}

/// Deletes the chains of a family that the goal does not have; empty if there are none.
pub fn clean(wanted: &Wanted<'_>, seen: &Observed, family: Family) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let keep = wanted.chains(family, table);
        let half = wanted.half.map(half_marker);
        let chains = seen.scans.get(&(family, table)).into_iter().flat_map(|scan| &scan.chains);
        let stale = chains.map(String::as_str);
        let lines = deleted(stale.filter(|name| !keep.contains(name) && half.as_deref() != Some(name)));
        if !lines.is_empty() {
            text.push_str(&section(table, &lines));
        }
    }
    text
}

/// Takes out everything of ours of a family; empty if there is nothing.
pub fn remove(text: &str) -> String {
    let mut out = String::new();
    for table in Table::ALL {
        let scan = Scan::of(text, table);
        let mut lines = ways(table, &scan, false);
        lines.extend(deleted(scan.chains.iter().map(String::as_str)));
        if !lines.is_empty() {
            out.push_str(&section(table, &lines));
        }
    }
    out
}

/// What makes the sets of the goal that are not as they should be; empty if all are. No rule in force can mean anything
/// by a set that is new, and one that is there with other elements has been changed by another hand: rules that name it
/// mean what its name says. It is swapped with one that is right, in one step.
pub fn sets(wanted: &Wanted<'_>, seen: &Observed) -> String {
    let unknown = BTreeMap::new();
    let there = seen.sets.as_ref().unwrap_or(&unknown);
    let mut fresh = BTreeSet::new();
    let mut wrong = BTreeSet::new();
    for (name, set) in wanted.sets() {
        if there.get(name) == Some(set) {
            continue;
        }
        let kind = format!("{} family {}", set.kind, set.family);
        let list = if seen.set_names.get(name) == Some(&kind) { &mut wrong } else { &mut fresh };
        list.insert(name.as_str());
    }
    let mut text = String::new();
    let mut of: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for line in wanted.texts.sets.lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(verb), Some(name), Some(rest)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if fresh.contains(name) {
            // A set of this name and another type can only be made anew.
            if verb == "create" && seen.set_names.contains_key(name) {
                text.push_str(&format!("destroy {name}\n"));
            }
            text.push_str(line);
            text.push('\n');
        } else if wrong.contains(name) {
            of.entry(name).or_default().push((verb, rest));
        }
    }
    if !of.is_empty() && seen.set_names.contains_key(REPAIR) {
        text.push_str(&format!("destroy {REPAIR}\n"));
    }
    for (name, lines) in of {
        lines.iter().for_each(|(verb, rest)| text.push_str(&format!("{verb} {REPAIR} {rest}\n")));
        text.push_str(&format!("swap {REPAIR} {name}\ndestroy {REPAIR}\n"));
    }
    text
}

/// Our sets that the goal does not have.
pub fn stale_sets(wanted: &Wanted<'_>, names: &BTreeMap<String, String>) -> Vec<String> {
    let keep: BTreeSet<&String> = wanted.sets().map(|(name, _)| name).collect();
    names.keys().filter(|name| !keep.contains(name)).cloned().collect()
}
