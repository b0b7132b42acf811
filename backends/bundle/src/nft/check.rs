//! What the kernel demands of a ruleset as a whole: references that lead somewhere, types that fit, chains that end.

use super::{
    Elements, Family, Field, Key, KeyType, MARKER_PREFIX, Match, Outcome, PODADDR, PODIF, Ruleset, Set,
    Table, UNBOUND, Verdict,
};
use crate::limits;
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong with a ruleset as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("table {family} netpolc, `{object}`: {message}")]
pub struct CheckError {
    /// The family of the table.
    pub family: Family,
    /// The chain, set or map.
    pub object: String,
    /// What is wrong.
    pub message: String,
}

/// Checks references, types, loops and depth.
///
/// # Errors
/// The first thing found, in the order of families and names.
pub fn check(ruleset: &Ruleset) -> Result<(), CheckError> {
    for (family, table) in &ruleset.tables {
        check_table(table).map_err(|(object, message)| CheckError { family: *family, object, message })?;
    }
    Ok(())
}

type Finding = (String, String);

fn check_table(table: &Table) -> Result<(), Finding> {
    for (name, set) in &table.sets {
        check_set(table, set).map_err(|message| (name.clone(), message))?;
    }
    for (name, chain) in &table.chains {
        let fault = |message: String| (name.clone(), message);
        if name.starts_with(MARKER_PREFIX) && (chain.hook.is_some() || !chain.rules.is_empty()) {
            return Err(fault("a marker has rules or a hook".into()));
        }
        for rule in &chain.rules {
            for found in &rule.matches {
                match found {
                    Match::InSet(fields, set) => check_lookup(table, fields, set, false).map_err(fault)?,
                    Match::Unbound => check_types(table, &UNBOUND, PODADDR, false).map_err(fault)?,
                    _ => {}
                }
            }
            match &rule.outcome {
                Outcome::Verdict(verdict) => check_target(table, verdict).map_err(fault)?,
                Outcome::Vmap(fields, map) => check_lookup(table, fields, map, true).map_err(fault)?,
            }
            check_ports(rule).map_err(fault)?;
        }
    }
    Depth::new(table).check()
}

/// A rule that tests for a protocol without ports cannot read one: nft loads it, then fails to list it.
fn check_ports(rule: &super::Rule) -> Result<(), String> {
    let portless =
        |m: &Match| matches!(m, Match::L4Proto(number) if !matches!(number, 6 | 17 | 33 | 132 | 136));
    let in_match = |m: &Match| matches!(m, Match::InSet(fields, _) if fields.contains(&Field::Dport));
    let in_outcome = matches!(&rule.outcome, Outcome::Vmap(fields, _) if fields.contains(&Field::Dport));
    if rule.matches.iter().any(portless) && (in_outcome || rule.matches.iter().any(in_match)) {
        return Err("a rule for a protocol without ports reads a port".into());
    }
    Ok(())
}

fn check_lookup(table: &Table, fields: &[Field], name: &str, map: bool) -> Result<(), String> {
    // What the loader fills can be foreseen for nothing else.
    if fields.contains(&Field::Iifname) && (fields, name) != (&[Field::Iifname], PODIF) {
        return Err(format!("`{name}` is asked for an interface"));
    }
    check_types(table, fields, name, map)
}

fn check_types(table: &Table, fields: &[Field], name: &str, map: bool) -> Result<(), String> {
    let set = table.sets.get(name).ok_or_else(|| format!("`{name}` is not declared"))?;
    if set.map != map {
        return Err(format!("`{name}` is {}", if set.map { "a map" } else { "no map" }));
    }
    let types: Vec<KeyType> = fields.iter().map(field_type).collect();
    if types != set.key {
        return Err(format!("the key of `{name}` has another type"));
    }
    Ok(())
}

fn field_type(field: &Field) -> KeyType {
    match field {
        Field::Saddr | Field::Daddr | Field::SaddrPrefix(_) | Field::DaddrPrefix(_) => KeyType::Addr,
        Field::L4Proto => KeyType::Proto,
        Field::Dport => KeyType::Service,
        Field::Iifname => KeyType::Ifname,
    }
}

fn target(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}

fn check_target(table: &Table, verdict: &Verdict) -> Result<(), String> {
    let Some(name) = target(verdict) else { return Ok(()) };
    let chain = table.chains.get(name).ok_or_else(|| format!("chain `{name}` is not declared"))?;
    if chain.hook.is_some() || name.starts_with(MARKER_PREFIX) {
        return Err(format!("chain `{name}` cannot be jumped to"));
    }
    Ok(())
}

fn check_set(table: &Table, set: &Set) -> Result<(), String> {
    let Elements::General(elements) = &set.elements else { return Ok(()) };
    // Many elements lead to few chains: each is looked up once.
    let targets: BTreeSet<&Verdict> = elements.values().flatten().collect();
    for verdict in targets {
        check_target(table, verdict)?;
    }
    if set.interval && set.key.len() == 1 {
        let mut ranges = elements.keys().filter_map(|key| key.first()).map(range);
        let mut last = ranges.next();
        for next in ranges {
            if last.is_some_and(|(_, end)| next.0 <= end) {
                return Err("ranges overlap".into());
            }
            last = Some(next);
        }
    }
    Ok(())
}

fn range(key: &Key) -> (u128, u128) {
    match key {
        Key::Addr(lo, hi) => (*lo, *hi),
        Key::Service(lo, hi) => (u128::from(*lo), u128::from(*hi)),
        Key::Proto(number) => (u128::from(*number), u128::from(*number)),
        // Names have no order that matters; two are never equal, for they are keys.
        Key::Ifname(_) => (u128::MAX, 0),
    }
}

/// The depth of chains. A chain's height is the number of chains on the longest way that begins at it.
struct Depth<'a> {
    table: &'a Table,
    /// For each map the chains that its elements lead to.
    maps: BTreeMap<&'a str, BTreeSet<&'a str>>,
    heights: BTreeMap<&'a str, usize>,
}

impl<'a> Depth<'a> {
    fn new(table: &'a Table) -> Depth<'a> {
        let targets = |set: &'a Set| match &set.elements {
            Elements::General(elements) => elements.values().flatten().filter_map(target).collect(),
            Elements::Addrs(_) => BTreeSet::new(),
        };
        let maps = table.sets.iter().filter(|(_, set)| set.map);
        let maps = maps.map(|(name, set)| (name.as_str(), targets(set))).collect();
        Depth { table, maps, heights: BTreeMap::new() }
    }

    fn check(mut self) -> Result<(), Finding> {
        for name in self.table.chains.keys() {
            self.height(name, 1)?;
        }
        Ok(())
    }

    /// The height of a chain that is the `depth`th of its way. The recursion ends at the depth that the kernel allows,
    /// so a loop ends there too.
    fn height(&mut self, name: &'a str, depth: usize) -> Result<usize, Finding> {
        let known = self.heights.get(name).copied();
        if depth.saturating_add(known.unwrap_or(1)) > limits::CHAIN_DEPTH + 1 {
            let message = format!("a loop, or more than {} chains in a row", limits::CHAIN_DEPTH);
            return Err((name.to_owned(), message));
        }
        if let Some(height) = known {
            return Ok(height);
        }
        let mut below: BTreeSet<&'a str> = BTreeSet::new();
        for rule in self.table.chains.get(name).map(|chain| chain.rules.as_slice()).unwrap_or_default() {
            match &rule.outcome {
                Outcome::Verdict(verdict) => below.extend(target(verdict)),
                Outcome::Vmap(_, map) => below.extend(self.maps.get(map.as_str()).into_iter().flatten()),
            }
        }
        let mut height = 1;
        for next in below {
            height = height.max(1 + self.height(next, depth + 1)?);
        }
        self.heights.insert(name, height);
        Ok(height)
    }
}
