//! What must hold of a ruleset as a whole: references that lead somewhere, matches in their place, chains that end.

use super::{Chains, Family, MARKER_PREFIX, Match, PODIF, Rule, Ruleset, Table, Target};
use crate::limits;
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong with a ruleset as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("family {family}, table {table}, `{chain}`: {message}")]
pub struct CheckError {
    /// The family.
    pub family: Family,
    /// The table.
    pub table: Table,
    /// The chain.
    pub chain: String,
    /// What is wrong.
    pub message: String,
}

/// Checks references, places of matches, loops and depth.
///
/// # Errors
/// The first thing found, in the order of families, tables and names.
pub fn check(ruleset: &Ruleset) -> Result<(), CheckError> {
    for (&(family, table), chains) in &ruleset.tables {
        let fault =
            |chain: &str, message: String| CheckError { family, table, chain: chain.to_owned(), message };
        if !chains.is_empty() && !chains.contains_key(table.entry()) {
            return Err(fault(table.entry(), "is missing".into()));
        }
        for (name, rules) in chains {
            for rule in rules {
                check_rule(ruleset, chains, (family, table), name, rule).map_err(|m| fault(name, m))?;
            }
            if name.starts_with(MARKER_PREFIX) && !rules.is_empty() {
                return Err(fault(name, "a marker has rules".into()));
            }
        }
        Depth { chains, heights: BTreeMap::new() }.check().map_err(|(chain, m)| fault(&chain, m))?;
    }
    Ok(())
}

fn check_rule(
    ruleset: &Ruleset,
    chains: &Chains,
    (family, table): (Family, Table),
    chain: &str,
    rule: &Rule,
) -> Result<(), String> {
    if rule.target.chain() == Some(PODIF) && table != Table::Mangle {
        return Err(format!("leads to `{PODIF}`, which the loader fills in mangle alone"));
    }
    if chain == PODIF
        && !matches!((rule.matches.as_slice(), &rule.target), ([Match::Interface(_)], Target::Drop))
    {
        return Err("does more than to drop what comes from an interface".into());
    }
    for found in &rule.matches {
        match found {
            Match::Interface(_) if chain != PODIF => return Err("looks at an interface".into()),
            Match::ReversePathFails | Match::NotLocal if table != Table::Mangle => {
                return Err("looks at routes where no route was looked up for".into());
            }
            Match::InSet(_, name) => match ruleset.sets.get(name) {
                None => return Err(format!("the set `{name}` is not there")),
                Some(set) if set.family != family => {
                    return Err(format!("the set `{name}` is of the other family"));
                }
                Some(_) => {}
            },
            _ => {}
        }
    }
    match rule.target.chain() {
        Some(target) if !chains.contains_key(target) => Err(format!("the chain `{target}` is not there")),
        _ => Ok(()),
    }
}

/// The depth of chains. A chain's height is the number of chains on the longest way that begins at it.
struct Depth<'a> {
    chains: &'a Chains,
    heights: BTreeMap<&'a str, usize>,
}

impl<'a> Depth<'a> {
    fn check(mut self) -> Result<(), (String, String)> {
        self.chains.keys().try_for_each(|name| self.height(name, 1).map(drop))
    }

    /// The height of a chain that is the `depth`th of its way. The recursion ends at the depth that is allowed, so a loop
    /// ends there too.
    fn height(&mut self, name: &'a str, depth: usize) -> Result<usize, (String, String)> {
        let known = self.heights.get(name).copied();
        if depth.saturating_add(known.unwrap_or(1)) > limits::IPT_CHAIN_DEPTH + 1 {
            let message = format!("a loop, or more than {} chains in a row", limits::IPT_CHAIN_DEPTH);
            return Err((name.to_owned(), message));
        }
        if let Some(height) = known {
            return Ok(height);
        }
        let rules = self.chains.get(name).map(Vec::as_slice).unwrap_or_default();
        let below: BTreeSet<&'a str> = rules.iter().filter_map(|rule| rule.target.chain()).collect();
        let mut height = 1;
        for next in below {
            height = height.max(1 + self.height(next, depth + 1)?);
        }
        self.heights.insert(name, height);
        Ok(height)
    }
}
