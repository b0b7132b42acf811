//! The sets that a script leaves empty and the loader fills.

use netpolc_bundle::nft::{Family, Key, PODIF, in_family};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
    let key = |(interface, addr)| {
        let bits = match addr {
            IpAddr::V4(addr) => u128::from(u32::from(addr)),
            IpAddr::V6(addr) => u128::from(addr),
        };
        vec![name(interface), Key::Addr(bits, bits)]
    };
    of_family.map(key).collect()
}

/// An element of such a set as nft reads it.
pub fn text(family: Family, key: &[Key]) -> String {
    let field = |key: &Key| match (key, family) {
        (Key::Ifname(name), _) => format!("\"{name}\""),
        (Key::Addr(bits, _), Family::Ip) => Ipv4Addr::from(*bits as u32).to_string(),
        (Key::Addr(bits, _), Family::Ip6) => Ipv6Addr::from(*bits).to_string(),
        (Key::Proto(number), _) => number.to_string(),
        (Key::Service(port, _), _) => port.to_string(),
    };
    key.iter().map(field).collect::<Vec<_>>().join(" . ")
}
