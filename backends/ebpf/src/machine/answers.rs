//! What the program that this version emits does with all peers of an address at once.
//!
//! That program uses addresses as keys of maps and for nothing else. Of what it finds there it compares the numbers of
//! pods with each other, with that of the interface, and with 0; and it uses the port as an index of the bitmaps that
//! pairs name for the packet's protocol, and compares it with the single ports that they name. So two runs end alike if
//! the maps know the same of the addresses, the numbers of the pods are equal or unequal in both, the port is in the same
//! of those bitmaps, and it is none of those single ports or the same one; of bitmaps and single ports those count that the
//! pairs of these two ends name. Besides, it asks `pairs` for the sum of a row and
//! the other end's column, and does nothing else with a column, so what counts is which value is found there; of rows that it
//! does not ask about it sees only whether they are 0. Of packets that are forged or open no connection it asks nothing else
//! of rows either: a forged one is dropped before, and the other kinds pass where nobody is isolated. With `keep` it asks
//! nothing of the ends of an established one. Of a connection's state it asks only whether it is new, so established
//! packets get the same whichever end began. One run answers for all packets that are alike in this way; which program it is has been compared instruction
//! by instruction.

mod ends;

pub(super) use ends::Known;

use super::constants::{has, sets, starts};
use super::maps::Maps;
use super::{Machine, NOBODY, ProtocolPort};
use crate::layout::{Map, Ports};
use ends::{Class, Ends, Pairs, Way, way, word};
use netpolc_ir::addr::bits;
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::{Protocol, Transport};
use netpolc_ir::proof::{Artifact as _, Atoms, Bounds, Conn, Kind, Packet};
use netpolc_ir::unit::{Direction, Flow, Verdict};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

/// Peers of an address that the program cannot tell apart, unless one of them is the same pod as the address.
#[derive(Debug)]
struct Alike {
    /// The number of the two ends.
    ends: u32,
    atoms: Vec<usize>,
    bits: BitSet,
}

impl Alike {
    fn none(ends: u32, atoms: usize) -> Alike {
        Alike { ends, atoms: Vec::new(), bits: BitSet::empty(atoms) }
    }
}

/// A question about all peers, but for which pod the address belongs to.
type Question = (Class, Direction, Kind, u32);

/// What is known about a question.
#[derive(Debug)]
struct Answer {
    permitted: BitSet,
    /// Which of the address's peers, by their place in [`Answers::peers`], are open: only addresses of the asking pod
    /// itself have been seen among them.
    open: Vec<usize>,
}

/// Answers to questions about certain atoms. Without any, every packet is asked about by itself.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// For each atom, what the maps know about its representative.
    atoms: Vec<Known>,
    /// All atoms, by what the program can tell about them.
    classes: Vec<(Class, Alike)>,
    /// For each pod of this node, the atoms that one of its addresses stands for.
    atoms_of_pod: FxHashMap<u32, Vec<usize>>,
    /// For what addresses there are, their peers; together all atoms.
    peers: FxHashMap<(Class, Way), Vec<Alike>>,
    pairs: Pairs,
    /// Pairs of ends have numbers, for each way.
    ends: FxHashMap<(Ends, Way), u32>,
    /// By number.
    ends_of: Vec<Ends>,
    /// For each protocol with ports, the single ports and the stretches that matter.
    ports: [(BTreeSet<u16>, Stretches); 3],
    /// Protocols and ports that the program cannot tell apart have one number. By what tells them apart, and by name.
    cells: FxHashMap<(u8, Option<u16>, u32), u32>,
    cell_of: FxHashMap<(u8, u16), u32>,
    /// Whether packets pass between two ends that are different pods, by what their rows say of the port.
    passes: FxHashMap<(u32, Kind, u8, [bool; 4]), bool>,
    /// Where bitmaps change, by number.
    changes: FxHashMap<u32, Vec<u16>>,
    /// For what addresses there are, the ports where what is said of them may change.
    ports_of: FxHashMap<Class, Rc<Bounds>>,
    /// What happens to single packets, by what the program can tell about them.
    single: FxHashMap<Single, Verdict>,
    memo: FxHashMap<Question, Answer>,
}

/// Where bitmaps change, in order: the first ports of stretches, with the number of the bitmaps that have the stretch.
#[derive(Debug, Default)]
struct Stretches(Vec<(u16, u32)>);

impl Stretches {
    fn of(maps: &Maps, bitmaps: &[[u8; 4]]) -> Stretches {
        let mut changes: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (i, bitmap) in bitmaps.iter().enumerate() {
            let Some(bitmap) = maps.get(Map::Ports, bitmap) else { continue };
            let begins = has(bitmap, 0).then_some(0).into_iter();
            begins.chain(starts(bitmap)).for_each(|port| changes.entry(port).or_default().push(i));
        }
        let mut having = BitSet::empty(bitmaps.len());
        let mut numbers = FxHashMap::from_iter([(having.clone(), 0)]);
        let found = changes.into_iter().map(|(port, which)| {
            for i in which {
                match having.contains(i) {
                    true => having.remove(i),
                    false => having.insert(i),
                }
            }
            let next = numbers.len() as u32;
            (port, *numbers.entry(having.clone()).or_insert(next))
        });
        Stretches(found.collect())
    }

    /// The number of the bitmaps that have a port; 0 if none has.
    fn at(&self, port: u16) -> u32 {
        let behind = self.0.partition_point(|(first, _)| *first <= port);
        behind.checked_sub(1).and_then(|place| self.0.get(place)).map_or(0, |(_, number)| *number)
    }
}

/// What the program can tell about one packet: its ends, whether they are the same pod, its protocol and port; and what
/// the packet is. From which interface it comes follows from the source and from that.
type Single = ([Class; 2], bool, u32, (Conn, [bool; 4]));

impl Answers {
    /// What happens to one packet; `None` if there are no answers.
    pub(super) fn single(&mut self, machine: &Machine, packet: &Packet) -> Option<Verdict> {
        if self.atoms.is_empty() {
            return None;
        }
        let Flow { src, dst, protocol, port } = packet.flow;
        let number = self.cell((protocol, port));
        let [from, to] = [src, dst].map(|addr| Known::of(&machine.maps, addr));
        let what = [packet.opens, packet.spoofed, packet.asymmetric, packet.neighbour_discovery];
        let same = from.pod != 0 && from.pod == to.pod;
        let key = ([from.class(), to.class()], same, number, (packet.conn, what));
        Some(*self.single.entry(key).or_insert_with(|| machine.decide(packet)))
    }

    pub(super) fn new(maps: &Maps, atoms: &Atoms) -> Answers {
        // Numbers with a meaning of their own: such an artifact is asked packet by packet.
        if Map::PODS.into_iter().flat_map(|map| maps.values(map)).any(|value| word(value, 3) >= NOBODY) {
            return Answers::default();
        }
        let ports = Transport::ALL.map(|transport| {
            let (ones, bitmaps) = sets(maps, transport);
            (ones, Stretches::of(maps, &bitmaps))
        });
        let known = |atom| Known::of(maps, atoms.family().addr(atoms.representative(atom)));
        let known: Vec<Known> = (0..atoms.len()).map(known).collect();
        let mut atoms_of_pod: FxHashMap<u32, Vec<usize>> = FxHashMap::default();
        for (atom, known) in known.iter().enumerate().filter(|(_, known)| known.pod != 0) {
            atoms_of_pod.entry(known.pod).or_default().push(atom);
        }
        let mut classes: Vec<(Class, Alike)> = Vec::new();
        let mut places: FxHashMap<Class, usize> = FxHashMap::default();
        for (atom, class) in known.iter().map(|known| known.class()).enumerate() {
            let place = *places.entry(class).or_insert(classes.len());
            if place == classes.len() {
                classes.push((class, Alike::none(u32::MAX, known.len())));
            }
            classes[place].1.atoms.push(atom);
            classes[place].1.bits.insert(atom);
        }
        Answers { atoms: known, classes, atoms_of_pod, ports, ..Answers::default() }
    }

    /// Which atoms may exchange packets of a kind with an address; `None` if there are no answers for these atoms.
    pub(super) fn permitted(
        &mut self,
        machine: &Machine,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        kind: Kind,
        cell: ProtocolPort,
    ) -> Option<BitSet> {
        if self.atoms.len() != atoms.len() || atoms.is_empty() {
            return None;
        }
        let way = way(direction, kind, machine.program.established);
        let own = Known::of(&machine.maps, local);
        let own = if way.1 { own } else { own.isolated() };
        let number = self.cell(cell);
        let peers = (own.class(), way);
        if !self.peers.contains_key(&peers) {
            let alike = self.alike(&machine.maps, own, peers.1);
            self.peers.insert(peers, alike);
        }
        let peers = self.peers.get(&peers)?;
        let answer = self.memo.entry((own.class(), direction, kind, number)).or_insert_with(|| Answer {
            permitted: BitSet::empty(atoms.len()),
            open: (0..peers.len()).collect(),
        });
        // The address itself may stand for its atom; what is asked is about the others in it, who are other pods.
        let peer = |atom| atoms.family().addr(atoms.other_than(atom, bits(local)));
        let passes = |atom| machine.passes(local, peer(atom), direction, kind, cell);
        answer.open.retain(|&place| {
            let alike = &peers[place];
            let other = |&&atom: &&usize| {
                own.pod == 0
                    || self.atoms[atom].pod != own.pod
                    || Known::pod_of(&machine.maps, peer(atom)) != own.pod
            };
            let Some(&atom) = alike.atoms.iter().find(other) else { return true };
            let src = if direction == Direction::Ingress { self.atoms[atom] } else { own };
            // What is none of this node's pods has no interface of its own, so there it is the same packet.
            let (kind, ends) = match kind {
                Kind::Asymmetric if src.pod == 0 => (Kind::Opening, alike.ends),
                Kind::MidStreamAsymmetric if src.pod == 0 => (Kind::MidStream, alike.ends),
                Kind::UntrackedAsymmetric if src.pod == 0 => (Kind::UntrackedMidStream, alike.ends),
                // It is forged, whoever it is for.
                kind if kind.asymmetric() || kind.spoofed() => (kind, u32::MAX),
                _ => (kind, alike.ends),
            };
            let held = self.ends_of.get(ends as usize).filter(|_| way.1);
            let held = held.map_or([false; 4], |of| self.pairs.holds(&machine.maps, of, cell));
            let key = (ends, kind, cell.0.number(), held);
            if *self.passes.entry(key).or_insert_with(|| passes(atom)) {
                answer.permitted.or_with(&alike.bits);
            }
            false
        });
        let mut permitted = answer.permitted.clone();
        for &atom in self.atoms_of_pod.get(&own.pod).into_iter().flatten() {
            // An address of the same pod is an atom by itself.
            if atoms.representative(atom) != bits(local) {
                match passes(atom) {
                    true => permitted.insert(atom),
                    false => permitted.remove(atom),
                }
            }
        }
        Some(permitted)
    }

    /// The ports of the sets that are named for what an address gets, and for what it sends to addresses that are none of this
    /// node's; `None` if there are no answers for these atoms.
    pub(super) fn ports_of(&mut self, maps: &Maps, atoms: &Atoms, local: IpAddr) -> Option<Rc<Bounds>> {
        if self.atoms.len() != atoms.len() || atoms.is_empty() {
            return None;
        }
        let own = Known::of(maps, local);
        if let Some(known) = self.ports_of.get(&own.class()) {
            return Some(known.clone());
        }
        let mut bounds = Bounds::default();
        for direction in Direction::ALL {
            let peers = (own.class(), (Some(direction), true));
            if !self.peers.contains_key(&peers) {
                let alike = self.alike(maps, own, peers.1);
                self.peers.insert(peers, alike);
            }
            let places: Vec<u32> = self.peers.get(&peers)?.iter().map(|alike| alike.ends).collect();
            for ends in places {
                let Ends { rows, pods: [_, local] } = *self.ends_of.get(ends as usize)?;
                if direction == Direction::Ingress || !local {
                    rows.into_iter().for_each(|row| self.add_ports(maps, row, &mut bounds));
                }
            }
        }
        let bounds = Rc::new(bounds);
        self.ports_of.insert(own.class(), bounds.clone());
        Some(bounds)
    }

    /// Adds the ports of the sets that a value of `pairs` names.
    fn add_ports(&mut self, maps: &Maps, row: u32, bounds: &mut Bounds) {
        let sets = row.checked_sub(Pairs::FIRST).and_then(|place| self.pairs.sets.get(place as usize));
        for (transport, set) in Transport::ALL.into_iter().zip(sets.into_iter().flatten()) {
            match Ports::of(*set) {
                Ports::None | Ports::All => {}
                Ports::One(port) => bounds.add_ports(transport, port, port),
                Ports::Bitmap(key) => {
                    let bitmap = || maps.get(Map::Ports, &key.to_le_bytes()).map(starts).unwrap_or_default();
                    let changes = self.changes.entry(key).or_insert_with(bitmap);
                    bounds.ports[transport as usize].extend(changes.iter());
                }
            }
        }
    }

    /// All atoms, as peers of what the maps know about an address.
    fn alike(&mut self, maps: &Maps, own: Known, way: Way) -> Vec<Alike> {
        let mut found: Vec<Alike> = Vec::new();
        let mut places: FxHashMap<u32, usize> = FxHashMap::default();
        let (direction, matter) = way;
        for &((judged, local), ref class) in &self.classes {
            // Which pod it is does not matter to the ends.
            let known = Known { judged, pod: u32::from(local) };
            let known = if matter { known } else { known.isolated() };
            let both = match direction {
                Some(Direction::Ingress) => [known, own],
                Some(Direction::Egress) | None => [own, known],
            };
            let ends = self.pairs.ends(maps, both, (direction, matter));
            // Where a packet comes from and where it goes to is in the order of the ends, if it goes one way.
            let way = (direction.map(|_| Direction::Egress), matter);
            let next = self.ends.len() as u32;
            let number = *self.ends.entry((ends, way)).or_insert(next);
            if number == next {
                self.ends_of.push(ends);
            }
            let ends = number;
            let place = *places.entry(ends).or_insert(found.len());
            if place == found.len() {
                found.push(Alike::none(ends, self.atoms.len()));
            }
            found[place].atoms.extend(&class.atoms);
            found[place].bits.or_with(&class.bits);
        }
        found
    }

    /// The number of a protocol and port; equal for those that the program cannot tell apart.
    fn cell(&mut self, (protocol, port): ProtocolPort) -> u32 {
        let name = (protocol.number(), port);
        if let Some(number) = self.cell_of.get(&name) {
            return *number;
        }
        let (one, bitmaps) = match protocol {
            Protocol::Transport(transport) => {
                let (ones, stretches) = &self.ports[transport as usize];
                (ones.contains(&port).then_some(port), stretches.at(port))
            }
            Protocol::Other(_) => (None, 0),
        };
        let next = self.cells.len() as u32;
        let number = *self.cells.entry((protocol.number(), one, bitmaps)).or_insert(next);
        self.cell_of.insert(name, number);
        number
    }
}
