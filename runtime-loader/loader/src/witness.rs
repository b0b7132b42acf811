//! A flow on which two sets of rules differ, so that drift can be seen for what it does.
//!
//! Both are asked about packets that open connections between a pod of this node and whoever the rules name, and the first
//! packet that they judge differently is the answer. That is a search and no proof: it looks at the addresses and ports where
//! rules may change their mind, and ends after [`EVALUATIONS`].

use netpolc_bundle::Bundle;
use netpolc_bundle::nft::run::Packet;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How often rules are asked in one search. One question takes about a microsecond.
pub const EVALUATIONS: usize = 200_000;

/// Most addresses, and most ports, that are tried. A quarter of a million pairs could not be asked in one search anyway.
const CANDIDATES: usize = 512;

const ICMP: u8 = 1;
const ICMP6: u8 = 58;

/// TCP, UDP, SCTP.
const WITH_PORTS: [(u8, &str); 3] = [(6, "TCP"), (17, "UDP"), (132, "SCTP")];

/// What is to be tried; earlier first.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    seen: BTreeSet<IpAddr>,
    seen_ports: BTreeSet<u16>,
}

impl Candidates {
    /// An address that rules name.
    pub fn address(&mut self, addr: IpAddr) {
        if self.addresses.len() < CANDIDATES && self.seen.insert(addr) {
            self.addresses.push(addr);
        }
    }

    /// The bounds of a block that rules name, and what lies beyond them.
    pub fn block(&mut self, first: IpAddr, last: IpAddr) {
        let before = step(first, false).filter(|_| first != last);
        let behind = step(last, true).filter(|_| first != last);
        [Some(first), Some(last), before, behind].into_iter().flatten().for_each(|addr| self.address(addr));
    }

    /// The bounds of ports that rules name, and what lies beyond them.
    pub fn ports(&mut self, first: u16, last: u16) {
        let bounds = [Some(first), Some(last), first.checked_sub(1), last.checked_add(1)];
        for port in bounds.into_iter().flatten() {
            if self.ports.len() < CANDIDATES && self.seen_ports.insert(port) {
                self.ports.push(port);
            }
        }
    }
}

fn step(addr: IpAddr, up: bool) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(addr) => {
            let bits = u32::from(addr);
            let next = if up { bits.checked_add(1) } else { bits.checked_sub(1) };
            next.map(|bits| Ipv4Addr::from(bits).into())
        }
        IpAddr::V6(addr) => {
            let bits = u128::from(addr);
            let next = if up { bits.checked_add(1) } else { bits.checked_sub(1) };
            next.map(|bits| Ipv6Addr::from(bits).into())
        }
    }
}

/// A packet that the kernel judges otherwise than the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    packet: Packet,
    /// Whether the kernel lets it pass; the bundle says the opposite.
    passes: bool,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet { src, dst, protocol, dport, .. } = self.packet;
        write!(f, "e.g. {src} -> {dst} ")?;
        match WITH_PORTS.iter().find(|(number, _)| *number == protocol) {
            Some((_, name)) => write!(f, "{dport}/{name}")?,
            None if protocol == ICMP => f.write_str("ICMP")?,
            None if protocol == ICMP6 => f.write_str("ICMPv6")?,
            None => write!(f, "protocol {protocol}")?,
        }
        f.write_str(match self.passes {
            true => ": the bundle denies it, the kernel lets it pass",
            false => ": the bundle lets it pass, the kernel denies it",
        })
    }
}

/// Looks for a packet on which the rules of the bundle and those in the kernel differ; both say whether it passes. What
/// crosses no rule (a node's packets to its own pods) is not asked about.
pub fn witness(
    bundle: &Bundle,
    candidates: &Candidates,
    wanted: &dyn Fn(&Packet) -> bool,
    kernel: &dyn Fn(&Packet) -> bool,
) -> Option<Witness> {
    let local: Vec<IpAddr> = bundle.bindings().ok()?.pods.into_iter().flat_map(|pod| pod.addresses).collect();
    let own = &bundle.manifest.node_addresses;
    let mut peers = candidates.clone();
    local.iter().for_each(|addr| peers.address(*addr));
    [Ipv4Addr::new(203, 0, 113, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()]
        .into_iter()
        .for_each(|addr| peers.address(addr));
    if peers.ports.is_empty() {
        peers.ports(1, 1);
    }
    peers.addresses.retain(|addr| !own.contains(addr) && !addr.is_loopback());
    let mut left = EVALUATIONS;
    // Along the diagonals, so that neither ports nor addresses are left out when the search ends early.
    for sum in 0..peers.addresses.len() + peers.ports.len() {
        for (at, port) in peers.ports.iter().enumerate().take(sum + 1) {
            let Some(peer) = peers.addresses.get(sum - at) else { continue };
            for pod in local.iter().filter(|pod| pod.is_ipv4() == peer.is_ipv4()) {
                for packet in packets(*pod, *peer, *port, at == 0) {
                    left = left.checked_sub(2)?;
                    let passes = kernel(&packet);
                    if wanted(&packet) != passes {
                        return Some(Witness { packet, passes });
                    }
                }
            }
        }
    }
    None
}

/// Packets between a pod and a peer, both ways; with those that have no port, once.
fn packets(pod: IpAddr, peer: IpAddr, port: u16, portless: bool) -> impl Iterator<Item = Packet> {
    let icmp = if pod.is_ipv4() { ICMP } else { ICMP6 };
    let protocols = WITH_PORTS.map(|(number, _)| (number, port)).into_iter();
    let protocols = protocols.chain(portless.then_some((icmp, 0)));
    protocols.flat_map(move |(protocol, port)| {
        [(peer, pod), (pod, peer)].map(|(src, dst)| Packet::opening(src, dst, protocol, port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpolc_bundle::{Artifacts, Bindings, LocalPod, Parts};

    fn bundle() -> Bundle {
        let script = "table ip netpolc {\n}\nflush table ip netpolc\n";
        let version = netpolc_bundle::nft::digest(&netpolc_bundle::nft::parse(script).unwrap());
        let marker = netpolc_bundle::nft::marker(version);
        let script = format!("{script}table ip netpolc {{\n\tchain {marker} {{\n\t}}\n}}\n");
        let pod = LocalPod { name: "shop/db".into(), addresses: vec!["10.0.0.1".parse().unwrap()] };
        Bundle::new(Parts {
            compiler: "test".into(),
            node: "alpha".into(),
            node_addresses: vec!["10.0.0.9".parse().unwrap()],
            artifacts: Artifacts { nftables: Some(script), ..Artifacts::default() },
            bindings: Bindings { pods: vec![pod] },
            ..Parts::default()
        })
        .unwrap()
    }

    #[test]
    fn the_first_difference_is_named() {
        let bundle = bundle();
        let mut candidates = Candidates::default();
        candidates.address("10.0.0.9".parse().unwrap());
        candidates.block("10.2.0.0".parse().unwrap(), "10.2.255.255".parse().unwrap());
        candidates.ports(3306, 3310);
        let beyond: IpAddr = "10.3.0.0".parse().unwrap();
        let denied = |packet: &Packet| packet.src != beyond || packet.dport != 3311 || packet.protocol != 17;
        let found = witness(&bundle, &candidates, &denied, &|_| true).unwrap().to_string();
        assert_eq!(
            found,
            "e.g. 10.3.0.0 -> 10.0.0.1 3311/UDP: the bundle denies it, the kernel lets it pass"
        );
        let found = witness(&bundle, &candidates, &|p| p.protocol == 1, &|_| false).unwrap().to_string();
        assert!(found.ends_with(" ICMP: the bundle lets it pass, the kernel denies it"), "{found}");
        // What is the same everywhere has no witness, and the node itself is not asked about.
        let node: IpAddr = "10.0.0.9".parse().unwrap();
        assert_eq!(witness(&bundle, &candidates, &|_| true, &|p| p.src != node && p.dst != node), None);
    }

    #[test]
    fn a_search_ends() {
        let asked = std::cell::Cell::new(0);
        let mut candidates = Candidates::default();
        (0..10_000u32).for_each(|n| candidates.address(Ipv4Addr::from(n << 8).into()));
        (0..10_000).for_each(|n| candidates.ports(n, n));
        let ask = |_: &Packet| {
            asked.set(asked.get() + 1);
            true
        };
        assert_eq!(witness(&bundle(), &candidates, &ask, &ask), None);
        assert_eq!(asked.get(), EVALUATIONS);
    }
}
