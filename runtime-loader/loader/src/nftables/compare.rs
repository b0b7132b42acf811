//! Two rulesets, object by object.

use super::observe::Observed;
use netpolc_bundle::nft::{MARKER_PREFIX, Ruleset, Table, is_filled};

/// What the kernel has otherwise than the bundle, one line for each object, sorted. Comments, the order of declarations
/// and the interfaces of pods do not count. The markers do: their name is the version.
pub fn differences(wanted: &Ruleset, seen: &Ruleset) -> Vec<String> {
    let mut lines = Vec::new();
    for (family, table) in &wanted.tables {
        match seen.tables.get(family) {
            None => lines.push(format!("table {family}: missing")),
            Some(seen) => {
                compare(table, seen, &mut |what| lines.push(format!("table {family}: {what}")));
            }
        }
    }
    let more = seen.tables.keys().filter(|family| !wanted.tables.contains_key(family));
    lines.extend(more.map(|family| format!("table {family}: not in the bundle")));
    lines.sort();
    lines
}

/// Whether all rules have the comments of the bundle's rules. Those of chains and sets do not count: the kernel keeps
/// the comment that a chain or set was made with (`nf_tables_updchain` and `nf_tables_newset`,
/// `net/netfilter/nf_tables_api.c`), while rules are made anew whenever a script is loaded.
pub fn same_comments(wanted: &Ruleset, seen: &Observed) -> bool {
    wanted.tables.iter().all(|(family, wanted)| {
        let Some(Ok(seen)) = seen.tables.get(family).map(|view| &view.table) else { return false };
        wanted.chains.iter().all(|(name, chain)| {
            let wanted = chain.rules.iter().map(|rule| &rule.comment);
            seen.chains.get(name).is_some_and(|seen| wanted.eq(seen.rules.iter().map(|rule| &rule.comment)))
        })
    })
}

fn compare(wanted: &Table, seen: &Table, report: &mut dyn FnMut(String)) {
    for (name, set) in &wanted.sets {
        match seen.sets.get(name) {
            None => report(format!("set {name}: missing")),
            Some(seen) if (&seen.key, seen.map, seen.interval) != (&set.key, set.map, set.interval) => {
                report(format!("set {name}: another type"));
            }
            Some(seen) if !is_filled(name) && seen.elements != set.elements => {
                let counts = (seen.elements.len(), set.elements.len());
                report(format!("set {name}: other elements ({} instead of {})", counts.0, counts.1));
            }
            Some(_) => {}
        }
    }
    for (name, chain) in &wanted.chains {
        match seen.chains.get(name) {
            None if name.starts_with(MARKER_PREFIX) => report(format!("marker {name}: missing")),
            None => report(format!("chain {name}: missing")),
            Some(seen) if seen.hook != chain.hook => report(format!("chain {name}: another hook")),
            Some(seen) => {
                let rules = |chain: &netpolc_bundle::nft::Chain| {
                    let parts = chain.rules.iter().map(|rule| {
                        let mut matches: Vec<String> =
                            rule.matches.iter().map(|m| format!("{m:?}")).collect();
                        matches.sort();
                        (matches, rule.counter, rule.outcome.clone())
                    });
                    parts.collect::<Vec<_>>()
                };
                if rules(seen) != rules(chain) {
                    let counts = (seen.rules.len(), chain.rules.len());
                    report(format!("chain {name}: other rules ({} instead of {})", counts.0, counts.1));
                }
            }
        }
    }
    for name in seen.sets.keys().filter(|name| !wanted.sets.contains_key(*name)) {
        report(format!("set {name}: not in the bundle"));
    }
    for name in seen.chains.keys().filter(|name| !wanted.chains.contains_key(*name)) {
        report(format!("chain {name}: not in the bundle"));
    }
}
