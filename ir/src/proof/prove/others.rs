//! Packets that open no connection, that are forged, or that come by another way; a pod's packets to itself; and those
//! between addresses that no pod of the node has.

use super::{CellKey, FamilyProof, Witness};
use crate::addr::{Family, bits};
use crate::bitset::BitSet;
use crate::ports::Protocol;
use crate::proof::{Artifact, Conn, Kind, Packet};
use crate::unit::{Direction, Flow, Verdict};
use std::net::IpAddr;

impl FamilyProof<'_> {
    /// Packets that open no connection, and forged ones, between all local addresses and all atoms. What opens no connection
    /// is dropped where it touches an isolated pod, at either end.
    pub(super) fn kinds(&mut self, artifact: &mut dyn Artifact) -> Result<(), Box<Witness>> {
        let (everyone, nobody) = (self.everyone.clone(), BitSet::empty(self.atoms.len()));
        let isolated = |this: &Self, atom: usize| {
            let group = this.atoms.group(atom).filter(|_| this.atoms.local(atom));
            group.map_or(Some(false), |g| this.reference.isolated(g))
        };
        let of = |wanted: Option<bool>| -> BitSet {
            (0..self.atoms.len()).map(|atom| (atom, isolated(self, atom) == wanted)).collect()
        };
        let (dropped, either) = (of(Some(true)), of(None));
        let strays: Vec<[BitSet; 2]> = (self.locals.iter())
            .map(|local| match self.reference.isolated(local.group) {
                Some(true) => [nobody.clone(), nobody.clone()],
                Some(false) => [everyone.minus(&dropped), either.clone()],
                None => [nobody.clone(), everyone.minus(&dropped)],
            })
            .collect();
        // Artifacts remember answers about one protocol and port, so all pods are asked about each in turn.
        for (kind, protocol) in kinds_of(self.family) {
            let port = u16::from(matches!(protocol, Protocol::Transport(_)));
            let cell = CellKey { protocol, port };
            for (local, [stray, leave]) in strays.iter().enumerate() {
                for direction in Direction::ALL {
                    let passes_all = matches!(kind, Kind::Established | Kind::NeighbourDiscovery);
                    let (expected, leave) = match direction {
                        _ if passes_all => (everyone.clone(), None),
                        _ if kind.spoofed() => (nobody.clone(), None),
                        // On the wrong interface, a source that lives on this node is forged.
                        Direction::Egress if kind.asymmetric() => (nobody.clone(), None),
                        Direction::Ingress if kind.asymmetric() => {
                            (stray.minus(&self.local_atoms), Some(leave.minus(&self.local_atoms)))
                        }
                        _ => (stray.clone(), Some(leave.clone())),
                    };
                    self.compare_kind(artifact, local, direction, kind, cell, expected, leave.as_ref())?;
                }
            }
        }
        Ok(())
    }

    /// An address that is neither an endpoint's nor this node's: packets between a pod and its node cross no rule.
    fn outside(&self) -> Option<IpAddr> {
        let free = |&i: &usize| {
            let addr = self.family.addr(self.atoms.representative(i));
            self.atoms.group(i).is_none() && !self.node_addrs.contains(&addr)
        };
        (0..self.atoms.len()).find(free).map(|i| self.family.addr(self.atoms.representative(i)))
    }

    /// Packets that no pod of this node sends or gets always pass, unless a pod of this node sends them after all.
    pub(super) fn strangers(
        &mut self,
        artifact: &mut dyn Artifact,
        cells: &[CellKey],
    ) -> Result<(), Box<Witness>> {
        let Some(outside) = self.outside() else { return Ok(()) };
        let mut leave = self.local_atoms.clone();
        leave.insert(self.atoms.atom(bits(outside)));
        for &cell in cells {
            for kind in self.kinds_between_strangers(cell.protocol) {
                let expected = Verdict::allow_if(!kind.spoofed());
                for direction in Direction::ALL {
                    let CellKey { protocol, port } = cell;
                    let asked =
                        artifact.permitted_kind(&self.atoms, outside, direction, kind, protocol, port);
                    let Some(mut actual) = asked else { return self.strangers_one_by_one(artifact, outside) };
                    self.proof.comparisons += self.atoms.len() as u64;
                    let found = match expected {
                        Verdict::Allow => {
                            actual.or_with(&leave);
                            self.everyone.first_difference(&actual)
                        }
                        Verdict::Deny => {
                            actual.remove_all(&leave);
                            self.neighbours(outside, direction).iter().for_each(|n| actual.remove_all(n));
                            actual.iter().next()
                        }
                    };
                    let Some(atom) = found else { continue };
                    let peer = self.family.addr(self.atoms.representative(atom));
                    let (src, dst) = match direction {
                        Direction::Ingress => (peer, outside),
                        Direction::Egress => (outside, peer),
                    };
                    let packet = kind.packet(Flow { src, dst, protocol, port });
                    let actual = Verdict::allow_if(expected == Verdict::Deny);
                    return Err(Box::new(Witness { packet, expected, actual }));
                }
            }
        }
        Ok(())
    }

    /// The atoms to which, or from which, an address is [`between_neighbours`]; `None` if there are none.
    pub(super) fn neighbours(&self, local: IpAddr, direction: Direction) -> Option<BitSet> {
        let between = |peer| match direction {
            Direction::Ingress => between_neighbours((peer, local)),
            Direction::Egress => between_neighbours((local, peer)),
        };
        let IpAddr::V6(addr) = local else { return None };
        let possible = addr.is_multicast() || addr.is_unicast_link_local();
        let atoms = || {
            let addr = |atom| self.family.addr(self.atoms.representative(atom));
            (0..self.atoms.len()).map(|atom| (atom, between(addr(atom)))).collect()
        };
        possible.then(atoms)
    }

    /// What is spoofed comes from a pod of this node, so there is none where no pod has an address.
    fn kinds_between_strangers(&self, protocol: Protocol) -> Vec<Kind> {
        let pods = !self.local_atoms.is_empty();
        let kinds = Kind::ALL.into_iter().filter(|k| k.is_of(protocol) && *k != Kind::NeighbourDiscovery);
        kinds.filter(|kind| pods || !kind.spoofed()).collect()
    }

    /// The same for an artifact that does not answer for all peers at once, on one port.
    fn strangers_one_by_one(
        &mut self,
        artifact: &mut dyn Artifact,
        outside: IpAddr,
    ) -> Result<(), Box<Witness>> {
        for atom in (0..self.atoms.len()).filter(|&i| !self.atoms.local(i)).collect::<Vec<usize>>() {
            let addr = self.family.addr(self.atoms.representative(atom));
            for (src, dst) in [(addr, outside), (outside, addr)] {
                for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
                    let flow = Flow { src, dst, protocol, port: 80 };
                    for kind in self.kinds_between_strangers(protocol) {
                        self.judge(artifact, kind.packet(flow), Verdict::allow_if(!kind.spoofed()))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Replies, errors, packets that open nothing, spoofed packets, the pod itself. Each pod with one address outside;
    /// one pod, on behalf of all, with every atom.
    pub(super) fn other_packets(&mut self, artifact: &mut dyn Artifact) -> Result<(), Box<Witness>> {
        let Some(outside) = self.outside() else { return Ok(()) };
        let locals: Vec<(IpAddr, usize)> = self.locals.iter().map(|l| (l.addr, l.group)).collect();
        // An artifact that answered for all peers at once has been asked about most of these already.
        let one_by_one = if !self.kinds_compared {
            locals.len()
        } else if self.is_first() {
            locals.len().min(1)
        } else {
            0
        };
        for &(addr, group) in &locals[..one_by_one] {
            self.others_between(artifact, (addr, group), (outside, None))?;
        }
        if self.kinds_compared || !self.is_first() {
            return Ok(());
        }
        let isolated = self.speakers.iter().find(|l| self.reference.isolated(l.1) == Some(true));
        let Some(&first) = isolated.or(self.speakers.first()) else { return Ok(()) };
        for atom in 0..self.atoms.len() {
            let peer = self.family.addr(self.atoms.representative(atom));
            let group = self.atoms.group(atom).filter(|_| self.atoms.local(atom));
            if !self.node_addrs.contains(&peer) {
                self.others_between(artifact, first, (peer, group))?;
            }
        }
        Ok(())
    }

    /// All packets that open no connection, in both directions. The peer has a group if it lives on this node.
    fn others_between(
        &mut self,
        artifact: &mut dyn Artifact,
        local: (IpAddr, usize),
        peer: (IpAddr, Option<usize>),
    ) -> Result<(), Box<Witness>> {
        let peer_isolated = peer.1.map_or(Some(false), |g| self.reference.isolated(g));
        let stray = match (self.reference.isolated(local.1), peer_isolated) {
            (Some(true), _) | (_, Some(true)) => Some(Verdict::Deny),
            (Some(false), Some(false)) => Some(Verdict::Allow),
            _ => None,
        };
        for (src, dst) in [(local.0, peer.0), (peer.0, local.0)] {
            let opening = |protocol| Packet::opening(Flow { src, dst, protocol, port: 1 });
            let [tcp, udp, sctp] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP].map(opening);
            self.judge(artifact, established(tcp), Verdict::Allow)?;
            self.judge(artifact, Packet { conn: Conn::Related, ..established(tcp) }, Verdict::Allow)?;
            let forged = self.atoms.local(self.atoms.atom(bits(src)));
            // Neighbour discovery that was routed is among these.
            let icmp = (self.family == Family::V6).then(|| opening(Protocol::ICMPV6));
            for packet in [tcp, udp, sctp].into_iter().chain(icmp) {
                for kind in spoofed(packet.flow.protocol) {
                    self.judge(artifact, kind.packet(packet.flow), Verdict::Deny)?;
                }
                self.asymmetric(artifact, packet)?;
                for kind in Kind::ALL.into_iter().filter(|k| is_stray(*k, packet.flow.protocol)) {
                    let expected = if kind.asymmetric() && forged { Some(Verdict::Deny) } else { stray };
                    if let Some(expected) = expected {
                        self.judge(artifact, kind.packet(packet.flow), expected)?;
                    }
                }
            }
            if self.family == Family::V6 {
                let flow = Flow { src, dst, protocol: Protocol::ICMPV6, port: 0 };
                self.judge(artifact, Kind::NeighbourDiscovery.packet(flow), Verdict::Allow)?;
            }
        }
        Ok(())
    }

    /// On the wrong interface, a source that lives on this node is forged; any other packet is judged as usual.
    fn asymmetric(&mut self, artifact: &mut dyn Artifact, packet: Packet) -> Result<(), Box<Witness>> {
        let forged = self.atoms.local(self.atoms.atom(bits(packet.flow.src)));
        let expected = Verdict::allow_if(!forged && self.passes(&packet.flow));
        self.judge(artifact, asymmetric(packet), expected)
    }

    /// What the policies of this node's pods say about one flow between two different pods or addresses.
    fn passes(&self, flow: &Flow) -> bool {
        let end = |addr: IpAddr| {
            let atom = self.atoms.atom(bits(addr));
            (self.atoms.group(atom), self.atoms.local(atom))
        };
        let permits = |subject: IpAddr, direction, peer: IpAddr| {
            let (Some(group), true) = end(subject) else { return true };
            let permitted = self.reference.permits(group, direction, flow.protocol, flow.port);
            permitted.is_none_or(|p| match end(peer).0 {
                Some(group) => p.groups.contains(group),
                None => p.unbound.contains(peer),
            })
        };
        permits(flow.src, Direction::Egress, flow.dst) && permits(flow.dst, Direction::Ingress, flow.src)
    }

    /// A pod reaches itself, from each of its addresses to each, on every port. What comes from outside on the wrong
    /// interface gets, on every port, what it would get on the right one; what claims to come from the pod is dropped.
    pub(super) fn itself(
        &mut self,
        artifact: &mut dyn Artifact,
        cells: &[CellKey],
    ) -> Result<(), Box<Witness>> {
        let mut pairs: Vec<(IpAddr, IpAddr)> = self.own.iter().map(|&(addr, _)| (addr, addr)).collect();
        for pod in &self.same_pod {
            let addrs = pod.iter().map(|&a| self.family.addr(a));
            pairs.extend(
                addrs.clone().flat_map(|a| addrs.clone().map(move |b| (a, b))).filter(|(a, b)| a != b),
            );
        }
        // The other parts have those that go to addresses of theirs.
        pairs.retain(|(_, dst)| self.looks.contains_key(dst));
        if let Some(outside) = self.outside().filter(|_| !self.kinds_compared) {
            let locals: Vec<IpAddr> = self.locals.iter().map(|l| l.addr).collect();
            for (local, &CellKey { protocol, port }) in
                locals.iter().flat_map(|a| cells.iter().map(move |c| (*a, c)))
            {
                for (src, dst) in [(outside, local), (local, outside)] {
                    let packet = Packet::opening(Flow { src, dst, protocol, port });
                    self.asymmetric(artifact, packet)?;
                    self.judge(artifact, Packet { spoofed: true, ..packet }, Verdict::Deny)?;
                }
            }
        }
        for flow in self.locals.iter().filter_map(|l| l.passes).collect::<Vec<Flow>>() {
            self.asymmetric(artifact, Packet::opening(flow))?;
        }
        for (addr, group) in self.own.clone() {
            if let Some(isolated) = self.reference.isolated(group) {
                let protocols = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
                let kinds = protocols.into_iter().flat_map(|p| Kind::ALL.map(|kind| (kind, p)));
                for (kind, protocol) in kinds.filter(|&(kind, p)| is_stray(kind, p) && !kind.asymmetric()) {
                    let flow = Flow { src: addr, dst: addr, protocol, port: 1 };
                    self.judge(artifact, kind.packet(flow), Verdict::allow_if(!isolated))?;
                }
            }
        }
        for (src, dst) in pairs {
            let looks = self.looks.get(&dst).cloned().unwrap_or_default();
            for &CellKey { protocol, port } in looks.iter().filter_map(|number| cells.get(number)) {
                let packet = Packet::opening(Flow { src, dst, protocol, port });
                self.judge(artifact, packet, Verdict::Allow)?;
                self.judge(artifact, asymmetric(packet), Verdict::Deny)?;
            }
            for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
                let elsewhere = Kind::ALL.into_iter().filter(|k| k.is_of(protocol) && k.asymmetric());
                for kind in elsewhere.chain(spoofed(protocol)) {
                    let flow = Flow { src, dst, protocol, port: 1 };
                    self.judge(artifact, kind.packet(flow), Verdict::Deny)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether somebody on a link speaks to all on it or to some, under an address of the link (RFC 4291, sections 2.5.6 and 2.7).
/// That may be for the node as well, and no rule of iptables tells who else gets it.
fn between_neighbours((src, dst): (IpAddr, IpAddr)) -> bool {
    matches!((src, dst), (IpAddr::V6(src), IpAddr::V6(dst)) if src.is_unicast_link_local() && dst.is_multicast())
}

/// The first addresses of stretches that [`between_neighbours`] tells apart.
pub(super) fn neighbour_bounds(family: Family) -> impl Iterator<Item = u128> {
    let v6: [u128; 3] = [0xfe80 << 112, 0xfec0 << 112, 0xff << 120];
    v6.into_iter().filter(move |_| family == Family::V6)
}

/// The kinds of packets that are asked about apart from those that open connections, each with the protocols that rules may
/// tell apart there.
fn kinds_of(family: Family) -> Vec<(Kind, Protocol)> {
    let protocols = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
    let asked = |kind: Kind, protocol: Protocol| match kind {
        // The first three are asked about on every port that matters.
        Kind::Opening | Kind::Asymmetric | Kind::Spoofed | Kind::NeighbourDiscovery => false,
        _ => kind.is_of(protocol),
    };
    let kinds = protocols.into_iter().flat_map(|p| Kind::ALL.map(|kind| (kind, p)));
    let mut kinds: Vec<(Kind, Protocol)> = kinds.filter(|&(kind, p)| asked(kind, p)).collect();
    if family == Family::V6 {
        let untracked = [Kind::Untracked, Kind::UntrackedAsymmetric, Kind::UntrackedSpoofed];
        kinds.extend(untracked.map(|kind| (kind, Protocol::ICMPV6)));
        kinds.push((Kind::NeighbourDiscovery, Protocol::ICMPV6));
    }
    kinds
}

/// Whether packets of a kind and protocol open no connection, and are not spoofed.
fn is_stray(kind: Kind, protocol: Protocol) -> bool {
    let strange = match kind.conn() {
        Conn::New => !kind.opens(),
        Conn::Untracked => kind != Kind::NeighbourDiscovery,
        Conn::Established | Conn::Related => false,
    };
    strange && !kind.spoofed() && kind.is_of(protocol)
}

/// The kinds of spoofed packets.
fn spoofed(protocol: Protocol) -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(move |kind| kind.spoofed() && kind.is_of(protocol))
}

fn asymmetric(packet: Packet) -> Packet {
    Packet { asymmetric: true, ..packet }
}

fn established(packet: Packet) -> Packet {
    Packet { conn: Conn::Established, opens: false, ..packet }
}
