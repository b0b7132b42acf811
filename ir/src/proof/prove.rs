//! The comparison itself.

mod others;
mod share;

pub use share::Share;

use super::{Artifact, Atoms, Bounds, Kind, Packet, Permitted, Reference};
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
    prove_share(reference, artifact, node, Share::WHOLE)
}

/// A part of [`prove`], so that several threads can prove one artifact.
///
/// # Errors
/// The first packet of this part that is judged differently.
pub fn prove_share(
    reference: &dyn Reference,
    artifact: &mut dyn Artifact,
    node: &str,
    share: Share,
) -> Result<Proof, Box<Witness>> {
    let mut total = Proof::default();
    for family in Family::ALL {
        total += FamilyProof::new(reference, artifact, (node, share), family).run(artifact)?;
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
    /// As [`FamilyProof::looks`] has them.
    cells: BitSet,
    /// Atoms about which nothing is compared: the address itself, its pod's other addresses, the node.
    apart: Vec<usize>,
    /// A flow from it that passes, to an address that is not of this node.
    passes: Option<Flow>,
}

struct FamilyProof<'a> {
    reference: &'a dyn Reference,
    share: Share,
    family: Family,
    atoms: Atoms,
    /// The groups of all addresses of this node's pods.
    groups: BTreeSet<usize>,
    /// One of these addresses for each atom, or all if the artifact tells addresses of one atom apart; with its group.
    speakers: Vec<(IpAddr, usize)>,
    /// The addresses that this part is about, with their groups.
    own: Vec<(IpAddr, usize)>,
    /// Those of `speakers` that this part is about.
    locals: Vec<Local>,
    /// By number, the cells that are looked at for each of this node's addresses: in the others the same is said of it as in
    /// the one before.
    looks: HashMap<IpAddr, BitSet>,
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
        (node, share): (&str, Share),
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
        let mut starts = reference.constants().addrs[family as usize].clone();
        starts.extend(others::neighbour_bounds(family));
        let atoms = Atoms::new(family, &bound, &constants, &starts);
        let sizes = atoms.sizes();
        let (mut own, mut locals, mut speakers) = (Vec::new(), Vec::new(), Vec::new());
        let mut groups = BTreeSet::new();
        // What is said of an address is said by the first one of its atom, if it is said of all of them.
        let mut numbers: HashMap<usize, usize> = HashMap::new();
        for &(addr, group, _) in bound.iter().filter(|b| b.2) {
            let atom = atoms.atom(addr);
            let known = numbers.get(&atom).copied().filter(|_| artifact.goes_by_atoms());
            let number = known.unwrap_or(speakers.len());
            numbers.insert(atom, number);
            groups.insert(group);
            if share.has(number) {
                own.push((family.addr(addr), group));
            }
            if known.is_some() {
                continue;
            }
            speakers.push((family.addr(addr), group));
            if !share.has(number) {
                continue;
            }
            let mut apart: Vec<usize> = node_addrs.iter().map(|&a| atoms.atom(a)).collect();
            apart.extend(same_pod.iter().filter(|p| p.contains(&addr)).flatten().map(|&a| atoms.atom(a)));
            if sizes[atom] <= 1 {
                apart.push(atom);
            }
            let cells = BitSet::default();
            locals.push(Local { addr: family.addr(addr), group, cells, apart, passes: None });
        }
        let local_atoms = (0..atoms.len()).map(|i| (i, atoms.local(i))).collect();
        FamilyProof {
            reference,
            share,
            family,
            groups,
            speakers,
            everyone: BitSet::full(atoms.len()),
            cells: cells(reference.constants(), &artifact.ports(), family),
            atoms,
            own,
            locals,
            looks: HashMap::new(),
            expanded: HashMap::new(),
            local_atoms,
            node_addrs: node_addrs.iter().map(|&a| family.addr(a)).collect(),
            same_pod,
            kinds_compared: false,
            proof: Proof::default(),
        }
    }

    fn run(mut self, artifact: &mut dyn Artifact) -> Result<Proof, Box<Witness>> {
        self.proof.local = self.own.len() as u64;
        if self.is_first() {
            self.proof.atoms = self.atoms.len() as u64;
            self.proof.cells = self.cells.len() as u64;
        }
        artifact.begin(&self.atoms);
        let cells = std::mem::take(&mut self.cells);
        self.look_at(artifact, &cells);
        for (i, &cell) in cells.iter().enumerate() {
            self.cell(artifact, (i, cell))?;
        }
        self.kinds(artifact)?;
        self.itself(artifact, &cells)?;
        if self.is_first() {
            self.strangers(artifact, &cells)?;
        }
        self.other_packets(artifact)?;
        Ok(self.proof)
    }

    /// Whether this part has what is about no address of the node, or about one on behalf of all.
    fn is_first(&self) -> bool {
        self.share.which == 0
    }

    /// For each of this node's addresses, which cells to look at: those that begin where the policies of this address, or the
    /// artifact when it is asked about it, may begin to say something else. What it gets from this node's other pods is also
    /// for their egress to say.
    fn look_at(&mut self, artifact: &mut dyn Artifact, cells: &[CellKey]) {
        let mut egress = Bounds::default();
        for &group in &self.groups {
            egress.extend_ports(&self.reference.ports(group, Direction::Egress));
        }
        for &(addr, group) in &self.own {
            let ingress = self.reference.ports(group, Direction::Ingress);
            let asked = artifact.ports_of(&self.atoms, addr);
            let begins = |&CellKey { protocol, port }: &CellKey| {
                let (Protocol::Transport(transport), Some(asked)) = (protocol, &asked) else { return true };
                let has = |bounds: &Bounds| bounds.ports[transport as usize].contains(&port);
                port == 0 || has(asked) || has(&ingress) || has(&egress)
            };
            self.looks.insert(addr, cells.iter().map(begins).enumerate().collect());
        }
        for local in &mut self.locals {
            local.cells = self.looks.get(&local.addr).cloned().unwrap_or_default();
        }
    }

    /// All pairs of a local address and an atom, for one cell.
    fn cell(
        &mut self,
        artifact: &mut dyn Artifact,
        (number, cell): (usize, CellKey),
    ) -> Result<(), Box<Witness>> {
        if !self.locals.iter().any(|local| local.cells.contains(number)) {
            return Ok(());
        }
        let egress: Vec<(usize, Option<Rc<Permitted>>)> = (self.groups.iter())
            .map(|&g| (g, self.reference.permits(g, Direction::Egress, cell.protocol, cell.port)))
            .collect();
        let mut atoms_of_group: HashMap<usize, Vec<usize>> = HashMap::new();
        for atom in self.local_atoms.iter() {
            if let Some(group) = self.atoms.group(atom) {
                atoms_of_group.entry(group).or_default().push(atom);
            }
        }
        for i in 0..self.locals.len() {
            if !self.locals[i].cells.contains(number) {
                continue;
            }
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
            self.compare_elsewhere(artifact, i, cell, &expected)?;
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
    /// gets on the right one. From a pod's interface, everything with another source is dropped.
    fn compare_elsewhere(
        &mut self,
        artifact: &mut dyn Artifact,
        local: usize,
        cell: CellKey,
        expected: &BitSet,
    ) -> Result<(), Box<Witness>> {
        let expected = expected.minus(&self.local_atoms);
        self.compare_kind(artifact, local, Direction::Ingress, Kind::Asymmetric, cell, expected, None)?;
        let nobody = BitSet::empty(self.atoms.len());
        for direction in Direction::ALL {
            self.compare_kind(artifact, local, direction, Kind::Spoofed, cell, nobody.clone(), None)?;
        }
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
        let neighbours = self.neighbours(addr, direction).filter(|_| kind.spoofed());
        for leave in leave.into_iter().chain(&neighbours) {
            expected.remove_all(leave);
            actual.remove_all(leave);
        }
        self.compare(local, direction, cell, expected, actual).map_err(|mut witness| {
            witness.packet = kind.packet(witness.packet.flow);
            witness
        })
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
