//! The addresses, ports and protocols that a table names: where its answers may change.

use netpolc_bundle::nft::run::mask;
use netpolc_bundle::nft::{Chain, Elements, Family, Field, Key, Match, Outcome, Rule, Set, Table, Verdict};
use netpolc_ir::ports::{Protocol, Transport};
use netpolc_ir::proof::{Bounds, Constants};
use std::collections::{BTreeMap, BTreeSet};

/// All lookups of a table: fields and set.
fn lookups(table: &Table) -> impl Iterator<Item = (&[Field], &Set)> {
    let rules = table.chains.values().flat_map(|c| &c.rules);
    rules.flat_map(|rule: &Rule| {
        let sets = rule.matches.iter().filter_map(|m| match m {
            Match::InSet(fields, set) => Some((fields.as_slice(), set)),
            _ => None,
        });
        let map = match &rule.outcome {
            Outcome::Vmap(fields, map) => Some((fields.as_slice(), map)),
            Outcome::Verdict(_) => None,
        };
        sets.chain(map).filter_map(|(fields, name)| Some((fields, table.sets.get(name)?)))
    })
}

/// How a lookup reads the address in a place of its key: whole, or cut to a prefix length.
fn prefix_of(field: &Field) -> Option<Option<u8>> {
    match field {
        Field::Saddr | Field::Daddr => Some(None),
        Field::SaddrPrefix(len) | Field::DaddrPrefix(len) => Some(Some(*len)),
        Field::L4Proto | Field::Dport | Field::Iifname => None,
    }
}

pub(super) fn addresses(table: &Table, family: Family) -> Constants {
    let mut constants = Constants::default();
    let mut seen = BTreeSet::new();
    for (fields, set) in lookups(table) {
        let ways: Vec<Option<Option<u8>>> = fields.iter().map(prefix_of).collect();
        let both_ends = matches!(fields, [Field::Saddr, Field::Daddr] | [Field::Daddr, Field::Saddr]);
        if !seen.insert((std::ptr::from_ref(set), ways.clone(), both_ends)) {
            continue;
        }
        match &set.elements {
            Elements::Addrs(addrs) if ways == [Some(None)] => constants.sets.push(addrs.clone()),
            Elements::Addrs(addrs) => {
                if let [Some(Some(len))] = ways.as_slice() {
                    addrs.iter().for_each(|a| prefix(&mut constants, family, *a, *len));
                }
            }
            Elements::General(elements) => general(&mut constants, family, &ways, both_ends, elements),
        }
    }
    constants
}

/// What stands with an address in an element: its place, the other keys, and what it leads to in a map.
type Beside<'a> = (usize, Vec<&'a Key>, &'a Option<Verdict>);

fn general(
    constants: &mut Constants,
    family: Family,
    ways: &[Option<Option<u8>>],
    both_ends: bool,
    elements: &BTreeMap<Vec<Key>, Option<Verdict>>,
) {
    // Addresses that stand with the same other keys, and in a map lead to the same verdict, may share an atom; others may
    // not.
    let mut alike: BTreeMap<Beside<'_>, Vec<u128>> = BTreeMap::new();
    for (keys, verdict) in elements {
        // `a . a` says something about a packet from an address to itself only, which is compared apart.
        if let [Key::Addr(a, b), Key::Addr(c, d)] = keys.as_slice()
            && both_ends
            && a == b
            && c == d
            && a == c
        {
            continue;
        }
        for (at, (key, way)) in keys.iter().zip(ways).enumerate() {
            let Key::Addr(lo, hi) = key else { continue };
            match way {
                Some(Some(len)) => prefix(constants, family, *lo, *len),
                Some(None) if lo == hi => {
                    let others = keys.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, key)| key);
                    alike.entry((at, others.collect(), verdict)).or_default().push(*lo);
                }
                _ => {
                    constants.ranges.insert((*lo, *hi));
                }
            }
        }
    }
    let sets: BTreeSet<Vec<u128>> = alike.into_values().collect();
    constants.sets.extend(sets);
}

fn prefix(constants: &mut Constants, family: Family, base: u128, len: u8) {
    let mask = mask(family, len);
    // A base with bits beyond the mask is never equal to a masked address: such an element is dead.
    if base & mask == base {
        constants.ranges.insert((base, base | (mask ^ self::mask_all(family))));
    }
}

fn mask_all(family: Family) -> u128 {
    mask(family, 128)
}

pub(super) fn ports(table: &Table, bounds: &mut Bounds) {
    table.chains.values().for_each(|chain| chain_ports(table, chain, bounds));
}

/// What the rules of one chain name.
pub(super) fn chain_ports(table: &Table, chain: &Chain, bounds: &mut Bounds) {
    for rule in &chain.rules {
        let matched = rule.matches.iter().find_map(|m| match m {
            Match::L4Proto(number) => Some(*number),
            _ => None,
        });
        matched.into_iter().for_each(|number| protocol(number, bounds));
        let sets = rule.matches.iter().filter_map(|m| match m {
            Match::InSet(_, set) => Some(set),
            _ => None,
        });
        let map = match &rule.outcome {
            Outcome::Vmap(_, map) => Some(map),
            Outcome::Verdict(_) => None,
        };
        for set in sets.chain(map).filter_map(|name| table.sets.get(name)) {
            if let Elements::General(elements) = &set.elements {
                elements.keys().for_each(|keys| element_ports(keys, matched, bounds));
            }
        }
    }
}

/// The bounds of an element's ports, in the protocol that the element names, or else that the rule matches, or else all.
fn element_ports(keys: &[Key], matched: Option<u8>, bounds: &mut Bounds) {
    let named = keys.iter().find_map(|key| match key {
        Key::Proto(number) => Some(*number),
        _ => None,
    });
    named.into_iter().for_each(|number| protocol(number, bounds));
    for key in keys {
        if let Key::Service(lo, hi) = key {
            let fits = |t: &&Transport| named.or(matched).is_none_or(|number| t.number() == number);
            Transport::ALL.iter().filter(fits).for_each(|t| bounds.add_ports(*t, *lo, *hi));
        }
    }
}

fn protocol(number: u8, bounds: &mut Bounds) {
    if matches!(Protocol::from_number(number), Protocol::Other(_)) {
        bounds.protocols.insert(number);
    }
}
