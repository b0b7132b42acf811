//! The artifact, executed: the very instructions of the object, on maps filled from the contents, in a stand-in for the
//! kernel's structures.
//!
//! The stand-in puts every field elsewhere than the object's own types do, so an instruction that was not relocated, or
//! was relocated to another field, reads something else. Connections have another destination before DNAT and another
//! source after SNAT than the flow that is asked about, so a program that reads the wrong tuple is found out.
//!
//! The instructions run as machine code (`compiled`); an `interpreter` reads them one by one where that cannot be,
//! and in tests, which hold the two against each other.
//!
//! [`permitted`](netpolc_ir::proof::Artifact::permitted) runs the program once for each pair of things that the maps
//! know about the two addresses, if the program is the one that this version emits (`answers`). Any other program is
//! run for every pair of addresses, and its constants count as addresses, ports and protocols that it may tell apart.

mod answers;
mod compiled;
mod constants;
mod interpreter;
mod maps;
mod memory;
mod packet;

use crate::asm::Field;
use crate::contents::Established;
use crate::decode::{Artifact as Decoded, DecodeError, LinkError, Program};
use crate::insn::Insn;
use crate::layout::{self, Map};
use crate::program;
use answers::{Answers, Known};
use compiled::Code;
use maps::Maps;
use netpolc_bundle::bpf::Pair;
use netpolc_ir::addr::{Family, bits};
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::{Artifact, Atoms, Bounds, Conn, Constants, Kind, Packet};
use netpolc_ir::unit::{Direction, Flow, Verdict};
use packet::{Case, Entry, Kernel};
use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

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
pub struct Outcome {
    /// The value of r0.
    pub result: u64,
    /// What was added to a counter, the last time that something was.
    pub counted: Option<Counted>,
}

/// An addition to a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// The key in [`Map::Denied`].
    pub key: u32,
    /// How much.
    pub amount: u64,
}

/// A number that no pod has.
const NOBODY: u32 = layout::SHARED - 1;

/// A program that is linked with the stand-in kernel.
#[derive(Debug)]
struct Linked {
    established: Established,
    slots: Vec<Option<Insn>>,
    /// The instructions as machine code; without it they are interpreted.
    code: Option<Arc<Code>>,
    /// Whether it is the one that this version emits.
    known: bool,
}

/// An artifact that can be asked about packets.
#[derive(Debug)]
pub struct Machine {
    program: Linked,
    /// Another program that asks the same maps: it is asked the same.
    twin: Option<Linked>,
    /// The first packet that the other one judges otherwise.
    apart: Cell<Option<Packet>>,
    maps: Maps,
    answers: Answers,
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
        let program = Linked::new(artifact)?;
        let mut maps = Maps::new(&artifact.shapes);
        for entry in artifact.contents.entries() {
            maps.insert(entry.map, &entry.key, &entry.value);
        }
        Ok(Machine { program, twin: None, apart: Cell::new(None), maps, answers: Answers::default() })
    }

    /// Both programs of a bundle as one machine: the one that cuts answers, and each time that it runs, the other one runs
    /// too. They must agree ([`Machine::apart`]). So what is proven of one is proven of both, for the price of little more than
    /// one: what the first cannot tell apart, the second cannot either. `None` if they have other maps, or are not those that
    /// this version emits: then each must be asked by itself.
    ///
    /// # Errors
    /// As [`Machine::new`].
    pub fn of_both(pair: &Pair) -> Result<Option<Machine>, LinkError> {
        let Pair { cut, keep } = pair;
        let order = (cut.established, keep.established) == (Established::Cut, Established::Keep);
        if !order || cut.shapes != keep.shapes || cut.contents != keep.contents {
            return Ok(None);
        }
        let (machine, twin) = (Machine::new(cut)?, Linked::new(keep)?);
        let known = machine.program.known && twin.known;
        Ok(known.then_some(Machine { twin: Some(twin), ..machine }))
    }

    /// Of two programs that are asked the same, the first packet on which they did not agree.
    pub fn apart(&self) -> Option<Packet> {
        self.apart.get()
    }

    /// From here on instructions are interpreted one by one: slower, and independent of the compiler.
    pub fn interpret(&mut self) {
        [Some(&mut self.program), self.twin.as_mut()]
            .into_iter()
            .flatten()
            .for_each(|linked| linked.code = None);
    }

    /// Whether instructions run as machine code, and are not interpreted.
    pub fn is_compiled(&self) -> bool {
        self.program.code.is_some()
    }

    /// Puts an entry into a map, over the one that is there. Keys and values of a wrong size, and keys beyond the end
    /// of an array, are left out, as the kernel refuses them.
    pub fn set(&mut self, map: Map, key: &[u8], value: &[u8]) {
        self.answers = Answers::default();
        self.maps.insert(map, key, value);
    }

    /// Takes an entry out of a map; an entry of an array becomes zeros.
    pub fn unset(&mut self, map: Map, key: &[u8]) {
        self.answers = Answers::default();
        self.maps.remove(map, key);
    }

    /// Every run that it takes to decide about a packet, in order.
    pub fn outcomes(&self, packet: &Packet) -> Vec<Result<Outcome, Fault>> {
        let mut outcomes = Vec::new();
        self.judge(self.program.established, packet, |case| {
            let outcome = self.program.outcome(&self.maps, &Kernel::new(case));
            outcomes.push(outcome);
            verdict(outcome).unwrap_or(Verdict::Deny)
        });
        outcomes
    }

    /// The first packet of a connection, from where its source lives.
    fn opening(&self, flow: Flow) -> Case {
        let pod = Known::pod_of(&self.maps, flow.src);
        Case {
            flow,
            entry: Entry::Connection { state: program::IP_CT_NEW as u64, begun: true },
            interface: (pod != 0).then_some(pod),
            icmp_type: 0,
            hops: 63,
        }
    }

    /// What one of the programs does with a packet.
    fn judged_by(&self, program: &Linked, packet: &Packet) -> Verdict {
        self.judge(program.established, packet, |case| program.verdict(&self.maps, case))
    }

    /// The verdict on a packet, from those on the cases that it stands for.
    fn judge(
        &self,
        established: Established,
        packet: &Packet,
        mut verdict: impl FnMut(&Case) -> Verdict,
    ) -> Verdict {
        let flow = packet.flow;
        let case = self.opening(flow);
        let interface = match packet {
            Packet { spoofed: true, .. } => Some(NOBODY),
            Packet { asymmetric: true, .. } => None,
            _ => case.interface,
        };
        match packet.conn {
            Conn::Established => self.established(established, flow, [0, 3], verdict),
            Conn::Related => self.established(established, flow, [1, 4], verdict),
            Conn::Untracked => {
                // Unable to track it, and told not to.
                let nfct = [0, u64::from(program::IP_CT_UNTRACKED as u32)];
                let mut without = |nfct, (icmp_type, hops)| {
                    verdict(&Case { entry: Entry::None { nfct }, interface, icmp_type, hops, ..case })
                };
                // Neighbour solicitation, as a host sends it and as a router has forwarded it.
                let (solicitation, forwarded) = ((135, 255), (135, 254));
                if packet.neighbour_discovery {
                    return Verdict::allow_if(
                        nfct.map(|nfct| without(nfct, solicitation)) == [Verdict::Allow; 2],
                    );
                }
                // The program cannot tell other protocols: without an entry there are addresses alone. TCP stands for the one
                // value, others for the other.
                let what =
                    if flow.protocol == Protocol::ICMPV6 { forwarded } else { (case.icmp_type, case.hops) };
                without(nfct[usize::from(flow.protocol != Protocol::TCP)], what)
            }
            Conn::New => {
                let begun = packet.opens || !flow.protocol.has_handshake();
                let entry = Entry::Connection { state: program::IP_CT_NEW as u64, begun };
                verdict(&Case { entry, interface, ..case })
            }
        }
    }

    /// Whether an established packet, and a reply, get what their connection deserves: with `keep` they pass, with
    /// `cut` they get the verdict of the packet that opened the connection, which either end may have sent.
    fn established(
        &self,
        established: Established,
        flow: Flow,
        states: [u64; 2],
        mut verdict: impl FnMut(&Case) -> Verdict,
    ) -> Verdict {
        let back = Flow { src: flow.dst, dst: flow.src, ..flow };
        let mut fine = true;
        for (original, state) in [(flow, states[0]), (back, states[1])] {
            let entry = Entry::Connection { state, begun: false };
            let actual = verdict(&Case { flow: original, entry, interface: None, icmp_type: 0, hops: 63 });
            let wanted = match established {
                Established::Keep => Verdict::Allow,
                Established::Cut => verdict(&self.opening(original)),
            };
            fine &= actual == wanted;
        }
        Verdict::allow_if(fine)
    }

    /// Whether a packet of a kind passes between an address and a peer.
    fn passes(
        &self,
        local: IpAddr,
        peer: IpAddr,
        direction: Direction,
        kind: Kind,
        cell: ProtocolPort,
    ) -> bool {
        let (src, dst) = match direction {
            Direction::Ingress => (peer, local),
            Direction::Egress => (local, peer),
        };
        let (protocol, port) = cell;
        self.decide(&kind.packet(Flow { src, dst, protocol, port })) == Verdict::Allow
    }
}

/// A protocol and a port.
type ProtocolPort = (Protocol, u16);

/// The verdict of a run.
fn verdict(outcome: Result<Outcome, Fault>) -> Result<Verdict, Fault> {
    match outcome?.result {
        program::NF_ACCEPT => Ok(Verdict::Allow),
        program::NF_DROP => Ok(Verdict::Deny),
        other => Err(Fault::Verdict(other)),
    }
}

impl Linked {
    fn new(artifact: &Decoded) -> Result<Linked, LinkError> {
        let Decoded { established, program, .. } = artifact;
        let slots = link(program)?;
        let known = known_program(*established, program);
        Ok(Linked { established: *established, code: compiled::code(&slots), slots, known })
    }

    fn outcome(&self, maps: &Maps, kernel: &Kernel) -> Result<Outcome, Fault> {
        match &self.code {
            Some(code) => code.run(maps, kernel),
            None => interpreter::run(&self.slots, maps, kernel),
        }
    }

    /// What it does with a packet that the stand-in kernel describes; a fault drops.
    fn verdict(&self, maps: &Maps, case: &Case) -> Verdict {
        verdict(self.outcome(maps, &Kernel::new(case))).unwrap_or(Verdict::Deny)
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

impl Artifact for Machine {
    fn addresses(&self, family: Family) -> Constants {
        constants::addresses(self, family)
    }

    fn ports(&self) -> Bounds {
        constants::ports(self)
    }

    fn ports_of(&mut self, atoms: &Atoms, local: IpAddr) -> Option<Rc<Bounds>> {
        self.answers.ports_of(&self.maps, atoms, local)
    }

    fn begin(&mut self, atoms: &Atoms) {
        self.answers = if self.program.known { Answers::new(&self.maps, atoms) } else { Answers::default() };
    }

    fn permitted(
        &mut self,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        protocol: Protocol,
        port: u16,
    ) -> BitSet {
        self.permitted_kind(atoms, local, direction, Kind::Opening, protocol, port).unwrap_or_else(|| {
            // The address itself may stand for its atom; what is asked is about the others in it.
            let peer = |i| atoms.family().addr(atoms.other_than(i, bits(local)));
            let passes = |i| self.passes(local, peer(i), direction, Kind::Opening, (protocol, port));
            (0..atoms.len()).map(|i| (i, passes(i))).collect()
        })
    }

    fn permitted_kind(
        &mut self,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        kind: Kind,
        protocol: Protocol,
        port: u16,
    ) -> Option<BitSet> {
        // Taken out for as long as they are extended, which asks the rest of the machine.
        let mut answers = std::mem::take(&mut self.answers);
        let permitted = answers.permitted(self, atoms, local, direction, kind, (protocol, port));
        self.answers = answers;
        permitted
    }

    /// Any other program may do with an address what it likes.
    fn goes_by_atoms(&self) -> bool {
        self.program.known
    }

    fn decide(&self, packet: &Packet) -> Verdict {
        let verdict = self.judged_by(&self.program, packet);
        if let Some(twin) = &self.twin
            && self.apart.get().is_none()
            && self.judged_by(twin, packet) != verdict
        {
            self.apart.set(Some(*packet));
        }
        verdict
    }

    fn decide_alike(&mut self, packet: &Packet) -> Verdict {
        let mut answers = std::mem::take(&mut self.answers);
        let verdict = answers.single(self, packet);
        self.answers = answers;
        verdict.unwrap_or_else(|| self.decide(packet))
    }
}

#[cfg(test)]
mod tests;
