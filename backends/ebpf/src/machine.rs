//! The artifact, executed: the very instructions of the object, on maps filled from the contents, in a stand-in for the
//! kernel's structures.
//!
//! The stand-in puts every field elsewhere than the object's own types do, so an instruction that was not relocated, or
//! was relocated to another field, reads something else. Connections have another destination before DNAT and another
//! source after SNAT than the flow that is asked about, so a program that reads the wrong tuple is found out.
//!
//! [`permitted`](netpolc_ir::proof::Artifact::permitted) runs the program once for each pair of things that the maps
//! know about the two addresses, if the program is the one that this version emits: it uses addresses as keys of maps
//! and for nothing else. Any other program is run for every pair of addresses, and its constants count as addresses,
//! ports and protocols that it may tell apart.

mod interpreter;
mod maps;
mod packet;

use crate::asm::Field;
use crate::contents::Established;
use crate::decode::{Artifact as Decoded, DecodeError, LinkError, Program};
use crate::insn::{Insn, Operand};
use crate::layout::{self, Map};
use crate::program;
use maps::Maps;
use netpolc_ir::addr::{Family, bits};
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::{Protocol, Transport};
use netpolc_ir::proof::{Artifact, Atoms, Bounds, Conn, Constants, Packet};
use netpolc_ir::unit::{Direction, Flow, Verdict};
use packet::{Case, Entry, Kernel};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Where a run went wrong. The kernel's verifier refuses programs that can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Memory was read or written where there is none.
    #[error("instruction {0} reaches memory that is not its own")]
    Memory(usize),
    /// A register was read that nobody wrote.
    #[error("instruction {0} reads a register that was not written")]
    Register(usize),
    /// A helper got something else than it takes.
    #[error("instruction {0} calls a helper with wrong arguments")]
    Helper(usize),
    /// The result is no verdict.
    #[error("{0} is no verdict")]
    Verdict(u64),
}

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    /// The value of r0.
    result: u64,
    /// What was added to a counter, the last time that something was.
    counted: Option<Counted>,
}

/// An addition to a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    /// The key in [`Map::Denied`].
    key: u32,
    /// How much.
    amount: u64,
}

/// A number that no pod has.
const NOBODY: u32 = layout::SHARED - 1;

/// An artifact that can be asked about packets.
#[derive(Debug)]
pub struct Machine {
    established: Established,
    slots: Vec<Option<Insn>>,
    maps: Maps,
    /// Whether the program is the one that this version emits.
    known: bool,
    /// For each atom, what the maps know about its addresses.
    atoms: Vec<Known>,
    /// For each pod of the node, the atoms that one of its addresses stands for.
    atoms_of_pod: FxHashMap<u32, Vec<usize>>,
    memo: FxHashMap<(Known, Direction, u8, u16), Answers>,
}

/// What the maps know about an address: column, ingress row, egress row; and apart from that the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Known {
    judged: [u32; 3],
    pod: u32,
}

/// What an address may exchange with each atom, as far as it is known, leaving aside that it is an address of some pod.
#[derive(Debug, Clone)]
struct Answers {
    by_known: FxHashMap<Known, bool>,
    permitted: BitSet,
    open: Vec<usize>,
}

/// An artifact that cannot be executed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// It cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It cannot be linked.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Reads an artifact back and gets it ready to run.
///
/// # Errors
/// If the bytes are not an artifact of ours.
pub fn load(object: &[u8], contents: &str) -> Result<Machine, MachineError> {
    Ok(Machine::new(&crate::decode::decode(object, contents)?)?)
}

impl Machine {
    /// Links the program with the stand-in kernel and fills the maps.
    ///
    /// # Errors
    /// If the program reads a field that the stand-in lacks: none that passes the decoder.
    pub fn new(artifact: &Decoded) -> Result<Machine, LinkError> {
        let established = artifact.established();
        let slots = link(&artifact.program)?;
        let known = known_program(established, &artifact.program);
        let mut maps = Maps::new(&artifact.shapes);
        for entry in artifact.contents.entries() {
            maps.insert(entry.map, &entry.key, &entry.value);
        }
        Ok(Machine {
            established,
            slots,
            maps,
            known,
            atoms: Vec::new(),
            atoms_of_pod: FxHashMap::default(),
            memo: FxHashMap::default(),
        })
    }

    /// Puts an entry into a map, over the one that is there. Keys and values of a wrong size, and keys beyond the end
    /// of an array, are left out, as the kernel refuses them.
    pub fn set(&mut self, map: Map, key: &[u8], value: &[u8]) {
        self.memo.clear();
        self.maps.insert(map, key, value);
    }

    /// Takes an entry out of a map; an entry of an array becomes zeros.
    pub fn unset(&mut self, map: Map, key: &[u8]) {
        self.memo.clear();
        self.maps.remove(map, key);
    }

    /// What the program does with a packet that the stand-in kernel describes.
    fn run(&self, case: &Case) -> Result<Verdict, Fault> {
        match interpreter::run(&self.slots, &self.maps, &Kernel::new(case))?.result {
            program::NF_ACCEPT => Ok(Verdict::Allow),
            program::NF_DROP => Ok(Verdict::Deny),
            other => Err(Fault::Verdict(other)),
        }
    }

    /// The verdict; a fault drops.
    fn verdict(&self, case: &Case) -> Verdict {
        self.run(case).unwrap_or(Verdict::Deny)
    }

    /// The first packet of a connection, from where its source lives.
    fn opening(&self, flow: Flow) -> Case {
        let pod = self.known(flow.src).pod;
        Case {
            flow,
            entry: Entry::Connection { state: program::IP_CT_NEW as u64, begun: true },
            interface: (pod != 0).then_some(pod),
            icmp_type: 0,
        }
    }

    fn known(&self, addr: IpAddr) -> Known {
        let word = |value: &[u8], i: usize| {
            value.get(i * 4..i * 4 + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        let key = layout::pod_key(addr);
        if let Some(value) = self.maps.get(Map::Pods, &key) {
            return Known { judged: [word(value, 0), word(value, 1), word(value, 2)], pod: word(value, 3) };
        }
        let full = [&160u32.to_le_bytes()[..], &key].concat();
        let column = self.maps.get(Map::Blocks, &full).map_or(0, |value| word(value, 0));
        Known { judged: [column, 0, 0], pod: 0 }
    }

    /// Whether an established packet, and a reply, get what their connection deserves: with `keep` they pass, with
    /// `cut` they get the verdict of the packet that opened the connection, which either end may have sent.
    fn established(&self, flow: Flow, states: [u64; 2]) -> Verdict {
        let back = Flow { src: flow.dst, dst: flow.src, ..flow };
        let mut fine = true;
        for (original, state) in [(flow, states[0]), (back, states[1])] {
            let entry = Entry::Connection { state, begun: false };
            let actual = self.verdict(&Case { flow: original, entry, interface: None, icmp_type: 0 });
            let wanted = match self.established {
                Established::Keep => Verdict::Allow,
                Established::Cut => self.verdict(&self.opening(original)),
            };
            fine &= actual == wanted;
        }
        Verdict::allow_if(fine)
    }
}

fn link(program: &Program) -> Result<Vec<Option<Insn>>, LinkError> {
    program.link(|field| Some(packet::offset(field)), |map| map as i32 + 1)
}

/// Whether a program is the one that this version emits.
fn known_program(established: Established, program: &Program) -> bool {
    let ours = program::build(established);
    let slots = ours.insns.iter().flat_map(|i| [Some(*i), None].into_iter().take(i.slots()));
    slots.eq(program.slots.iter().copied()) && ours.maps == program.maps && ours.fields == program.fields
}

/// The constants of a program that is not known: whatever it may compare with.
fn immediates(slots: &[Option<Insn>]) -> BTreeSet<i32> {
    let of = |insn: &Insn| match insn {
        Insn::Alu { src: Operand::Imm(imm), .. } | Insn::Branch { src: Operand::Imm(imm), .. } => Some(*imm),
        _ => None,
    };
    slots.iter().flatten().filter_map(of).collect()
}

impl Artifact for Machine {
    fn addresses(&self, family: Family) -> Constants {
        let mut constants = Constants::default();
        let mut sets: BTreeMap<[u32; 3], Vec<u128>> = BTreeMap::new();
        for addr in self.maps.keys(Map::Pods).filter_map(layout::pod_of_key) {
            if Family::of(addr) == family {
                sets.entry(self.known(addr).judged).or_default().push(bits(addr));
            }
        }
        constants.sets.extend(sets.into_values());
        for cidr in self.maps.keys(Map::Blocks).filter_map(layout::block_of_key) {
            if cidr.family() == family {
                constants.ranges.insert((cidr.first(), cidr.last()));
            }
        }
        if !self.known && family == Family::V4 {
            let imms = immediates(&self.slots);
            let addrs = imms.iter().flat_map(|i| [*i as u32, (*i as u32).swap_bytes()]);
            constants.sets.extend(addrs.map(|a| vec![u128::from(a)]));
        }
        constants
    }

    fn ports(&self) -> Bounds {
        let mut bounds = Bounds::default();
        let mut starts: BTreeSet<u16> = BTreeSet::new();
        for bitmap in self.maps.values(Map::Ports) {
            let has = |port: u16| bitmap.get(usize::from(port / 8)).is_some_and(|b| b >> (port % 8) & 1 == 1);
            starts.extend((1..=u16::MAX).filter(|p| has(*p) != has(p - 1)));
        }
        if !self.known {
            for imm in immediates(&self.slots) {
                let port = u16::try_from(imm).ok();
                let ports = port.into_iter().flat_map(|p| [p, p.swap_bytes()]);
                starts.extend(ports.flat_map(|p| [p, p.saturating_add(1)]));
                bounds.protocols.extend(u8::try_from(imm));
            }
        }
        bounds.ports = Transport::ALL.map(|_| starts.clone());
        bounds
    }

    fn begin(&mut self, atoms: &Atoms) {
        self.memo.clear();
        let family = atoms.family();
        self.atoms = (0..atoms.len()).map(|i| self.known(family.addr(atoms.representative(i)))).collect();
        self.atoms_of_pod.clear();
        for (i, known) in self.atoms.iter().enumerate().filter(|(_, known)| known.pod != 0) {
            self.atoms_of_pod.entry(known.pod).or_default().push(i);
        }
    }

    fn permitted(
        &mut self,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        protocol: Protocol,
        port: u16,
    ) -> BitSet {
        let own = self.known(local);
        let may = |machine: &Machine, i: usize| {
            // The address itself may stand for its atom; what is asked is about the others in it.
            let peer = atoms.family().addr(atoms.other_than(i, bits(local)));
            let (src, dst) = match direction {
                Direction::Ingress => (peer, local),
                Direction::Egress => (local, peer),
            };
            machine.verdict(&machine.opening(Flow { src, dst, protocol, port })) == Verdict::Allow
        };
        if !self.known || self.atoms.len() != atoms.len() {
            return (0..atoms.len()).map(|i| (i, may(self, i))).collect();
        }
        let key = (Known { pod: 0, ..own }, direction, protocol.number(), port);
        let mut answers = self.memo.remove(&key).unwrap_or_else(|| Answers {
            by_known: FxHashMap::default(),
            permitted: BitSet::empty(atoms.len()),
            open: (0..atoms.len()).collect(),
        });
        // A pod and itself are judged otherwise than the rest of what the maps know says: those stay open.
        let same_pod = |i: usize| own.pod != 0 && self.atoms[i].pod == own.pod;
        for i in std::mem::take(&mut answers.open) {
            if same_pod(i) {
                answers.open.push(i);
                continue;
            }
            let known = Known { pod: 0, ..self.atoms[i] };
            if *answers.by_known.entry(known).or_insert_with(|| may(self, i)) {
                answers.permitted.insert(i);
            }
        }
        let mut permitted = answers.permitted.clone();
        for &i in self.atoms_of_pod.get(&own.pod).into_iter().flatten() {
            match may(self, i) {
                true => permitted.insert(i),
                false => permitted.remove(i),
            }
        }
        self.memo.insert(key, answers);
        permitted
    }

    fn decide(&self, packet: &Packet) -> Verdict {
        let flow = packet.flow;
        let case = self.opening(flow);
        if packet.neighbour_discovery {
            // Neighbour solicitation; conntrack leaves it alone, or is off.
            let passes = [u64::from(program::IP_CT_UNTRACKED as u32), 0]
                .map(|nfct| self.verdict(&Case { entry: Entry::None { nfct }, icmp_type: 135, ..case }));
            return Verdict::allow_if(passes == [Verdict::Allow; 2]);
        }
        match packet.conn {
            Conn::Established => self.established(flow, [0, 3]),
            Conn::Related => self.established(flow, [1, 4]),
            Conn::Invalid => self.verdict(&Case { entry: Entry::None { nfct: 0 }, ..case }),
            Conn::New => {
                let begun = packet.opens || flow.protocol != Protocol::TCP;
                let entry = Entry::Connection { state: program::IP_CT_NEW as u64, begun };
                let interface = match packet {
                    Packet { spoofed: true, .. } => Some(NOBODY),
                    Packet { asymmetric: true, .. } => None,
                    _ => case.interface,
                };
                self.verdict(&Case { entry, interface, ..case })
            }
        }
    }
}

#[cfg(test)]
mod tests;
