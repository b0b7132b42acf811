//! Small damage to a node's rules: every mutation is one step away from the rules, as a fault of the compiler or a
//! careless hand would be.

use netpolc_bundle::nft::{
    Chain, Elements, Family, Field, Key, Match, Outcome, Rule, Ruleset, Set, Table, Verdict,
};
use std::collections::BTreeSet;

/// Damaged rules.
#[derive(Debug, Clone)]
pub struct Mutation {
    /// What was done: one of few words.
    pub kind: &'static str,
    /// To what, for people.
    pub what: String,
    /// The family of the table that is damaged.
    pub family: Family,
    /// The damaged rules.
    pub ruleset: Ruleset,
}

/// All mutations of rules. Names stay as they are, though they no longer say what the objects hold.
pub fn mutations(ruleset: &Ruleset) -> Vec<Mutation> {
    let mut found = Vec::new();
    for (family, table) in &ruleset.tables {
        let mut add = |kind, what: String, table: Table| {
            let mut ruleset = ruleset.clone();
            ruleset.tables.insert(*family, table);
            found.push(Mutation { kind, what: format!("{family} {what}"), family: *family, ruleset });
        };
        let deny = table.chains.keys().find(|name| is_deny(name)).map(String::as_str);
        for (name, chain) in &table.chains {
            for (kind, what, changed) in of_chain(*family, chain, deny) {
                let mut table = table.clone();
                table.chains.insert(name.clone(), changed);
                add(kind, format!("chain {name}: {what}"), table);
            }
        }
        let addresses: BTreeSet<u128> = table.sets.values().flat_map(addresses).collect();
        for (name, set) in &table.sets {
            for (kind, what, changed) in of_set(*family, set, &addresses, deny) {
                let mut table = table.clone();
                table.sets.insert(name.clone(), changed);
                add(kind, format!("set {name}: {what}"), table);
            }
        }
    }
    found
}

/// Whether a chain of this name drops what no policy allows.
fn is_deny(name: &str) -> bool {
    name.starts_with("deny_")
}

/// A kind of mutation, what it was done to, and the result.
type Step<T> = (&'static str, String, T);

fn of_chain(family: Family, chain: &Chain, deny: Option<&str>) -> Vec<Step<Chain>> {
    let mut found = Vec::new();
    if chain.hook.is_some() {
        found.push(("remove hook", String::new(), Chain { hook: None, ..chain.clone() }));
    }
    for (i, rule) in chain.rules.iter().enumerate() {
        let mut dropped = chain.clone();
        dropped.rules.remove(i);
        found.push(("drop rule", format!("{i}"), dropped));
        if i + 1 < chain.rules.len() {
            let mut swapped = chain.clone();
            swapped.rules.swap(i, i + 1);
            found.push(("swap rules", format!("{i}"), swapped));
        }
        for (kind, what, rule) in of_rule(family, rule, deny) {
            let mut changed = chain.clone();
            changed.rules[i] = rule;
            found.push((kind, format!("{i}: {what}"), changed));
        }
    }
    found
}

fn of_rule(family: Family, rule: &Rule, deny: Option<&str>) -> Vec<Step<Rule>> {
    let mut found = Vec::new();
    match &rule.outcome {
        Outcome::Verdict(verdict) => {
            for (kind, other) in other_verdicts(verdict, deny) {
                let what = format!("{other:?}");
                found.push((kind, what, Rule { outcome: Outcome::Verdict(other), ..rule.clone() }));
            }
        }
        Outcome::Vmap(fields, map) => {
            for fields in other_fields(family, fields) {
                let what = format!("{fields:?}");
                found.push((
                    "change field",
                    what,
                    Rule { outcome: Outcome::Vmap(fields, map.clone()), ..rule.clone() },
                ));
            }
        }
    }
    for (i, condition) in rule.matches.iter().enumerate() {
        let mut fewer = rule.clone();
        fewer.matches.remove(i);
        found.push(("drop match", format!("{condition:?}"), fewer));
        let others = match condition {
            Match::InSet(fields, set) => {
                other_fields(family, fields).into_iter().map(|f| Match::InSet(f, set.clone())).collect()
            }
            Match::L4Proto(number) => other_protocols(*number).into_iter().map(Match::L4Proto).collect(),
            _ => Vec::new(),
        };
        for other in others {
            let what = format!("{other:?}");
            let mut changed = rule.clone();
            changed.matches[i] = other;
            found.push(("change match", what, changed));
        }
    }
    found
}

/// Verdicts that this one is easily taken for. `deny` is a chain that drops, if there is one.
fn other_verdicts(verdict: &Verdict, deny: Option<&str>) -> Vec<(&'static str, Verdict)> {
    let deny = |kind| deny.map(|deny| (kind, Verdict::Goto(deny.to_owned())));
    match verdict {
        Verdict::Accept => vec![("drop for accept", Verdict::Drop), ("return for accept", Verdict::Return)],
        Verdict::Drop => vec![("accept for drop", Verdict::Accept), ("return for drop", Verdict::Return)],
        Verdict::Return => {
            [("accept for return", Verdict::Accept)].into_iter().chain(deny("deny for return")).collect()
        }
        Verdict::Goto(chain) if is_deny(chain) => vec![
            ("return for deny", Verdict::Return),
            ("drop for deny", Verdict::Drop),
            ("jump for goto deny", Verdict::Jump(chain.clone())),
        ],
        Verdict::Goto(chain) => {
            let others =
                [("jump for goto", Verdict::Jump(chain.clone())), ("return for goto", Verdict::Return)];
            others.into_iter().chain(deny("deny for goto")).collect()
        }
        Verdict::Jump(chain) => vec![
            ("goto for jump", Verdict::Goto(chain.clone())),
            ("return for jump", Verdict::Return),
            ("accept for jump", Verdict::Accept),
        ],
    }
}

/// Source for destination, and prefixes that are one bit longer or shorter.
fn other_fields(family: Family, fields: &[Field]) -> Vec<Vec<Field>> {
    let mut found = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let lengths = |len: u8| {
            let longer = (u32::from(len) + 1 < family.bits()).then(|| len + 1);
            longer.into_iter().chain((len > 1).then(|| len - 1)).collect::<Vec<u8>>()
        };
        let others = match field {
            Field::Saddr => vec![Field::Daddr],
            Field::Daddr => vec![Field::Saddr],
            Field::SaddrPrefix(len) => lengths(*len).into_iter().map(Field::SaddrPrefix).collect(),
            Field::DaddrPrefix(len) => lengths(*len).into_iter().map(Field::DaddrPrefix).collect(),
            Field::L4Proto | Field::Dport | Field::Iifname => Vec::new(),
        };
        for other in others {
            let mut changed = fields.to_vec();
            changed[i] = other;
            found.push(changed);
        }
    }
    found
}

fn other_protocols(number: u8) -> Vec<u8> {
    [6, 17, 132, 47].into_iter().filter(|n| *n != number).take(2).collect()
}

fn of_set(family: Family, set: &Set, addresses: &BTreeSet<u128>, deny: Option<&str>) -> Vec<Step<Set>> {
    let mut found = Vec::new();
    match &set.elements {
        Elements::Addrs(list) => of_addresses(family, set, list, addresses, &mut found),
        Elements::General(map) => {
            for (keys, verdict) in map {
                let what = format!("{keys:?}");
                let mut fewer = map.clone();
                fewer.remove(keys);
                found.push(("drop element", what.clone(), with(set, fewer)));
                for (kind, other) in verdict.iter().flat_map(|verdict| other_verdicts(verdict, deny)) {
                    let mut changed = map.clone();
                    changed.insert(keys.clone(), Some(other.clone()));
                    found.push((kind, format!("{what}: {other:?}"), with(set, changed)));
                }
                for (kind, other) in other_keys(family, set.interval, keys) {
                    let mut changed = map.clone();
                    changed.remove(keys);
                    if changed.keys().any(|k| overlap(k, &other)) {
                        continue;
                    }
                    changed.insert(other.clone(), verdict.clone());
                    found.push((kind, format!("{what}: {other:?}"), with(set, changed)));
                }
            }
            for ((a, of_a), (b, of_b)) in map.iter().zip(map.iter().skip(1)) {
                if of_a != of_b {
                    let mut swapped = map.clone();
                    swapped.insert(a.clone(), of_b.clone());
                    swapped.insert(b.clone(), of_a.clone());
                    found.push(("swap targets", format!("{a:?} and {b:?}"), with(set, swapped)));
                }
            }
            if let Some((stray, verdict)) = stray_pair(map, addresses) {
                let mut more = map.clone();
                more.insert(stray.clone(), verdict);
                found.push(("add element", format!("{stray:?}"), with(set, more)));
            }
        }
    }
    found
}

fn with(set: &Set, map: std::collections::BTreeMap<Vec<Key>, Option<Verdict>>) -> Set {
    Set { elements: Elements::General(map), ..set.clone() }
}

fn of_addresses(family: Family, set: &Set, list: &[u128], all: &BTreeSet<u128>, found: &mut Vec<Step<Set>>) {
    let mut add = |kind, what: u128, list: Vec<u128>| {
        found.push((kind, format!("{what:#x}"), Set { elements: Elements::Addrs(list), ..set.clone() }));
    };
    for (i, addr) in list.iter().enumerate() {
        let mut fewer = list.to_vec();
        fewer.remove(i);
        add("drop element", *addr, fewer);
    }
    let max = if family == Family::Ip { u128::from(u32::MAX) } else { u128::MAX };
    // A neighbour of a member, and an address that other sets know.
    let beside = list.iter().filter(|a| **a < max).map(|a| a + 1).find(|a| list.binary_search(a).is_err());
    let known = all.iter().copied().find(|a| list.binary_search(a).is_err());
    for stray in beside.into_iter().chain(known) {
        let mut more = list.to_vec();
        more.push(stray);
        more.sort_unstable();
        add("add element", stray, more);
    }
}

fn stray_pair(
    map: &std::collections::BTreeMap<Vec<Key>, Option<Verdict>>,
    addresses: &BTreeSet<u128>,
) -> Option<(Vec<Key>, Option<Verdict>)> {
    let (keys, verdict) = map.iter().next()?;
    let (Key::Addr(lo, hi), true) =
        (keys.last()?, keys.iter().all(|k| matches!(k, Key::Addr(a, b) if a == b)))
    else {
        return None;
    };
    let stray = addresses.iter().copied().chain([lo ^ 1]).find(|a| {
        let mut changed = keys.clone();
        changed.pop();
        changed.push(Key::Addr(*a, *a));
        a != lo && lo == hi && !map.contains_key(&changed)
    })?;
    let mut changed = keys.clone();
    changed.pop();
    changed.push(Key::Addr(stray, stray));
    Some((changed, verdict.clone()))
}

/// Keys that are off by one.
fn other_keys(family: Family, interval: bool, keys: &[Key]) -> Vec<(&'static str, Vec<Key>)> {
    let mut found = Vec::new();
    let max = if family == Family::Ip { u128::from(u32::MAX) } else { u128::MAX };
    for (i, key) in keys.iter().enumerate() {
        let others: Vec<(&'static str, Key)> = match key {
            Key::Addr(lo, hi) => {
                bounds(*lo, *hi, max, interval).into_iter().map(|(k, a, b)| (k, Key::Addr(a, b))).collect()
            }
            Key::Service(lo, hi) => {
                let near = bounds(u128::from(*lo), u128::from(*hi), u128::from(u16::MAX), interval);
                near.into_iter().map(|(k, a, b)| (k, Key::Service(a as u16, b as u16))).collect()
            }
            Key::Proto(number) => {
                other_protocols(*number).into_iter().map(|n| ("change protocol", Key::Proto(n))).collect()
            }
            Key::Ifname(_) => Vec::new(),
        };
        for (kind, other) in others {
            let mut changed = keys.to_vec();
            changed[i] = other;
            found.push((kind, changed));
        }
    }
    found
}

/// Bounds moved by one; single values stay single where there are no ranges.
fn bounds(lo: u128, hi: u128, max: u128, interval: bool) -> Vec<(&'static str, u128, u128)> {
    let mut found = Vec::new();
    if !interval {
        if lo < max {
            found.push(("change value", lo + 1, lo + 1));
        }
        if lo > 0 {
            found.push(("change value", lo - 1, lo - 1));
        }
        return found;
    }
    if lo > 0 {
        found.push(("widen", lo - 1, hi));
    }
    if hi < max {
        found.push(("widen", lo, hi + 1));
    }
    if lo < hi {
        found.push(("narrow", lo + 1, hi));
        found.push(("narrow", lo, hi - 1));
    }
    found
}

fn overlap(a: &[Key], b: &[Key]) -> bool {
    a.iter().zip(b).all(|(a, b)| match (a, b) {
        (Key::Addr(a, b), Key::Addr(c, d)) => a <= d && c <= b,
        (Key::Service(a, b), Key::Service(c, d)) => a <= d && c <= b,
        (a, b) => a == b,
    })
}

/// The addresses of a set's elements.
fn addresses(set: &Set) -> Vec<u128> {
    match &set.elements {
        Elements::Addrs(list) => list.clone(),
        Elements::General(map) => {
            let keys = map.keys().flatten();
            keys.filter_map(|k| if let Key::Addr(lo, _) = k { Some(*lo) } else { None }).collect()
        }
    }
}
