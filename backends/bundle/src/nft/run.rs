//! One packet through a ruleset, as `nft_do_chain` (`net/netfilter/nf_tables_core.c`) of the kernel runs it.
//!
//! Data in, verdict out. The compiler's proof and the loader both ask here, so that they mean the same by a script. The
//! ruleset must be one that [`check`](super::check()) accepts: chains that jump in a circle would never end.

use super::{Elements, Family, Field, Key, LOCAL, Match, Outcome, Rule, Ruleset, Set, Table, Verdict};
use crate::limits::{CHAIN_DEPTH, FIELDS};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// TCP, UDP and SCTP: the protocols whose ports rules look at.
const WITH_PORTS: [u8; 3] = [TCP, 17, SCTP];

const TCP: u8 = 6;
const SCTP: u8 = 132;

/// What conntrack says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The first packet of a connection.
    New,
    /// Part of a connection.
    Established,
    /// An error about a connection.
    Related,
    /// Nothing that conntrack can place.
    Untracked,
}

/// A packet at the forward hook: after destination NAT and before source NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// The source.
    pub src: IpAddr,
    /// The destination.
    pub dst: IpAddr,
    /// The IP protocol's number.
    pub protocol: u8,
    /// The destination's port; without meaning for protocols other than TCP, UDP and SCTP.
    pub dport: u16,
    /// Its state.
    pub state: State,
    /// For TCP: whether it is a SYN without ACK, RST and FIN; for SCTP: whether its first chunk is INIT. Without meaning for
    /// other protocols.
    pub opens: bool,
    /// Whether it came from a pod's interface with a source that is not that pod's address.
    pub spoofed: bool,
    /// Whether it came from an interface that is no pod's and not the way back to its source.
    pub asymmetric: bool,
    /// Whether it came from the interface of the pod that has its source. Rules of nftables tell that by their sets.
    pub from_pod: bool,
    /// Whether it is IPv6 neighbour discovery with a hop limit of 255.
    pub neighbour_discovery: bool,
}

impl Packet {
    /// The packet that opens a connection, from where it should come from.
    pub fn opening(src: IpAddr, dst: IpAddr, protocol: u8, dport: u16) -> Packet {
        Packet {
            src,
            dst,
            protocol,
            dport,
            state: State::New,
            opens: true,
            spoofed: false,
            asymmetric: false,
            from_pod: false,
            neighbour_discovery: false,
        }
    }
}

/// The chains of each table that have a hook, in the order of their priorities: where every packet begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bases(BTreeMap<Family, Vec<String>>);

impl Bases {
    /// The base chains of a ruleset, to be found once for many packets.
    pub fn of(ruleset: &Ruleset) -> Bases {
        let bases = |table: &Table| {
            let mut bases: Vec<(i32, String)> =
                table.chains.iter().filter_map(|(n, c)| Some((c.hook?.priority, n.clone()))).collect();
            bases.sort();
            bases.into_iter().map(|(_, name)| name).collect()
        };
        Bases(ruleset.tables.iter().map(|(family, table)| (*family, bases(table))).collect())
    }
}

/// Whether a packet passes the rules of its family: every base chain must accept it. Without a table of that family it
/// passes.
pub fn passes(ruleset: &Ruleset, bases: &Bases, packet: &Packet) -> bool {
    let family = if packet.dst.is_ipv4() { Family::Ip } else { Family::Ip6 };
    let Some(table) = ruleset.tables.get(&family) else { return true };
    let bases = bases.0.get(&family).map(Vec::as_slice).unwrap_or_default();
    bases.iter().filter_map(|name| table.chains.get(name)).all(|c| run(table, family, &c.rules, packet))
}

fn run(table: &Table, family: Family, base: &[Rule], packet: &Packet) -> bool {
    let mut stack: Vec<std::slice::Iter<'_, Rule>> = Vec::new();
    let mut rules = base.iter();
    loop {
        let Some(rule) = rules.next() else {
            match stack.pop() {
                Some(caller) => rules = caller,
                None => return true,
            }
            continue;
        };
        let Some(verdict) = outcome(table, family, rule, packet) else { continue };
        let chain = |name: &str| table.chains.get(name).map(|c| c.rules.iter());
        match verdict {
            Verdict::Accept => return true,
            Verdict::Drop => return false,
            Verdict::Return => rules = [].iter(),
            Verdict::Goto(name) => rules = chain(name).unwrap_or_else(|| [].iter()),
            Verdict::Jump(name) if stack.len() < CHAIN_DEPTH => {
                stack.push(rules);
                rules = chain(name).unwrap_or_else(|| [].iter());
            }
            // The kernel drops what jumps too deep; such a script is refused when it is parsed.
            Verdict::Jump(_) => return false,
        }
    }
}

/// The verdict of a rule; `None` if it does not match.
fn outcome<'t>(table: &'t Table, family: Family, rule: &'t Rule, packet: &Packet) -> Option<&'t Verdict> {
    if !rule.matches.iter().all(|m| matches(table, family, m, packet)) {
        return None;
    }
    match &rule.outcome {
        Outcome::Verdict(verdict) => Some(verdict),
        Outcome::Vmap(fields, map) => {
            find_element(table.sets.get(map)?, values(fields, family, packet).as_slice())
                .and_then(Option::as_ref)
        }
    }
}

fn matches(table: &Table, family: Family, condition: &Match, packet: &Packet) -> bool {
    match condition {
        Match::InSet(fields, name) => {
            let Some(set) = table.sets.get(name) else { return false };
            match values(fields, family, packet).as_slice() {
                // The loader fills this set with the interfaces of all pods.
                [Value::PodInterface] => packet.spoofed || from_its_pod(table, packet),
                values => find_element(set, values).is_some(),
            }
        }
        Match::L4Proto(number) => packet.protocol == *number,
        Match::NotEstablished => !matches!(packet.state, State::Established | State::Related),
        Match::NotTracked => packet.state == State::Untracked,
        Match::TcpNotSyn => packet.protocol == TCP && !packet.opens,
        Match::SctpNotInit => packet.protocol == SCTP && !packet.opens,
        Match::Unbound => !from_its_pod(table, packet),
        Match::ReversePathFails => packet.spoofed || packet.asymmetric,
        Match::NeighbourDiscovery => packet.neighbour_discovery,
    }
}

/// Whether a packet comes from the interface of the pod that has its source. A source that no pod of the node has comes
/// from elsewhere if it is honest.
fn from_its_pod(table: &Table, packet: &Packet) -> bool {
    let local = || find_element(table.sets.get(LOCAL)?, &[Value::Addr(bits(packet.src))]);
    !packet.spoofed && !packet.asymmetric && local().is_some()
}

/// A value that was read from a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// An address, as a number in host order.
    Addr(u128),
    /// A protocol's number.
    Proto(u8),
    /// A port.
    Port(u16),
    /// The interface of some pod.
    PodInterface,
    /// The packet has no such field: no element matches, and nft breaks off the rule.
    Absent,
}

impl Value {
    /// The port that `th dport` reads: packets of protocols without ports have none. (The kernel would read the bytes
    /// in that place; the script never looks at them without a match on the protocol, which `ports_*` keys include.)
    pub fn port(protocol: u8, port: u16) -> Value {
        if WITH_PORTS.contains(&protocol) { Value::Port(port) } else { Value::Absent }
    }
}

/// The values of a concatenation.
struct Values {
    list: [Value; FIELDS],
    len: usize,
}

impl Values {
    fn as_slice(&self) -> &[Value] {
        &self.list[..self.len]
    }
}

/// Reads fields from a packet. The parser takes at most [`FIELDS`] in one lookup.
fn values(fields: &[Field], family: Family, packet: &Packet) -> Values {
    let value = |field: &Field| match field {
        Field::Saddr => Value::Addr(bits(packet.src)),
        Field::Daddr => Value::Addr(bits(packet.dst)),
        Field::SaddrPrefix(len) => Value::Addr(bits(packet.src) & mask(family, *len)),
        Field::DaddrPrefix(len) => Value::Addr(bits(packet.dst) & mask(family, *len)),
        Field::L4Proto => Value::Proto(packet.protocol),
        Field::Dport => Value::port(packet.protocol, packet.dport),
        Field::Iifname => Value::PodInterface,
    };
    let mut values = Values { list: [Value::Absent; FIELDS], len: fields.len().min(FIELDS) };
    values.list.iter_mut().zip(fields).for_each(|(slot, field)| *slot = value(field));
    values
}

/// An address as a number in host order.
pub fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u32::from(addr).into(),
        IpAddr::V6(addr) => addr.into(),
    }
}

/// The mask of a prefix length, as a number in host order.
pub fn mask(family: Family, len: u8) -> u128 {
    let all = u128::MAX >> (128 - family.bits());
    let hosts = family.bits().saturating_sub(u32::from(len));
    all & u128::MAX.checked_shl(hosts).unwrap_or(0)
}

/// Whether an element's key has a value in its place.
pub fn key_has(key: &Key, value: &Value) -> bool {
    match (key, value) {
        (Key::Addr(lo, hi), Value::Addr(addr)) => (lo..=hi).contains(&addr),
        (Key::Proto(number), Value::Proto(value)) => number == value,
        (Key::Service(lo, hi), Value::Port(port)) => (lo..=hi).contains(&port),
        _ => false,
    }
}

/// The element of a set or map that has these values: its verdict, if it is a map.
pub fn find_element<'s>(set: &'s Set, values: &[Value]) -> Option<&'s Option<Verdict>> {
    const IN_SET: &Option<Verdict> = &None;
    match (&set.elements, values) {
        (Elements::Addrs(list), [Value::Addr(addr)]) => list.binary_search(addr).ok().map(|_| IN_SET),
        (Elements::Addrs(_), _) => None,
        (Elements::General(elements), [value]) if set.interval => {
            // Ranges of one field never overlap, as `check` makes sure and the kernel demands: the last that begins at
            // the value or before it is the only one that can have it.
            let upto = match value {
                Value::Addr(addr) => Key::Addr(*addr, u128::MAX),
                Value::Proto(number) => Key::Proto(*number),
                Value::Port(port) => Key::Service(*port, u16::MAX),
                Value::PodInterface | Value::Absent => return None,
            };
            let (keys, verdict) = elements.range(..=vec![upto]).next_back()?;
            keys.first().is_some_and(|key| key_has(key, value)).then_some(verdict)
        }
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
            let mut keys: [Key; FIELDS] = std::array::from_fn(|_| Key::Proto(0));
            let keys = keys.get_mut(..values.len())?;
            for (slot, value) in keys.iter_mut().zip(values) {
                *slot = key(value)?;
            }
            elements.get(&*keys)
        }
    }
}
