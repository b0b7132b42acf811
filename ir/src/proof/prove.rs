//! The comparison itself.

use super::{Artifact, Atoms, Bounds, Conn, Kind, Packet, Permitted, Reference};
use crate::addr::{Family, bits};
use crate::bitset::BitSet;
use crate::ports::{Protocol, Transport};
use crate::unit::{Direction, Flow, Verdict};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

/// One packet on which artifact and policies disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The packet.
    pub packet: Packet,
    /// What the policies say.
    pub expected: Verdict,
    /// What the artifact does.
    pub actual: Verdict,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: policies say {}, the artifact says {}", self.packet, self.expected, self.actual)
    }
}

/// What was compared. Figures are for people; that there is a `Proof` is what counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Proof {
    /// Addresses of this node's pods.
    pub local: u64,
    /// Atoms of both families.
    pub atoms: u64,
    /// Stretches of ports and protocols without ports.
    pub cells: u64,
    /// Pairs of a local address and an atom, in one direction and one cell, that were compared.
    pub comparisons: u64,
    /// Packets that were judged one by one.
    pub packets: u64,
}

impl std::ops::AddAssign for Proof {
    fn add_assign(&mut self, o: Proof) {
        self.local += o.local;
        self.atoms += o.atoms;
        self.cells += o.cells;
        self.comparisons += o.comparisons;
        self.packets += o.packets;
    }
}

/// Compares an artifact of a node with the policies.
///
/// # Errors
/// The first packet that is judged differently.
pub fn prove(
    reference: &dyn Reference,
    artifact: &mut dyn Artifact,
    node: &str,
) -> Result<Proof, Box<Witness>> {
    let mut total = Proof::default();
    for family in Family::ALL {
        total += FamilyProof::new(reference, artifact, node, family).run(artifact)?;
    }
    Ok(total)
}

/// A stretch of ports, or a protocol without ports, by its first packet.
#[derive(Clone, Copy)]
struct CellKey {
    protocol: Protocol,
    port: u16,
}

struct Local {
    addr: IpAddr,
    group: usize,
    /// Atoms about which nothing is compared: the address itself, its pod's other addresses, the node.
    apart: Vec<usize>,
    /// A flow from it that passes, to an address that is not of this node.
    passes: Option<Flow>,
}

struct FamilyProof<'a> {
    reference: &'a dyn Reference,
    family: Family,
    atoms: Atoms,
    locals: Vec<Local>,
    cells: Vec<CellKey>,
    /// Atoms of the reference's answers, by the answer's address (kept alive beside it).
    expanded: HashMap<*const Permitted, (Rc<Permitted>, BitSet)>,
    everyone: BitSet,
    local_atoms: BitSet,
    /// This node's own addresses.
    node_addrs: Vec<IpAddr>,
    /// The addresses of each pod of this node that has several.
    same_pod: Vec<Vec<u128>>,
    /// Whether the artifact answered for packets of other kinds for all peers at once.
    kinds_compared: bool,
    proof: Proof,
}

impl<'a> FamilyProof<'a> {
    fn new(
        reference: &'a dyn Reference,
        artifact: &dyn Artifact,
        node: &str,
        family: Family,
    ) -> FamilyProof<'a> {
        let ours = |a: &IpAddr| Family::of(*a) == family;
        let endpoints = reference.endpoints(node);
        let bound: Vec<(u128, usize, bool)> =
            endpoints.iter().filter(|e| ours(&e.0)).map(|e| (bits(e.0), e.1, e.2)).collect();
        let node_addrs: Vec<u128> =
            reference.node_addresses(node).iter().filter(|a| ours(a)).map(|a| bits(*a)).collect();
        let same_pod: Vec<Vec<u128>> = reference
            .same_pod(node)
            .iter()
            .map(|pod| pod.iter().filter(|a| ours(a)).map(|a| bits(*a)).collect::<Vec<u128>>())
            .filter(|pod| pod.len() > 1)
            .collect();
        let mut constants = artifact.addresses(family);
        // The node and pods with several addresses are compared apart, so each such address is an atom of its own.
        constants.sets.extend(node_addrs.iter().chain(same_pod.iter().flatten()).map(|&a| vec![a]));
        let atoms = Atoms::new(family, &bound, &constants, &reference.constants().addrs[family as usize]);
        let sizes = atoms.sizes();
        let mut locals = Vec::new();
        for &(addr, group, _) in bound.iter().filter(|b| b.2) {
            let atom = atoms.atom(addr);
            let mut apart: Vec<usize> = node_addrs.iter().map(|&a| atoms.atom(a)).collect();
            apart.extend(same_pod.iter().filter(|p| p.contains(&addr)).flatten().map(|&a| atoms.atom(a)));
            if sizes[atom] <= 1 {
                apart.push(atom);
            }
            locals.push(Local { addr: family.addr(addr), group, apart, passes: None });
        }
        let local_atoms = (0..atoms.len()).map(|i| (i, atoms.local(i))).collect();
        FamilyProof {
            reference,
            family,
            everyone: BitSet::full(atoms.len()),
            cells: cells(reference.constants(), &artifact.ports(), family),
            atoms,
            locals,
            expanded: HashMap::new(),
            local_atoms,
            node_addrs: node_addrs.iter().map(|&a| family.addr(a)).collect(),
            same_pod,
            kinds_compared: false,
            proof: Proof::default(),
        }
    }

    fn run(mut self, artifact: &mut dyn Artifact) -> Result<Proof, Box<Witness>> {
        self.proof.local = self.locals.len() as u64;
        self.proof.atoms = self.atoms.len() as u64;
        self.proof.cells = self.cells.len() as u64;
        artifact.begin(&self.atoms);
        let cells = std::mem::take(&mut self.cells);
        for &cell in &cells {
            self.cell(artifact, cell)?;
        }
        self.kinds(artifact)?;
        self.itself(artifact, &cells)?;
        self.strangers(artifact, &cells)?;
        self.other_packets(artifact)?;
        Ok(self.proof)
    }

    /// All pairs of a local address and an atom, for one cell.
    fn cell(&mut self, artifact: &mut dyn Artifact, cell: CellKey) -> Result<(), Box<Witness>> {
        let local_groups: BTreeSet<usize> = self.locals.iter().map(|l| l.group).collect();
        let egress: Vec<(usize, Option<Rc<Permitted>>)> = local_groups
            .into_iter()
            .map(|g| (g, self.reference.permits(g, Direction::Egress, cell.protocol, cell.port)))
            .collect();
        let mut atoms_of_group: HashMap<usize, Vec<usize>> = HashMap::new();
        for atom in self.local_atoms.iter() {
            if let Some(group) = self.atoms.group(atom) {
                atoms_of_group.entry(group).or_default().push(atom);
            }
        }
        for i in 0..self.locals.len() {
            let group = self.locals[i].group;
            let mut expected = self.expected(group, Direction::Ingress, cell);
            // A source on this node has to pass its own egress here as well.
            for (source, permitted) in &egress {
                if permitted.as_ref().is_some_and(|p| !p.groups.contains(group)) {
                    atoms_of_group.get(source).into_iter().flatten().for_each(|&a| expected.remove(a));
                }
            }
            let actual = artifact.permitted(
                &self.atoms,
                self.locals[i].addr,
                Direction::Ingress,
                cell.protocol,
                cell.port,
            );
            self.compare_asymmetric(artifact, i, cell, &expected)?;
            self.compare(i, Direction::Ingress, cell, expected, actual)?;
            // Pairs of two local addresses were compared just now.
            let expected = self.expected(group, Direction::Egress, cell).minus(&self.local_atoms);
            let actual = artifact.permitted(
                &self.atoms,
                self.locals[i].addr,
                Direction::Egress,
                cell.protocol,
                cell.port,
            );
            let actual = actual.minus(&self.local_atoms);
            let local = &mut self.locals[i];
            if local.passes.is_none()
                && let Some(atom) = actual.iter().find(|a| !local.apart.contains(a))
            {
                let (src, dst) = (local.addr, self.family.addr(self.atoms.representative(atom)));
                local.passes = Some(Flow { src, dst, protocol: cell.protocol, port: cell.port });
            }
            self.compare(i, Direction::Egress, cell, expected, actual)?;
        }
        Ok(())
    }

    /// On the wrong interface, what claims to come from this node's pods is dropped, and everything else gets what it
    /// gets on the right one.
    fn compare_asymmetric(
        &mut self,
        artifact: &mut dyn Artifact,
        local: usize,
        cell: CellKey,
        expected: &BitSet,
    ) -> Result<(), Box<Witness>> {
        let expected = expected.minus(&self.local_atoms);
        self.compare_kind(artifact, local, Direction::Ingress, Kind::Asymmetric, cell, expected, None)?;
        let nobody = BitSet::empty(self.atoms.len());
        self.compare_kind(artifact, local, Direction::Egress, Kind::Asymmetric, cell, nobody, None)
    }

    /// Packets of one kind between a local address and all atoms, but for those in `leave`, if the artifact answers for
    /// all peers at once.
    #[expect(clippy::too_many_arguments, reason = "a question to the artifact has that many parts")]
    fn compare_kind(
        &mut self,
        artifact: &mut dyn Artifact,
        local: usize,
        direction: Direction,
        kind: Kind,
        cell: CellKey,
        expected: BitSet,
        leave: Option<&BitSet>,
    ) -> Result<(), Box<Witness>> {
        let addr = self.locals[local].addr;
        let asked = artifact.permitted_kind(&self.atoms, addr, direction, kind, cell.protocol, cell.port);
        let Some(mut actual) = asked else { return Ok(()) };
        self.kinds_compared = true;
        let mut expected = expected;
        if let Some(leave) = leave {
            expected.remove_all(leave);
            actual.remove_all(leave);
        }
        self.compare(local, direction, cell, expected, actual).map_err(|mut witness| {
            witness.packet = kind.packet(witness.packet.flow);
            witness
        })
    }

    /// Packets that open no connection, and forged ones, between all local addresses and all atoms.
    fn kinds(&mut self, artifact: &mut dyn Artifact) -> Result<(), Box<Witness>> {
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
                let (expected, leave) = match kind {
                    // What opens no connection is dropped where it touches an isolated pod, at either end.
                    Kind::MidStream | Kind::Invalid => (stray, Some(leave)),
                    Kind::Spoofed => (&nobody, None),
                    _ => (&everyone, None),
                };
                for direction in Direction::ALL {
                    self.compare_kind(artifact, local, direction, kind, cell, expected.clone(), leave)?;
                }
            }
        }
        Ok(())
    }

    fn expected(&mut self, group: usize, direction: Direction, cell: CellKey) -> BitSet {
        let Some(permitted) = self.reference.permits(group, direction, cell.protocol, cell.port) else {
            return self.everyone.clone();
        };
        let (atoms, family) = (&self.atoms, self.family);
        let entry = self.expanded.entry(Rc::as_ptr(&permitted)).or_insert_with(|| {
            let has = |i: usize| match atoms.group(i) {
                Some(group) => permitted.groups.contains(group),
                None => permitted.unbound.family(family).contains(atoms.representative(i)),
            };
            let bits = (0..atoms.len()).map(|i| (i, has(i))).collect();
            (permitted.clone(), bits)
        });
        entry.1.clone()
    }

    fn compare(
        &mut self,
        local: usize,
        direction: Direction,
        cell: CellKey,
        mut expected: BitSet,
        mut actual: BitSet,
    ) -> Result<(), Box<Witness>> {
        let local = &self.locals[local];
        for &atom in &local.apart {
            expected.remove(atom);
            actual.remove(atom);
        }
        self.proof.comparisons += self.atoms.len() as u64;
        let Some(atom) = expected.first_difference(&actual) else { return Ok(()) };
        let peer = self.family.addr(self.atoms.other_than(atom, bits(local.addr)));
        let (src, dst) = match direction {
            Direction::Ingress => (peer, local.addr),
            Direction::Egress => (local.addr, peer),
        };
        let flow = Flow { src, dst, protocol: cell.protocol, port: cell.port };
        Err(Box::new(Witness {
            packet: Packet::opening(flow),
            expected: Verdict::allow_if(expected.contains(atom)),
            actual: Verdict::allow_if(actual.contains(atom)),
        }))
    }

    fn judge(
        &mut self,
        artifact: &mut dyn Artifact,
        packet: Packet,
        expected: Verdict,
    ) -> Result<(), Box<Witness>> {
        self.proof.packets += 1;
        let actual = artifact.decide_alike(&packet);
        if actual == expected { Ok(()) } else { Err(Box::new(Witness { packet, expected, actual })) }
    }

    /// An address that is neither an endpoint's nor this node's: packets between a pod and its node cross no rule.
    fn outside(&self) -> Option<IpAddr> {
        let free = |&i: &usize| {
            let addr = self.family.addr(self.atoms.representative(i));
            self.atoms.group(i).is_none() && !self.node_addrs.contains(&addr)
        };
        (0..self.atoms.len()).find(free).map(|i| self.family.addr(self.atoms.representative(i)))
    }

    /// Packets that no pod of this node sends or gets always pass.
    fn strangers(&mut self, artifact: &mut dyn Artifact, cells: &[CellKey]) -> Result<(), Box<Witness>> {
        let Some(outside) = self.outside() else { return Ok(()) };
        let mut leave = self.local_atoms.clone();
        leave.insert(self.atoms.atom(bits(outside)));
        for &cell in cells {
            let kinds = [Kind::Opening, Kind::Established, Kind::Invalid, Kind::Asymmetric];
            let mid_stream = (cell.protocol == Protocol::TCP).then_some(Kind::MidStream);
            for kind in kinds.into_iter().chain(mid_stream) {
                for direction in Direction::ALL {
                    let CellKey { protocol, port } = cell;
                    let asked =
                        artifact.permitted_kind(&self.atoms, outside, direction, kind, protocol, port);
                    let Some(mut actual) = asked else { return self.strangers_one_by_one(artifact, outside) };
                    self.proof.comparisons += self.atoms.len() as u64;
                    actual.or_with(&leave);
                    let Some(atom) = self.everyone.first_difference(&actual) else { continue };
                    let peer = self.family.addr(self.atoms.representative(atom));
                    let (src, dst) = match direction {
                        Direction::Ingress => (peer, outside),
                        Direction::Egress => (outside, peer),
                    };
                    let packet = kind.packet(Flow { src, dst, protocol, port });
                    let (expected, actual) = (Verdict::Allow, Verdict::Deny);
                    return Err(Box::new(Witness { packet, expected, actual }));
                }
            }
        }
        Ok(())
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
                let packet = Packet::opening(Flow { src, dst, protocol: Protocol::TCP, port: 80 });
                let stray = [invalid(packet), Packet { opens: false, ..packet }, asymmetric(packet)];
                for kind in [packet, established(packet)].into_iter().chain(stray) {
                    self.judge(artifact, kind, Verdict::Allow)?;
                }
            }
        }
        Ok(())
    }

    /// Replies, errors, packets that open nothing, spoofed packets, the pod itself. Each pod with one address outside;
    /// one pod, on behalf of all, with every atom.
    fn other_packets(&mut self, artifact: &mut dyn Artifact) -> Result<(), Box<Witness>> {
        let Some(outside) = self.outside() else { return Ok(()) };
        let locals: Vec<(IpAddr, usize)> = self.locals.iter().map(|l| (l.addr, l.group)).collect();
        // An artifact that answered for all peers at once has been asked about most of these already.
        let one_by_one = if self.kinds_compared { locals.len().min(1) } else { locals.len() };
        for &(addr, group) in &locals[..one_by_one] {
            self.others_between(artifact, (addr, group), (outside, None))?;
        }
        let Some(&first) =
            locals.iter().find(|l| self.reference.isolated(l.1) == Some(true)).or(locals.first())
        else {
            return Ok(());
        };
        if self.kinds_compared {
            return Ok(());
        }
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
            let tcp = Packet::opening(Flow { src, dst, protocol: Protocol::TCP, port: 1 });
            let udp = Packet::opening(Flow { src, dst, protocol: Protocol::UDP, port: 1 });
            self.judge(artifact, established(tcp), Verdict::Allow)?;
            self.judge(artifact, Packet { conn: Conn::Related, ..established(tcp) }, Verdict::Allow)?;
            for packet in [tcp, udp] {
                if let Some(expected) = stray {
                    self.judge(artifact, invalid(packet), expected)?;
                }
                self.judge(artifact, Packet { spoofed: true, ..packet }, Verdict::Deny)?;
                self.asymmetric(artifact, packet)?;
            }
            if let Some(expected) = stray {
                self.judge(artifact, Packet { opens: false, ..tcp }, expected)?;
            }
            if self.family == Family::V6 {
                let flow = Flow { src, dst, protocol: Protocol::ICMPV6, port: 0 };
                let packet = Packet { neighbour_discovery: true, ..Packet::opening(flow) };
                self.judge(artifact, packet, Verdict::Allow)?;
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
    fn itself(&mut self, artifact: &mut dyn Artifact, cells: &[CellKey]) -> Result<(), Box<Witness>> {
        let mut pairs: Vec<(IpAddr, IpAddr)> = self.locals.iter().map(|l| (l.addr, l.addr)).collect();
        for pod in &self.same_pod {
            let addrs = pod.iter().map(|&a| self.family.addr(a));
            pairs.extend(
                addrs.clone().flat_map(|a| addrs.clone().map(move |b| (a, b))).filter(|(a, b)| a != b),
            );
        }
        if let Some(outside) = self.outside().filter(|_| !self.kinds_compared) {
            let locals: Vec<IpAddr> = self.locals.iter().map(|l| l.addr).collect();
            for (local, &CellKey { protocol, port }) in
                locals.iter().flat_map(|a| cells.iter().map(move |c| (*a, c)))
            {
                for (src, dst) in [(outside, local), (local, outside)] {
                    self.asymmetric(artifact, Packet::opening(Flow { src, dst, protocol, port }))?;
                }
            }
        }
        for flow in self.locals.iter().filter_map(|l| l.passes).collect::<Vec<Flow>>() {
            self.asymmetric(artifact, Packet::opening(flow))?;
        }
        let locals: Vec<(IpAddr, usize)> = self.locals.iter().map(|l| (l.addr, l.group)).collect();
        for (addr, group) in locals {
            let flow = Flow { src: addr, dst: addr, protocol: Protocol::TCP, port: 1 };
            if let Some(isolated) = self.reference.isolated(group) {
                for kind in [Kind::Invalid, Kind::MidStream] {
                    self.judge(artifact, kind.packet(flow), Verdict::allow_if(!isolated))?;
                }
            }
        }
        for (src, dst) in pairs {
            for &CellKey { protocol, port } in cells {
                let packet = Packet::opening(Flow { src, dst, protocol, port });
                self.judge(artifact, packet, Verdict::Allow)?;
                self.judge(artifact, asymmetric(packet), Verdict::Deny)?;
            }
            for protocol in [Protocol::TCP, Protocol::UDP] {
                let packet = Packet::opening(Flow { src, dst, protocol, port: 1 });
                self.judge(artifact, Packet { spoofed: true, ..packet }, Verdict::Deny)?;
            }
        }
        Ok(())
    }
}

/// The kinds of packets that are asked about apart from those that open connections, with a protocol of each.
fn kinds_of(family: Family) -> Vec<(Kind, Protocol)> {
    let mut kinds = vec![
        (Kind::Established, Protocol::TCP),
        (Kind::MidStream, Protocol::TCP),
        (Kind::Invalid, Protocol::TCP),
        (Kind::Spoofed, Protocol::TCP),
        (Kind::Invalid, Protocol::UDP),
        (Kind::Spoofed, Protocol::UDP),
    ];
    if family == Family::V6 {
        kinds.push((Kind::NeighbourDiscovery, Protocol::ICMPV6));
    }
    kinds
}

fn invalid(packet: Packet) -> Packet {
    Packet { conn: Conn::Invalid, ..packet }
}

fn asymmetric(packet: Packet) -> Packet {
    Packet { asymmetric: true, ..packet }
}

fn established(packet: Packet) -> Packet {
    Packet { conn: Conn::Established, opens: false, ..packet }
}

/// One representative of every stretch of ports between all bounds, and the protocols without ports.
fn cells(reference: &Bounds, artifact: &Bounds, family: Family) -> Vec<CellKey> {
    let mut cells = Vec::new();
    for transport in Transport::ALL {
        let t = transport as usize;
        let starts: BTreeSet<u16> =
            reference.ports[t].iter().chain(&artifact.ports[t]).copied().chain([0]).collect();
        cells.extend(
            starts.into_iter().map(|port| CellKey { protocol: Protocol::Transport(transport), port }),
        );
    }
    let icmp = match family {
        Family::V4 => 1,
        Family::V6 => 58,
    };
    let named = reference.protocols.iter().chain(&artifact.protocols).copied();
    let others: BTreeSet<u8> = named.chain([icmp, 47]).collect();
    let others = others.into_iter().map(Protocol::from_number).filter(|p| matches!(p, Protocol::Other(_)));
    cells.extend(others.map(|protocol| CellKey { protocol, port: 0 }));
    cells
}
