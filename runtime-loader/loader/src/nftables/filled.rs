//! The sets that a script leaves empty and the loader fills.

use netpolc_bundle::nft::run::bits;
use netpolc_bundle::nft::{Family, Key, PODIF, in_family};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The interfaces that lead to the node's pods, each with the addresses that packets from there may have.
pub type Behind = BTreeMap<String, BTreeSet<IpAddr>>;

/// What belongs into a set that the loader fills: interfaces, or interfaces with addresses.
pub fn filling(set: &str, family: Family, behind: &Behind) -> BTreeSet<Vec<Key>> {
    let name = |name: &String| Key::Ifname(name.clone());
    if set == PODIF {
        return behind.keys().map(|interface| vec![name(interface)]).collect();
    }
    let pairs = behind.iter().flat_map(|(interface, addrs)| addrs.iter().map(move |addr| (interface, *addr)));
    let of_family = pairs.filter(|(_, addr)| in_family(family, *addr));
    of_family.map(|(interface, addr)| vec![name(interface), Key::Addr(bits(addr), bits(addr))]).collect()
}
