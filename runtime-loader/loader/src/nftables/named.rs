//! What the rules of two versions name, for [`crate::witness`].

use crate::witness::{Candidates, Witness, witness};
use netpolc_bundle::Bundle;
use netpolc_bundle::nft::run::{Bases, passes};
use netpolc_bundle::nft::{Elements, Family, Key, Ruleset, Set, check};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A packet that the kernel's rules judge otherwise than the bundle's.
pub fn difference(bundle: &Bundle, wanted: &Ruleset, seen: &Ruleset) -> Option<Witness> {
    // Rules that lead in a circle would never end, but no kernel has such.
    check(seen).ok()?;
    let (of_wanted, of_seen) = (Bases::of(wanted), Bases::of(seen));
    let candidates = candidates(wanted, seen);
    witness(bundle, &candidates, &|p| passes(wanted, &of_wanted, p), &|p| passes(seen, &of_seen, p))
}

/// The addresses and ports in the sets of both; first those that only one of them has in a set.
fn candidates(wanted: &Ruleset, seen: &Ruleset) -> Candidates {
    let mut candidates = Candidates::default();
    let (old, new) = (keys(seen), keys(wanted));
    for (family, _, key) in old.symmetric_difference(&new).chain(&new).chain(&old) {
        match key {
            Key::Addr(lo, hi) => candidates.block(addr(*family, *lo), addr(*family, *hi)),
            Key::Service(lo, hi) => candidates.ports(*lo, *hi),
            Key::Proto(_) | Key::Ifname(_) => {}
        }
    }
    candidates
}

fn addr(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::Ip => Ipv4Addr::from(bits as u32).into(),
        Family::Ip6 => Ipv6Addr::from(bits).into(),
    }
}

/// The fields of all keys, with their family and the name of their set.
fn keys(ruleset: &Ruleset) -> BTreeSet<(Family, &str, Key)> {
    let sets = ruleset
        .tables
        .iter()
        .flat_map(|(family, table)| table.sets.iter().map(move |(name, set)| (*family, name.as_str(), set)));
    sets.flat_map(|(family, name, set)| fields(set).into_iter().map(move |key| (family, name, key))).collect()
}

fn fields(set: &Set) -> Vec<Key> {
    match &set.elements {
        Elements::Addrs(list) => list.iter().map(|bits| Key::Addr(*bits, *bits)).collect(),
        Elements::General(elements) => elements.keys().flatten().cloned().collect(),
    }
}
