//! Texts -> what they do with packets. Independent of `select` and `emit`: it starts from the bytes, reads them with the
//! strict parser of the bundle crate, and runs the rules as the kernel does: a packet passes if neither `PREROUTING` in
//! `mangle` nor `FORWARD` in `filter` drops it, each of which jumps to our entry first.
//!
//! [`Machine::decide`](netpolc_ir::proof::Artifact::decide) runs one packet through the rules. [`permitted`] runs all
//! peers of one pod through them at once: the state is a set of atoms, a rule splits it into those that match and
//! those that do not. A tree of chains that look at one address only is read as the function that it is: from stretches of
//! addresses to where they lead. So it does not matter to the proof how deep the tree is, and addresses are told apart
//! by where they lead, not by the branches that lead there.
//!
//! That the texts are loaded in an order in which no packet sees half of them is `emit`'s and the loader's promise
//! ([`crate::emit`]); what is decoded here is the state after the last step.
//!
//! [`permitted`]: netpolc_ir::proof::Artifact::permitted

mod names;
mod packet;
mod program;
mod reach;
mod segments;
mod symbolic;

use netpolc_bundle::ipt::run::Script;
use netpolc_bundle::ipt::{self, CheckError, End, Family, ParseError, Ruleset, Texts};
use netpolc_ir::addr;
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::{Artifact, Atoms, Bounds, Constants, Kind, Packet};
use netpolc_ir::unit::{Direction, Verdict};
use program::{Program, Situation};
use reach::Reach;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

/// Why texts cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They are not in the subset that netpolc emits.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// They do not fit together.
    #[error(transparent)]
    Check(#[from] CheckError),
}

/// A ruleset that can be asked about packets.
#[derive(Debug)]
pub struct Machine {
    ruleset: Arc<Ruleset>,
    /// For packets one by one.
    script: Script,
    /// For each family and each situation of packets: for sets of packets.
    programs: [Vec<Part>; 2],
    /// For each family, the atoms that were begun with last, to tell which sources are pods of the node.
    atoms: [Option<Atoms>; 2],
}

/// The rules as packets of one situation meet them.
#[derive(Debug)]
struct Part {
    situation: Situation,
    program: Program,
    run: symbolic::Run,
    /// The ports that the rules of each chain name, once it is asked.
    named: Option<Vec<Bounds>>,
}

/// Reads the texts of an artifact back.
///
/// # Errors
/// If they are not in the subset that netpolc emits, or do not fit together.
pub fn decode(texts: &Texts<'_>) -> Result<Machine, DecodeError> {
    Ok(Machine::new(ipt::parse(texts)?)?)
}

impl Machine {
    /// From a ruleset, for example one that was read from a kernel.
    ///
    /// # Errors
    /// If its parts do not fit together ([`ipt::check`]).
    pub fn new(ruleset: impl Into<Arc<Ruleset>>) -> Result<Machine, CheckError> {
        let ruleset = ruleset.into();
        ipt::check(&ruleset)?;
        let script = Script::new(&ruleset);
        let programs = Family::ALL.map(|family| {
            let sets = program::sets(&ruleset, family);
            let part = |situation| {
                let program = Program::new(&ruleset, family, situation, &sets);
                Part { situation, program, run: symbolic::Run::default(), named: None }
            };
            Situation::all(family).map(part).collect()
        });
        Ok(Machine { ruleset, script, programs, atoms: [None, None] })
    }

    /// The atoms whose packets pass in every situation of their kind.
    fn run(
        &mut self,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        kind: Kind,
        cell: (Protocol, u16),
    ) -> BitSet {
        let mut passes = BitSet::full(atoms.len());
        let parts = self.programs[atoms.family() as usize].iter_mut();
        for Part { program, run, .. } in parts.filter(|part| part.situation.kind == kind) {
            passes.and_with(&run.permitted(program, atoms, addr::bits(local), direction, cell));
        }
        passes
    }

    /// The rules.
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }
}

impl Artifact for Machine {
    fn addresses(&self, family: addr::Family) -> Constants {
        names::addresses(self.programs[family as usize].iter().map(|part| &part.program))
    }

    fn ports(&self) -> Bounds {
        let mut bounds = Bounds::default();
        self.programs.iter().flatten().for_each(|part| names::ports(&part.program, &mut bounds));
        bounds
    }

    fn ports_of(&mut self, atoms: &Atoms, local: IpAddr) -> Option<Rc<Bounds>> {
        let mut bounds = Bounds::default();
        // Packets of other kinds are asked about on one port.
        let asked = |part: &&mut Part| {
            matches!(part.situation.kind, Kind::Opening | Kind::Asymmetric | Kind::Spoofed)
        };
        for Part { program, named, .. } in self.programs[atoms.family() as usize].iter_mut().filter(asked) {
            let named = named.get_or_insert_with(|| reach::named(program));
            for end in [End::Dst, End::Src] {
                let reach = Reach { program, atoms, end, fixed: addr::bits(local) };
                reach.add_ports(named, &mut bounds);
            }
        }
        Some(Rc::new(bounds))
    }

    fn begin(&mut self, atoms: &Atoms) {
        self.atoms[atoms.family() as usize] = Some(atoms.clone());
        self.programs.iter_mut().flatten().for_each(|part| part.run = symbolic::Run::default());
    }

    fn permitted(
        &mut self,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        protocol: Protocol,
        port: u16,
    ) -> BitSet {
        self.run(atoms, local, direction, Kind::Opening, (protocol, port))
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
        // There is none under IPv4, so nobody asks.
        let asked = self.programs[atoms.family() as usize].iter().any(|part| part.situation.kind == kind);
        asked.then(|| self.run(atoms, local, direction, kind, (protocol, port)))
    }

    fn decide(&self, packet: &Packet) -> Verdict {
        let src = packet.flow.src;
        let atoms = &self.atoms[addr::Family::of(src) as usize];
        let local = atoms.as_ref().is_some_and(|atoms| atoms.local(atoms.atom(addr::bits(src))));
        Verdict::allow_if(self.script.passes(&self.ruleset.sets, &packet::at_forward(packet, local)))
    }
}
