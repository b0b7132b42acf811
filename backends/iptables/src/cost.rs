//! How many rules a packet meets.

use netpolc_bundle::ipt::{Chains, Family, PODIF, Rule, Ruleset, Table, Target};
use std::collections::BTreeMap;
use std::fmt;

/// The most rules that a packet of each family meets on its way through `mangle` and `filter`, our entries included. The
/// rules of [`PODIF`], one for each pod's interface, are not counted: only packets that came from elsewhere than their
/// source meet them, or have one of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorstCase {
    /// New packets of IPv4.
    pub v4: usize,
    /// New packets of IPv6.
    pub v6: usize,
    /// Packets of known connections, either family.
    pub established: usize,
}

impl fmt::Display for WorstCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorstCase { v4, v6, established } = self;
        write!(
            f,
            "at most {v4} rules for a new IPv4 packet, {v6} for IPv6, {established} for an established one"
        )
    }
}

/// Bounds the rules that packets meet. The bound is that of the longest way, whether or not some packet takes it.
pub fn worst_case(ruleset: &Ruleset) -> WorstCase {
    let all = |family: Family| -> usize {
        let tables = Table::ALL.into_iter().filter_map(|t| Some((t, ruleset.tables.get(&(family, t))?)));
        tables.map(|(table, chains)| Costs { chains, known: BTreeMap::new() }.chain(table.entry(), 0)).sum()
    };
    // The first rule of an entry lets packets of known connections return.
    let entries = ruleset.tables.iter().filter(|((family, _), _)| *family == Family::V4);
    let first = |(_, table): &(Family, Table), chains: &Chains| {
        let rules = chains.get(table.entry()).map(Vec::as_slice).unwrap_or_default();
        let returns = |r: &Rule| r.target == Target::Return;
        rules.iter().position(returns).map_or(rules.len(), |i| i + 1)
    };
    let established = entries.map(|(key, chains)| first(key, chains)).sum();
    WorstCase { v4: all(Family::V4), v6: all(Family::V6), established }
}

struct Costs<'a> {
    chains: &'a Chains,
    known: BTreeMap<&'a str, usize>,
}

/// Deeper than any ruleset that was checked.
const DEPTH: usize = 64;

impl<'a> Costs<'a> {
    /// The most rules that a packet meets in a chain and what it leads to.
    fn chain(&mut self, name: &'a str, depth: usize) -> usize {
        if let Some(known) = self.known.get(name) {
            return *known;
        }
        let rules = self.chains.get(name).filter(|_| name != PODIF && depth < DEPTH);
        // From the last rule to the first: what a packet meets from there on.
        let mut cost = 0;
        for rule in rules.map(Vec::as_slice).unwrap_or_default().iter().rev() {
            let missed = if rule.matches.is_empty() { 0 } else { cost };
            let matched = match &rule.target {
                Target::Return | Target::Drop => 0,
                Target::Goto(target) => self.chain(target, depth + 1),
                Target::Jump(target) => self.chain(target, depth + 1) + cost,
            };
            cost = 1 + missed.max(matched);
        }
        self.known.insert(name, cost);
        cost
    }
}
