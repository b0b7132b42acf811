//! All peers of one pod through the rules at once.
//!
//! One end of the packets is the pod, the other ranges over all atoms. A packet from an address to itself is not asked
//! for, so a set of pairs `a . a` matches nothing here.

mod condition;
mod program;
mod reach;
mod side;

use super::{Value, find_element, key_has, port_value};
use netpolc_bundle::nft::run::mask;
use netpolc_bundle::nft::{Elements, Family, Field, Key, Set, Table, Verdict};
use netpolc_ir::addr::{self, bits};
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::{Atoms, Bounds, Kind};
use netpolc_ir::unit::Direction;
use program::{Action, Outcome, Program, SetId};
use rustc_hash::FxHashMap;
use side::Side;
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

/// What a chain does with a set of packets: every packet is in one of the three.
#[derive(Debug, Clone)]
struct Out {
    accepted: BitSet,
    dropped: BitSet,
    returned: BitSet,
}

impl Out {
    fn nothing(atoms: usize) -> Out {
        let none = BitSet::empty(atoms);
        Out { accepted: none.clone(), dropped: none.clone(), returned: none }
    }
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
    kind: Kind,
}

/// A rule looked at the end that is not known.
struct NeedsFixed;

/// A map on the axis, as sets of atoms by verdict.
type Groups = Rc<Vec<(Action, BitSet)>>;

/// What a whole chain does, once it is known.
#[derive(Debug, Clone)]
enum Memo {
    Unknown,
    /// It looks at both ends.
    NeedsBoth,
    Known(Rc<Out>),
}

/// What is remembered while the atoms stay the same.
#[derive(Debug)]
pub(super) struct Run {
    program: Program,
    members: FxHashMap<(SetId, Option<u8>), Rc<BitSet>>,
    groups: FxHashMap<(SetId, Option<u8>), Groups>,
    /// The atoms that live on the node.
    locals: Option<BitSet>,
    /// The ports that the rules of each chain name, once it is asked.
    named: Option<Vec<Bounds>>,
    /// The protocol and port that `chains` is about.
    cell: Option<(Protocol, u16)>,
    /// By kind of packet, by chain, for either axis.
    chains: [Vec<[Memo; 2]>; Kind::COUNT],
}

impl Run {
    pub(super) fn new(table: &Table) -> Run {
        Run {
            program: Program::new(table),
            members: FxHashMap::default(),
            groups: FxHashMap::default(),
            locals: None,
            named: None,
            cell: None,
            chains: Default::default(),
        }
    }

    pub(super) fn permitted(
        &mut self,
        table: &Table,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        (protocol, port): (Protocol, u16),
        kind: Kind,
    ) -> BitSet {
        let axis = match direction {
            Direction::Ingress => Axis::Src,
            Direction::Egress => Axis::Dst,
        };
        let family = match atoms.family() {
            addr::Family::V4 => Family::Ip,
            addr::Family::V6 => Family::Ip6,
        };
        if self.cell != Some((protocol, port)) {
            self.cell = Some((protocol, port));
            self.chains = Default::default();
        }
        if self.chains[kind as usize].is_empty() {
            self.chains[kind as usize] = vec![[Memo::Unknown, Memo::Unknown]; self.program.chains.len()];
        }
        let program = std::mem::take(&mut self.program);
        let case = Case { axis, fixed: Some(bits(local)), protocol, port, family, kind };
        let mut state = BitSet::full(atoms.len());
        for &base in &program.bases {
            let mut walk = Walk { run: self, program: &program, table, atoms, case };
            // With the fixed end known, no chain asks for more.
            if let Ok(out) = walk.chain(base, &state, 0) {
                state = state.minus(&out.dropped);
            }
        }
        self.program = program;
        state
    }
}

/// Chains are nested at most this deep; the parser has refused loops and deeper scripts.
const DEPTH: usize = 64;

struct Walk<'a> {
    run: &'a mut Run,
    program: &'a Program,
    table: &'a Table,
    atoms: &'a Atoms,
    case: Case,
}

impl Walk<'_> {
    /// Runs a set of packets through a chain.
    fn chain(&mut self, chain: usize, input: &BitSet, depth: usize) -> Result<Out, NeedsFixed> {
        let mut out = Out::nothing(input.len());
        let mut state = input.clone();
        let program = self.program;
        let Some(rules) = program.chains.get(chain).filter(|_| depth < DEPTH) else {
            out.dropped = state;
            return Ok(out);
        };
        for rule in rules {
            if state.is_empty() {
                break;
            }
            if rule.matches.iter().any(|(condition, set)| self.holds(condition, *set) == Some(false)) {
                continue;
            }
            let mut matched = state.clone();
            for (condition, set) in &rule.matches {
                if self.holds(condition, *set).is_none() {
                    self.condition(condition, *set, &mut matched)?;
                }
            }
            if matched.is_empty() {
                continue;
            }
            match &rule.outcome {
                Outcome::Action(action) => {
                    state.remove_all(&matched);
                    self.apply(*action, &matched, &mut out, &mut state, depth)?;
                }
                Outcome::Vmap(fields, map) => {
                    self.vmap(fields, *map, matched, &mut out, &mut state, depth)?
                }
            }
        }
        out.returned.or_with(&state);
        Ok(out)
    }

    /// Applies the verdicts of a map to the packets that a rule matches.
    fn vmap(
        &mut self,
        fields: &[Field],
        map: SetId,
        matched: BitSet,
        out: &mut Out,
        state: &mut BitSet,
        depth: usize,
    ) -> Result<(), NeedsFixed> {
        let sides = self.sides(fields)?;
        if let Some(values) = sides.iter().map(Side::known).collect::<Option<Vec<Value>>>() {
            if let Some(action) = self.program.lookup(self.table, map, &values) {
                state.remove_all(&matched);
                self.apply(action, &matched, out, state, depth)?;
            }
            return Ok(());
        }
        let mut hit = matched.clone();
        for (action, group) in self.groups(map, &sides).iter() {
            hit.set_to_and(&matched, group);
            if !hit.is_empty() {
                state.remove_all(&hit);
                self.apply(*action, &hit, out, state, depth)?;
            }
        }
        Ok(())
    }

    /// Applies a verdict to packets; those that go on with the next rule are put back into `state`.
    fn apply(
        &mut self,
        action: Action,
        matched: &BitSet,
        out: &mut Out,
        state: &mut BitSet,
        depth: usize,
    ) -> Result<(), NeedsFixed> {
        let end = match action {
            Action::Accept => &mut out.accepted,
            Action::Drop => &mut out.dropped,
            Action::Return => &mut out.returned,
            Action::Goto(chain) => return self.enter(chain, false, matched, out, state, depth),
            Action::Jump(chain) => return self.enter(chain, true, matched, out, state, depth),
        };
        end.or_with(matched);
        Ok(())
    }

    /// Sends packets through another chain; if they come `back`, those that return go on with the next rule.
    fn enter(
        &mut self,
        chain: usize,
        back: bool,
        matched: &BitSet,
        out: &mut Out,
        state: &mut BitSet,
        depth: usize,
    ) -> Result<(), NeedsFixed> {
        if let Some(whole) = self.whole(chain, self.case.axis, depth + 1) {
            out.accepted.or_with_and(&whole.accepted, matched);
            out.dropped.or_with_and(&whole.dropped, matched);
            let returned = if back { state } else { &mut out.returned };
            returned.or_with_and(&whole.returned, matched);
            return Ok(());
        }
        // The chain looks at the fixed end only: it does the same with all of them.
        if let Some(fixed) = self.case.fixed
            && let Some(whole) = self.whole(chain, self.case.axis.other(), depth + 1)
        {
            let atom = self.atoms.atom(fixed);
            let target = if whole.accepted.contains(atom) {
                &mut out.accepted
            } else if whole.dropped.contains(atom) {
                &mut out.dropped
            } else if back {
                state
            } else {
                &mut out.returned
            };
            target.or_with(matched);
            return Ok(());
        }
        let inner = self.chain(chain, matched, depth + 1)?;
        out.accepted.or_with(&inner.accepted);
        out.dropped.or_with(&inner.dropped);
        let returned = if back { state } else { &mut out.returned };
        returned.or_with(&inner.returned);
        Ok(())
    }

    /// What a chain does with all atoms on an axis, if it does not look at the other end.
    fn whole(&mut self, chain: usize, axis: Axis, depth: usize) -> Option<Rc<Out>> {
        match self.run.chains[self.case.kind as usize].get(chain)?[axis as usize].clone() {
            Memo::Known(out) => return Some(out),
            Memo::NeedsBoth => return None,
            Memo::Unknown => {}
        }
        let everything = BitSet::full(self.atoms.len());
        let case = Case { axis, fixed: None, ..self.case };
        let mut walk =
            Walk { run: self.run, program: self.program, table: self.table, atoms: self.atoms, case };
        let out = walk.chain(chain, &everything, depth).ok().map(Rc::new);
        self.run.chains[self.case.kind as usize][chain][axis as usize] =
            out.clone().map_or(Memo::NeedsBoth, Memo::Known);
        out
    }

    /// The atoms that are in a set.
    fn members(&mut self, fields: &[Field], id: SetId) -> Result<Rc<BitSet>, NeedsFixed> {
        let set = self.program.set(self.table, id);
        if let [Field::Saddr, Field::Daddr] | [Field::Daddr, Field::Saddr] = fields
            && diagonal(set)
        {
            return Ok(Rc::new(BitSet::empty(self.atoms.len())));
        }
        let sides = self.sides(fields)?;
        let key = match sides.as_slice() {
            [Side::Axis(len)] => Some((id, *len)),
            _ => None,
        };
        if let Some(found) = key.and_then(|k| self.run.members.get(&k)) {
            return Ok(found.clone());
        }
        if let Some(values) = sides.iter().map(Side::known).collect::<Option<Vec<Value>>>() {
            let all = find_element(set, &values).is_some();
            return Ok(Rc::new(if all {
                BitSet::full(self.atoms.len())
            } else {
                BitSet::empty(self.atoms.len())
            }));
        }
        let mut bits = BitSet::empty(self.atoms.len());
        if sides.iter().any(|side| matches!(side, Side::Known(Value::Absent))) {
            // A port where the protocol has none: no element has it.
            return Ok(Rc::new(bits));
        }
        match (&set.elements, sides.as_slice()) {
            (Elements::Addrs(addrs), [Side::Axis(None)]) => bits = self.atoms.of_addresses(addrs),
            (Elements::Addrs(addrs), [side]) => {
                for addr in addrs {
                    bits.or_with(&self.element(&[Key::Addr(*addr, *addr)], std::slice::from_ref(side)));
                }
            }
            (Elements::Addrs(_), _) => {}
            // Protocol, port and one peer an element: together they cost as much as one.
            (
                Elements::General(elements),
                [Side::Known(Value::Proto(protocol)), Side::Known(Value::Port(port)), Side::Axis(None)],
            ) if !set.interval => {
                // Without intervals, those of one protocol and port stand side by side.
                let with =
                    |peer| vec![Key::Proto(*protocol), Key::Service(*port, *port), Key::Addr(peer, peer)];
                let peers =
                    elements.range(with(0)..=with(u128::MAX)).filter_map(|(keys, _)| match keys.as_slice() {
                        [_, _, Key::Addr(peer, _)] => Some(peer),
                        _ => None,
                    });
                bits = self.atoms.of_addresses(peers);
            }
            (Elements::General(elements), sides) => {
                elements.keys().for_each(|keys| bits.or_with(&self.element(keys, sides)));
            }
        }
        let bits = Rc::new(bits);
        if let Some(key) = key {
            self.run.members.insert(key, bits.clone());
        }
        Ok(bits)
    }

    /// The atoms that one element matches.
    fn element(&self, keys: &[Key], sides: &[Side]) -> BitSet {
        if keys.len() != sides.len() {
            return BitSet::empty(self.atoms.len());
        }
        if let (
            [Key::Addr(lo, hi), _],
            [Side::Known(_), Side::Axis(None)] | [Side::Axis(None), Side::Known(_)],
        ) = (keys, sides)
            && keys[0] == keys[1]
            && lo == hi
            && self.case.fixed == Some(*lo)
        {
            // From an address to itself: not asked for, and the other addresses of its atom do not match.
            return BitSet::empty(self.atoms.len());
        }
        let mut bits = BitSet::full(self.atoms.len());
        for (key, side) in keys.iter().zip(sides) {
            let fits = match (side, key) {
                (Side::Known(value), key) if key_has(key, value) => continue,
                (Side::Known(_), _) => BitSet::empty(self.atoms.len()),
                (Side::Axis(None), Key::Addr(lo, hi)) if lo == hi => self.atoms.of_addresses([lo]),
                (Side::Axis(len), key) => {
                    let cut = |addr: u128| len.map_or(addr, |len| addr & mask(self.case.family, len));
                    self.atoms.of_condition(|addr| key_has(key, &Value::Addr(cut(addr))))
                }
            };
            bits.and_with(&fits);
        }
        bits
    }

    /// The atoms of a map by verdict.
    fn groups(&mut self, id: SetId, sides: &[Side]) -> Groups {
        let key = match sides {
            [Side::Axis(len)] => Some((id, *len)),
            _ => None,
        };
        if let Some(found) = key.and_then(|k| self.run.groups.get(&k)) {
            return found.clone();
        }
        let mut groups: Vec<(Action, BitSet)> = Vec::new();
        let mut index: FxHashMap<&Verdict, usize> = FxHashMap::default();
        if let Elements::General(elements) = &self.program.set(self.table, id).elements {
            for (keys, verdict) in elements {
                let Some(verdict) = verdict else { continue };
                let i = *index.entry(verdict).or_insert_with(|| {
                    groups.push((self.program.action(verdict), BitSet::empty(self.atoms.len())));
                    groups.len() - 1
                });
                match (keys.as_slice(), sides) {
                    ([Key::Addr(lo, hi)], [Side::Axis(None)]) if lo == hi => {
                        groups[i].1.insert(self.atoms.atom(*lo))
                    }
                    _ => groups[i].1.or_with(&self.element(keys, sides)),
                }
            }
        }
        let groups = Rc::new(groups);
        if let Some(key) = key {
            self.run.groups.insert(key, groups.clone());
        }
        groups
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
