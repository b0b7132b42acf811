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

use netpolc_bundle::nft::{self, Elements, Key, ParseError, Ruleset, Set, Table};
use netpolc_ir::addr::Family;
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::{Artifact, Atoms, Bounds, Constants, Packet};
use netpolc_ir::unit::{Direction, Verdict};
use std::net::IpAddr;

/// A ruleset that can be asked about packets.
#[derive(Debug)]
pub struct Machine {
    ruleset: Ruleset,
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
    pub fn new(ruleset: Ruleset) -> Machine {
        Machine { ruleset, run: None }
    }

    /// The rules.
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
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

/// Whether an element's key has a value in its place.
fn key_has(key: &Key, value: &Value) -> bool {
    match (key, value) {
        (Key::Addr(lo, hi), Value::Addr(addr)) => (lo..=hi).contains(&addr),
        (Key::Proto(number), Value::Proto(value)) => number == value,
        (Key::Service(lo, hi), Value::Port(port)) => (lo..=hi).contains(&port),
        _ => false,
    }
}

/// A value that was read from a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Addr(u128),
    Proto(u8),
    Port(u16),
    /// The interface of some pod.
    PodInterface,
    /// The packet has no such field: no element matches, and nft breaks off the rule.
    Absent,
}

/// The port that `th dport` reads: packets of protocols without ports have none. (The kernel would read the bytes in
/// that place; the script never looks at them without a match on the protocol, which `ports_*` keys include.)
fn port_value(protocol: Protocol, port: u16) -> Value {
    match protocol {
        Protocol::Transport(_) => Value::Port(port),
        Protocol::Other(_) => Value::Absent,
    }
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
        let family = atoms.family();
        let Some(table) = self.ruleset.tables.get(&nft_family(family)) else {
            return BitSet::full(atoms.len());
        };
        let run = self.run.get_or_insert_with(|| symbolic::Run::new(table));
        run.permitted(table, atoms, local, direction, protocol, port)
    }

    fn decide(&self, packet: &Packet) -> Verdict {
        match self.table(Family::of(packet.flow.dst)) {
            Some(table) => packet::decide(table, nft_family(Family::of(packet.flow.dst)), packet),
            None => Verdict::Allow,
        }
    }
}

/// The element of a set or map that has these values: its verdict, if it is a map.
fn find_element<'s>(set: &'s Set, values: &[Value]) -> Option<&'s Option<nft::Verdict>> {
    const IN_SET: &Option<nft::Verdict> = &None;
    match (&set.elements, values) {
        (Elements::Addrs(list), [Value::Addr(addr)]) => list.binary_search(addr).ok().map(|_| IN_SET),
        (Elements::Addrs(_), _) => None,
        (Elements::General(elements), values) if set.interval => {
            let has = |keys: &[Key]| {
                keys.len() == values.len() && keys.iter().zip(values).all(|(k, v)| key_has(k, v))
            };
            elements.iter().find(|(keys, _)| has(keys)).map(|(_, verdict)| verdict)
        }
        (Elements::General(elements), values) => {
            let key = |value: &Value| match value {
                Value::Addr(a) => Some(Key::Addr(*a, *a)),
                Value::Proto(p) => Some(Key::Proto(*p)),
                Value::Port(p) => Some(Key::Service(*p, *p)),
                Value::PodInterface | Value::Absent => None,
            };
            elements.get(&values.iter().map(key).collect::<Option<Vec<Key>>>()?)
        }
    }
}
