//! Two rulesets, object by object.

use super::observe::word;
use netpolc_bundle::ipt::{Chains, Family, MARKER_PREFIX, Match, PODIF, Rule, Ruleset, Target};

/// What the kernel has otherwise than the bundle, one line for each object, sorted. Comments and the interfaces of pods do
/// not count. The markers do: their name is the version.
pub fn differences(wanted: &Ruleset, seen: &Ruleset, families: &[Family]) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, set) in wanted.sets.iter().filter(|(_, set)| families.contains(&set.family)) {
        match seen.sets.get(name) {
            None => lines.push(format!("set {name}: missing")),
            Some(seen) if (seen.kind, seen.family) != (set.kind, set.family) => {
                lines.push(format!("set {name}: another type"));
            }
            Some(seen) if seen.elements != set.elements => {
                let counts = (seen.elements.len(), set.elements.len());
                lines.push(format!("set {name}: other elements ({} instead of {})", counts.0, counts.1));
            }
            Some(_) => {}
        }
    }
    let more = seen.sets.keys().filter(|name| !wanted.sets.contains_key(*name));
    lines.extend(more.map(|name| format!("set {name}: not in the bundle")));
    let nothing = Chains::new();
    for (&(family, table), chains) in
        wanted.tables.iter().filter(|((family, _), _)| families.contains(family))
    {
        let there = seen.tables.get(&(family, table)).unwrap_or(&nothing);
        compare(chains, there, &mut |what| lines.push(format!("family {}, {table}: {what}", word(family))));
    }
    lines.sort();
    lines
}

/// What counts of a rule; the order of its matches does not.
fn meaning(rule: &Rule) -> (Vec<&Match>, &Target) {
    let mut matches: Vec<&Match> = rule.matches.iter().collect();
    matches.sort();
    (matches, &rule.target)
}

fn compare(wanted: &Chains, seen: &Chains, report: &mut dyn FnMut(String)) {
    for (name, rules) in wanted {
        match seen.get(name) {
            None if name.starts_with(MARKER_PREFIX) => report(format!("marker {name}: missing")),
            None => report(format!("chain {name}: missing")),
            Some(_) if name == PODIF => {}
            Some(seen) if !rules.iter().map(meaning).eq(seen.iter().map(meaning)) => {
                report(format!("chain {name}: other rules ({} instead of {})", seen.len(), rules.len()));
            }
            Some(_) => {}
        }
    }
    for name in seen.keys().filter(|name| !wanted.contains_key(*name)) {
        if !name.starts_with(super::observe::HALF_PREFIX) {
            report(format!("chain {name}: not in the bundle"));
        }
    }
}

/// Whether all rules have the comments of the bundle's rules.
pub fn same_comments(wanted: &Ruleset, seen: &Ruleset, families: &[Family]) -> bool {
    let mut tables = wanted.tables.iter().filter(|((family, _), _)| families.contains(family));
    tables.all(|(key, wanted)| {
        let Some(seen) = seen.tables.get(key) else { return false };
        wanted.iter().filter(|(name, _)| *name != PODIF).all(|(name, rules)| {
            let comments = rules.iter().map(|rule| &rule.comment);
            seen.get(name).is_some_and(|seen| comments.eq(seen.iter().map(|rule| &rule.comment)))
        })
    })
}
