//! All peers of one pod through the rules at once.
//!
//! One end of the packets is the pod, the other ranges over all atoms. A packet from an address to itself is not asked
//! for, so a set of pairs `a . a` matches nothing here.

use super::{Value, key_has, port_value};
use crate::emit::mask;
use netpolc_bundle::nft::{Elements, Family, Field, Key, Match, Outcome, Set, Table, Verdict};
use netpolc_ir::addr::{self, bits};
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::Atoms;
use netpolc_ir::unit::Direction;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

/// The end of the packets that ranges over all atoms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Axis {
    Src,
    Dst,
}

impl Axis {
    fn other(self) -> Axis {
        match self {
            Axis::Src => Axis::Dst,
            Axis::Dst => Axis::Src,
        }
    }
}

/// What a chain does with a set of packets.
#[derive(Debug, Clone)]
struct Out {
    accepted: BitSet,
    dropped: BitSet,
    returned: BitSet,
}

/// The packets in question: everything but the end that ranges.
#[derive(Debug, Clone, Copy)]
struct Case {
    axis: Axis,
    /// The fixed end; `None` while it is not known, to see whether a chain needs it.
    fixed: Option<u128>,
    protocol: Protocol,
    port: u16,
    family: Family,
}

/// A rule looked at the end that is not known.
struct NeedsFixed;

type Memo = (String, Axis, Protocol, u16);

/// A map on the axis, as sets of atoms by verdict.
type Groups = Rc<Vec<(Verdict, BitSet)>>;

/// What is remembered while the atoms stay the same.
#[derive(Debug, Default)]
pub(super) struct Run {
    members: HashMap<(String, Option<u8>), Rc<BitSet>>,
    groups: HashMap<(String, Option<u8>), Groups>,
    /// `None`: the chain needs to know the fixed end.
    chains: HashMap<Memo, Option<Rc<Out>>>,
}

impl Run {
    pub(super) fn permitted(
        &mut self,
        table: &Table,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        protocol: Protocol,
        port: u16,
    ) -> BitSet {
        let axis = match direction {
            Direction::Ingress => Axis::Src,
            Direction::Egress => Axis::Dst,
        };
        let family = match atoms.family() {
            addr::Family::V4 => Family::Ip,
            addr::Family::V6 => Family::Ip6,
        };
        let case = Case { axis, fixed: Some(bits(local)), protocol, port, family };
        let mut state = BitSet::full(atoms.len());
        let bases: Vec<&String> = table.chains.iter().filter(|(_, c)| c.hook.is_some()).map(|(n, _)| n).collect();
        for base in bases {
            // With the fixed end known, no chain asks for more.
            if let Ok(out) = (Walk { run: self, table, atoms, case }).chain(base, &state, 0) {
                state = state.minus(&out.dropped);
            }
        }
        state
    }
}

/// Chains are nested at most this deep; the parser has refused loops and deeper scripts.
const DEPTH: usize = 64;

struct Walk<'a> {
    run: &'a mut Run,
    table: &'a Table,
    atoms: &'a Atoms,
    case: Case,
}

impl Walk<'_> {
    fn with(&mut self, case: Case) -> Walk<'_> {
        Walk { run: self.run, table: self.table, atoms: self.atoms, case }
    }

    /// Runs a set of packets through a chain.
    fn chain(&mut self, name: &str, input: &BitSet, depth: usize) -> Result<Out, NeedsFixed> {
        let none = BitSet::empty(input.len());
        let mut out = Out { accepted: none.clone(), dropped: none.clone(), returned: none };
        let mut state = input.clone();
        let table = self.table;
        let Some(chain) = table.chains.get(name).filter(|_| depth < DEPTH) else {
            out.dropped = state;
            return Ok(out);
        };
        for rule in &chain.rules {
            if state.is_empty() {
                break;
            }
            let mut matched = state.clone();
            for condition in &rule.matches {
                matched = self.condition(condition, matched)?;
            }
            if matched.is_empty() {
                continue;
            }
            match &rule.outcome {
                Outcome::Verdict(verdict) => {
                    state = state.minus(&matched);
                    let back = self.apply(verdict, &matched, &mut out, depth)?;
                    state.or_with(&back);
                }
                Outcome::Vmap(fields, map) => {
                    for (verdict, hit) in self.lookup(fields, map, &matched)? {
                        state = state.minus(&hit);
                        let back = self.apply(&verdict, &hit, &mut out, depth)?;
                        state.or_with(&back);
                    }
                }
            }
        }
        out.returned.or_with(&state);
        Ok(out)
    }

    /// Applies a verdict to packets and returns those that go on with the next rule.
    fn apply(&mut self, verdict: &Verdict, matched: &BitSet, out: &mut Out, depth: usize) -> Result<BitSet, NeedsFixed> {
        match verdict {
            Verdict::Accept => out.accepted.or_with(matched),
            Verdict::Drop => out.dropped.or_with(matched),
            Verdict::Return => out.returned.or_with(matched),
            Verdict::Goto(chain) | Verdict::Jump(chain) => {
                let inner = self.remembered(chain, matched, depth + 1)?;
                out.accepted.or_with(&inner.accepted);
                out.dropped.or_with(&inner.dropped);
                if matches!(verdict, Verdict::Jump(_)) {
                    return Ok(inner.returned);
                }
                out.returned.or_with(&inner.returned);
            }
        }
        Ok(BitSet::empty(matched.len()))
    }

    /// Runs packets through a chain, by memory where the chain looks at one end only.
    fn remembered(&mut self, chain: &str, input: &BitSet, depth: usize) -> Result<Out, NeedsFixed> {
        if let Some(out) = self.whole(chain, self.case.axis, depth) {
            return Ok(Out {
                accepted: out.accepted.and(input),
                dropped: out.dropped.and(input),
                returned: out.returned.and(input),
            });
        }
        if let Some(fixed) = self.case.fixed
            && let Some(out) = self.whole(chain, self.case.axis.other(), depth)
        {
            let atom = self.atoms.atom(fixed);
            let all = |set: &BitSet| if set.contains(atom) { input.clone() } else { BitSet::empty(input.len()) };
            return Ok(Out { accepted: all(&out.accepted), dropped: all(&out.dropped), returned: all(&out.returned) });
        }
        self.chain(chain, input, depth)
    }

    /// What a chain does with all atoms on an axis, if it does not look at the other end.
    fn whole(&mut self, chain: &str, axis: Axis, depth: usize) -> Option<Rc<Out>> {
        let key = (chain.to_owned(), axis, self.case.protocol, self.case.port);
        if let Some(known) = self.run.chains.get(&key) {
            return known.clone();
        }
        let everything = BitSet::full(self.atoms.len());
        let case = Case { axis, fixed: None, ..self.case };
        let out = self.with(case).chain(chain, &everything, depth).ok().map(Rc::new);
        self.run.chains.insert(key, out.clone());
        out
    }

    fn condition(&mut self, condition: &Match, state: BitSet) -> Result<BitSet, NeedsFixed> {
        let none = BitSet::empty(state.len());
        Ok(match condition {
            Match::InSet(fields, name) => match self.table.sets.get(name) {
                Some(set) => {
                    let members = self.members(fields, name, set)?;
                    state.and(&members)
                }
                None => none,
            },
            Match::L4Proto(number) if self.case.protocol.number() != *number => none,
            // The packets in question are new.
            Match::L4Proto(_) | Match::NotEstablished => state,
            Match::CtInvalid | Match::TcpNotSyn | Match::ReversePathFails | Match::NeighbourDiscovery => none,
        })
    }

    /// The value of a field, or the prefix length that the axis is cut to.
    fn field(&self, field: &Field) -> Result<Side, NeedsFixed> {
        let (end, len) = match field {
            Field::Saddr => (Axis::Src, None),
            Field::Daddr => (Axis::Dst, None),
            Field::SaddrPrefix(len) => (Axis::Src, Some(*len)),
            Field::DaddrPrefix(len) => (Axis::Dst, Some(*len)),
            Field::L4Proto => return Ok(Side::Known(Value::Proto(self.case.protocol.number()))),
            Field::Dport => return Ok(Side::Known(port_value(self.case.protocol, self.case.port))),
            // The packets in question are not spoofed, so their interface is not looked at.
            Field::Iifname => return Ok(Side::Known(Value::Absent)),
        };
        if end == self.case.axis {
            return Ok(Side::Axis(len));
        }
        let fixed = self.case.fixed.ok_or(NeedsFixed)?;
        Ok(Side::Known(Value::Addr(len.map_or(fixed, |len| fixed & mask(self.case.family, len)))))
    }

    /// The atoms that are in a set.
    fn members(&mut self, fields: &[Field], name: &str, set: &Set) -> Result<Rc<BitSet>, NeedsFixed> {
        if let [Field::Saddr, Field::Daddr] | [Field::Daddr, Field::Saddr] = fields
            && diagonal(set)
        {
            return Ok(Rc::new(BitSet::empty(self.atoms.len())));
        }
        let sides = fields.iter().map(|f| self.field(f)).collect::<Result<Vec<Side>, NeedsFixed>>()?;
        let key = match sides.as_slice() {
            [Side::Axis(len)] => Some((name.to_owned(), *len)),
            _ => None,
        };
        if let Some(found) = key.as_ref().and_then(|k| self.run.members.get(k)) {
            return Ok(found.clone());
        }
        let bits = match (&set.elements, sides.as_slice()) {
            (Elements::Addrs(addrs), [Side::Axis(None)]) => self.atoms.of_addresses(addrs),
            (Elements::Addrs(addrs), [side]) => {
                let mut bits = BitSet::empty(self.atoms.len());
                for addr in addrs {
                    bits.or_with(&self.element(&[Key::Addr(*addr, *addr)], std::slice::from_ref(side)));
                }
                bits
            }
            (Elements::Addrs(_), _) => BitSet::empty(self.atoms.len()),
            (Elements::General(elements), sides) => {
                let mut bits = BitSet::empty(self.atoms.len());
                elements.keys().for_each(|keys| bits.or_with(&self.element(keys, sides)));
                bits
            }
        };
        let bits = Rc::new(bits);
        if let Some(key) = key {
            self.run.members.insert(key, bits.clone());
        }
        Ok(bits)
    }

    /// The atoms that one element matches.
    fn element(&self, keys: &[Key], sides: &[Side]) -> BitSet {
        let mut bits = BitSet::full(self.atoms.len());
        if keys.len() != sides.len() {
            return BitSet::empty(self.atoms.len());
        }
        for (key, side) in keys.iter().zip(sides) {
            let fits = match (side, key) {
                (Side::Known(value), key) => {
                    if key_has(key, value) {
                        continue;
                    }
                    BitSet::empty(self.atoms.len())
                }
                (Side::Axis(None), Key::Addr(lo, hi)) if lo == hi => self.atoms.of_addresses([lo]),
                (Side::Axis(len), key) => {
                    let cut = |addr: u128| len.map_or(addr, |len| addr & mask(self.case.family, len));
                    self.atoms.of_condition(|addr| key_has(key, &Value::Addr(cut(addr))))
                }
            };
            bits = bits.and(&fits);
        }
        bits
    }

    /// The verdicts of a map for some packets.
    fn lookup(&mut self, fields: &[Field], name: &str, input: &BitSet) -> Result<Vec<(Verdict, BitSet)>, NeedsFixed> {
        let table = self.table;
        let Some(set) = table.sets.get(name) else { return Ok(Vec::new()) };
        let Elements::General(elements) = &set.elements else { return Ok(Vec::new()) };
        let sides = fields.iter().map(|f| self.field(f)).collect::<Result<Vec<Side>, NeedsFixed>>()?;
        let known: Option<Vec<Value>> = sides.iter().map(Side::known).collect();
        if let Some(values) = known {
            let has = |keys: &[Key]| keys.len() == values.len() && keys.iter().zip(&values).all(|(k, v)| key_has(k, v));
            let single = self.exact_hit(set, &values);
            let hit = single.or_else(|| elements.iter().find(|(keys, _)| has(keys)).map(|(_, v)| v));
            return Ok(hit.and_then(|v| v.clone()).map(|v| (v, input.clone())).into_iter().collect());
        }
        let groups = match sides.as_slice() {
            [Side::Axis(len)] => {
                let key = (name.to_owned(), *len);
                match self.run.groups.get(&key) {
                    Some(groups) => groups.clone(),
                    None => {
                        let groups = Rc::new(self.group(elements, &sides));
                        self.run.groups.insert(key, groups.clone());
                        groups
                    }
                }
            }
            _ => Rc::new(self.group(elements, &sides)),
        };
        let hits = groups.iter().map(|(verdict, bits)| (verdict.clone(), bits.and(input)));
        Ok(hits.filter(|(_, bits)| !bits.is_empty()).collect())
    }

    /// The element of a hash map with exactly these values, without a search.
    fn exact_hit<'t>(&self, set: &'t Set, values: &[Value]) -> Option<&'t Option<Verdict>> {
        let Elements::General(elements) = &set.elements else { return None };
        let key = |value: &Value| match value {
            Value::Addr(a) => Some(Key::Addr(*a, *a)),
            Value::Proto(p) => Some(Key::Proto(*p)),
            Value::Port(p) => Some(Key::Service(*p, *p)),
            Value::PodInterface | Value::Absent => None,
        };
        elements.get(&values.iter().map(key).collect::<Option<Vec<Key>>>()?)
    }

    fn group(
        &self,
        elements: &std::collections::BTreeMap<Vec<Key>, Option<Verdict>>,
        sides: &[Side],
    ) -> Vec<(Verdict, BitSet)> {
        let mut groups: Vec<(Verdict, BitSet)> = Vec::new();
        let mut index: HashMap<&Verdict, usize> = HashMap::new();
        for (keys, verdict) in elements {
            let Some(verdict) = verdict else { continue };
            let i = *index.entry(verdict).or_insert_with(|| {
                groups.push((verdict.clone(), BitSet::empty(self.atoms.len())));
                groups.len() - 1
            });
            match (keys.as_slice(), sides) {
                ([Key::Addr(lo, hi)], [Side::Axis(None)]) if lo == hi => groups[i].1.insert(self.atoms.atom(*lo)),
                _ => groups[i].1.or_with(&self.element(keys, sides)),
            }
        }
        groups
    }
}

/// A field of the packets in question.
enum Side {
    Known(Value),
    /// The end that ranges, cut to a prefix length.
    Axis(Option<u8>),
}

impl Side {
    fn known(&self) -> Option<Value> {
        match self {
            Side::Known(value) => Some(*value),
            Side::Axis(_) => None,
        }
    }
}

/// Whether a set of pairs has only pairs `a . a`.
fn diagonal(set: &Set) -> bool {
    match &set.elements {
        Elements::Addrs(_) => false,
        Elements::General(elements) => elements
            .keys()
            .all(|keys| matches!(keys.as_slice(), [Key::Addr(a, b), Key::Addr(c, d)] if a == b && c == d && a == c)),
    }
}
