//! What the rules of two versions name, for [`crate::witness`].

use crate::witness::{Candidates, Witness, witness};
use netpolc_bundle::Bundle;
use netpolc_bundle::ipt::run::Script;
use netpolc_bundle::ipt::{Family, Match, Prefix, Ruleset};
use std::collections::BTreeSet;

/// A packet that the kernel's rules judge otherwise than the bundle's. `seen` are the rules that packets meet, and whole
/// ([`super::observe::Observed::reached`]).
pub fn difference(bundle: &Bundle, wanted: &Ruleset, seen: &Ruleset) -> Option<Witness> {
    let (of_wanted, of_seen) = (Script::new(wanted), Script::new(seen));
    witness(bundle, &candidates(wanted, seen), &|packet| of_wanted.passes(&wanted.sets, packet), &|packet| {
        of_seen.passes(&seen.sets, packet)
    })
}

/// The addresses and ports of both; first those that only one of them names in a place.
fn candidates(wanted: &Ruleset, seen: &Ruleset) -> Candidates {
    let mut candidates = Candidates::default();
    let (old, new) = (names(seen), names(wanted));
    for (_, name) in old.symmetric_difference(&new).chain(&new).chain(&old) {
        match name {
            Name::Block(family, prefix) if prefix.len > 0 => {
                candidates.block(family.addr(prefix.base), family.addr(prefix.last(*family)));
            }
            Name::Block(..) => {}
            Name::Ports(lo, hi) => candidates.ports(*lo, *hi),
        }
    }
    candidates
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Block(Family, Prefix),
    Ports(u16, u16),
}

/// Blocks and ports, each with the chain or set that names it.
fn names(ruleset: &Ruleset) -> BTreeSet<(&str, Name)> {
    let mut names = BTreeSet::new();
    for (name, set) in &ruleset.sets {
        names.extend(set.elements.keys().map(|prefix| (name.as_str(), Name::Block(set.family, *prefix))));
    }
    for ((family, _), chains) in &ruleset.tables {
        for (chain, rules) in chains {
            for found in rules.iter().flat_map(|rule| &rule.matches) {
                let name = match found {
                    Match::Addr(_, prefix) => Name::Block(*family, *prefix),
                    Match::Port(lo, hi) => Name::Ports(*lo, *hi),
                    _ => continue,
                };
                names.insert((chain.as_str(), name));
            }
        }
    }
    names
}
