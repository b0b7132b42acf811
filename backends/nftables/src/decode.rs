//! Script -> what it does with packets. Independent of `select` and `emit`: it starts from the bytes, reads them with
//! the strict parser of the bundle crate, and runs the rules as the kernel does.
//!
//! [`Machine::decide`](netpolc_ir::proof::Artifact::decide) runs one packet through the rules. [`permitted`] runs all
//! peers of one pod through them at once: the state is a set of atoms, a rule splits it into those that match and
//! those that do not. What a chain does with all peers is remembered for each protocol and port, so a chain that a
//! hundred pods share is run once.
//!
//! [`permitted`]: netpolc_ir::proof::Artifact::permitted

mod names;
mod packet;
mod symbolic;

use netpolc_bundle::nft::run::{self, Value, find_element, key_has};
use netpolc_bundle::nft::{self, ParseError, Ruleset, Table};
use netpolc_ir::addr::Family;
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::{Artifact, Atoms, Bounds, Constants, Kind, Packet};
use netpolc_ir::unit::{Direction, Verdict};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

/// A ruleset that can be asked about packets.
#[derive(Debug)]
pub struct Machine {
    ruleset: Arc<Ruleset>,
    bases: run::Bases,
    run: Option<symbolic::Run>,
}

/// Reads a script back.
///
/// # Errors
/// If the text is not in the subset of the nftables language that netpolc emits.
pub fn decode(script: &str) -> Result<Machine, ParseError> {
    Ok(Machine::new(nft::parse(script)?))
}

impl Machine {
    /// From a ruleset, for example one that was read from a kernel.
    pub fn new(ruleset: impl Into<Arc<Ruleset>>) -> Machine {
        let ruleset = ruleset.into();
        let bases = run::Bases::of(&ruleset);
        Machine { ruleset, bases, run: None }
    }

    /// The rules.
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// All peers of a pod through the rules.
    fn run(
        &mut self,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        cell: (Protocol, u16),
        kind: Kind,
    ) -> BitSet {
        let Some(table) = self.ruleset.tables.get(&nft_family(atoms.family())) else {
            return BitSet::full(atoms.len());
        };
        let run = self.run.get_or_insert_with(|| symbolic::Run::new(table));
        run.permitted(table, atoms, local, direction, cell, kind)
    }

    fn table(&self, family: Family) -> Option<&Table> {
        self.ruleset.tables.get(&nft_family(family))
    }
}

fn nft_family(family: Family) -> nft::Family {
    match family {
        Family::V4 => nft::Family::Ip,
        Family::V6 => nft::Family::Ip6,
    }
}

/// The port of a packet as rules read it.
fn port_value(protocol: Protocol, port: u16) -> Value {
    Value::port(protocol.number(), port)
}

impl Artifact for Machine {
    fn addresses(&self, family: Family) -> Constants {
        self.table(family).map(|table| names::addresses(table, nft_family(family))).unwrap_or_default()
    }

    fn ports(&self) -> Bounds {
        let mut bounds = Bounds::default();
        self.ruleset.tables.values().for_each(|table| names::ports(table, &mut bounds));
        bounds
    }

    fn ports_of(&mut self, atoms: &Atoms, local: IpAddr) -> Option<Rc<Bounds>> {
        let table = self.ruleset.tables.get(&nft_family(atoms.family()))?;
        let run = self.run.get_or_insert_with(|| symbolic::Run::new(table));
        Some(Rc::new(run.ports_of(table, atoms, local)))
    }

    fn begin(&mut self, atoms: &Atoms) {
        self.run = self.table(atoms.family()).map(symbolic::Run::new);
    }

    fn permitted(
        &mut self,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        protocol: Protocol,
        port: u16,
    ) -> BitSet {
        self.run(atoms, local, direction, (protocol, port), Kind::Opening)
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
        Some(self.run(atoms, local, direction, (protocol, port), kind))
    }

    fn decide(&self, packet: &Packet) -> Verdict {
        Verdict::allow_if(run::passes(&self.ruleset, &self.bases, &packet::at_forward(packet)))
    }
}
