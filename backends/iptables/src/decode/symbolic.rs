//! All peers of one pod through the rules at once.
//!
//! One end of the packets is the pod, the other ranges over all atoms. A packet from an address to itself is not asked
//! for.

use super::program::{Action, Body, ChainId, Condition, Program};
use netpolc_bundle::ipt::End;
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::Atoms;
use netpolc_ir::unit::Direction;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a chain does with a set of packets: every packet is in one of the two.
#[derive(Debug, Clone)]
struct Out {
    dropped: BitSet,
    returned: BitSet,
}

/// The packets in question: everything but the end that ranges.
#[derive(Debug, Clone, Copy)]
struct Case {
    /// The end that ranges over all atoms.
    axis: End,
    /// The other end; `None` while it is not known, to see whether a chain needs it.
    fixed: Option<u128>,
    protocol: Protocol,
    port: u16,
}

/// A rule looked at the end that is not known.
struct NeedsFixed;

/// The atoms of a function by what happens to them.
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
#[derive(Debug, Default)]
pub(super) struct Run {
    members: FxHashMap<usize, Rc<BitSet>>,
    groups: FxHashMap<ChainId, Groups>,
    /// The atoms that live on the node.
    locals: Option<BitSet>,
    /// The protocol and port that `chains` is about.
    cell: Option<(Protocol, u16)>,
    /// By chain, for either axis.
    chains: Vec<[Memo; 2]>,
}

impl Run {
    pub(super) fn permitted(
        &mut self,
        program: &Program,
        atoms: &Atoms,
        local: u128,
        direction: Direction,
        cell: (Protocol, u16),
    ) -> BitSet {
        if self.cell != Some(cell) {
            self.cell = Some(cell);
            self.chains = vec![[Memo::Unknown, Memo::Unknown]; program.chains.len()];
        }
        let axis = match direction {
            Direction::Ingress => End::Src,
            Direction::Egress => End::Dst,
        };
        let case = Case { axis, fixed: Some(local), protocol: cell.0, port: cell.1 };
        let mut state = BitSet::full(atoms.len());
        for &entry in &program.entries {
            let mut walk = Walk { run: self, program, atoms, case };
            // With the fixed end known, no chain asks for more.
            if let Ok(out) = walk.chain(entry, &state, 0) {
                state.remove_all(&out.dropped);
            }
        }
        state
    }
}

/// Chains are nested at most this deep; texts with loops and deeper ones were refused.
const DEPTH: usize = 64;

struct Walk<'a> {
    run: &'a mut Run,
    program: &'a Program,
    atoms: &'a Atoms,
    case: Case,
}

impl Walk<'_> {
    /// Runs a set of packets through a chain.
    fn chain(&mut self, chain: ChainId, input: &BitSet, depth: usize) -> Result<Out, NeedsFixed> {
        let none = || BitSet::empty(input.len());
        let mut out = Out { dropped: none(), returned: none() };
        let mut state = input.clone();
        let program = self.program;
        match program.chains.get(chain).filter(|_| depth < DEPTH) {
            None => out.dropped.or_with(&state),
            Some(Body::Rules(rules)) => {
                for rule in rules {
                    if state.is_empty() {
                        break;
                    }
                    let mut matched = state.clone();
                    for condition in &rule.conditions {
                        self.condition(condition, &mut matched)?;
                    }
                    if !matched.is_empty() {
                        state.remove_all(&matched);
                        self.apply(rule.action, &matched, &mut out, &mut state, depth)?;
                    }
                }
                out.returned.or_with(&state);
            }
            Some(Body::Function(end, _)) if *end == self.case.axis => {
                let mut hit = none();
                for (action, group) in self.groups(chain).iter() {
                    hit.set_to_and(input, group);
                    if !hit.is_empty() {
                        self.apply(*action, &hit, &mut out, &mut state, depth)?;
                    }
                }
            }
            Some(Body::Function(_, segments)) => {
                let action = segments.at(self.case.fixed.ok_or(NeedsFixed)?);
                self.apply(action, input, &mut out, &mut state, depth)?;
            }
        }
        Ok(out)
    }

    /// Applies an action to packets; those that go on with the next rule are put back into `state`.
    fn apply(
        &mut self,
        action: Action,
        matched: &BitSet,
        out: &mut Out,
        state: &mut BitSet,
        depth: usize,
    ) -> Result<(), NeedsFixed> {
        match action {
            Action::Drop => out.dropped.or_with(matched),
            Action::Return => out.returned.or_with(matched),
            Action::Goto(chain) => return self.enter(chain, false, matched, out, state, depth + 1),
            Action::Jump(chain) => return self.enter(chain, true, matched, out, state, depth + 1),
        }
        Ok(())
    }

    /// Sends packets through another chain; if they come `back`, those that return go on with the next rule.
    fn enter(
        &mut self,
        chain: ChainId,
        back: bool,
        matched: &BitSet,
        out: &mut Out,
        state: &mut BitSet,
        depth: usize,
    ) -> Result<(), NeedsFixed> {
        let axis = self.case.axis;
        if let Some(whole) = self.whole(chain, axis, depth) {
            out.dropped.or_with_and(&whole.dropped, matched);
            let returned = if back { state } else { &mut out.returned };
            returned.or_with_and(&whole.returned, matched);
            return Ok(());
        }
        let other = match axis {
            End::Src => End::Dst,
            End::Dst => End::Src,
        };
        // The chain looks at the fixed end only: it does the same with all of them.
        if let Some(fixed) = self.case.fixed
            && let Some(whole) = self.whole(chain, other, depth)
        {
            let dropped = whole.dropped.contains(self.atoms.atom(fixed));
            let returned = if back { state } else { &mut out.returned };
            (if dropped { &mut out.dropped } else { returned }).or_with(matched);
            return Ok(());
        }
        let inner = self.chain(chain, matched, depth)?;
        out.dropped.or_with(&inner.dropped);
        let returned = if back { state } else { &mut out.returned };
        returned.or_with(&inner.returned);
        Ok(())
    }

    /// What a chain does with all atoms on an axis, if it does not look at the other end.
    fn whole(&mut self, chain: ChainId, axis: End, depth: usize) -> Option<Rc<Out>> {
        match self.run.chains.get(chain)?[axis as usize].clone() {
            Memo::Known(out) => return Some(out),
            Memo::NeedsBoth => return None,
            Memo::Unknown => {}
        }
        let everything = BitSet::full(self.atoms.len());
        let case = Case { axis, fixed: None, ..self.case };
        let mut walk = Walk { run: self.run, program: self.program, atoms: self.atoms, case };
        let out = walk.chain(chain, &everything, depth).ok().map(Rc::new);
        self.run.chains[chain][axis as usize] = out.clone().map_or(Memo::NeedsBoth, Memo::Known);
        out
    }

    /// Keeps the packets that fulfil a condition.
    fn condition(&mut self, condition: &Condition, state: &mut BitSet) -> Result<(), NeedsFixed> {
        let holds = match condition {
            Condition::Protocol(number) => self.case.protocol.number() == *number,
            Condition::Ports(lo, hi) => {
                matches!(self.case.protocol, Protocol::Transport(_)) && (*lo..=*hi).contains(&self.case.port)
            }
            Condition::Addr(end, number) if *end == self.case.axis => {
                state.and_with(&self.members(*number));
                true
            }
            Condition::Addr(_, number) => {
                self.program.addrs[*number].at(self.case.fixed.ok_or(NeedsFixed)?)
            }
            Condition::OfPod if self.case.axis == End::Src => {
                let atoms = self.atoms;
                let make = || (0..atoms.len()).map(|atom| (atom, atoms.local(atom))).collect();
                state.and_with(self.run.locals.get_or_insert_with(make));
                true
            }
            Condition::OfPod => self.atoms.local(self.atoms.atom(self.case.fixed.ok_or(NeedsFixed)?)),
        };
        if !holds {
            *state = BitSet::empty(state.len());
        }
        Ok(())
    }

    /// The atoms that a condition on an address is about.
    fn members(&mut self, number: usize) -> Rc<BitSet> {
        let (atoms, addrs) = (self.atoms, &self.program.addrs[number]);
        let make = || Rc::new(atoms.of_condition(|addr| addrs.at(addr)));
        self.run.members.entry(number).or_insert_with(make).clone()
    }

    /// The atoms of a function by what happens to them.
    fn groups(&mut self, chain: ChainId) -> Groups {
        let atoms = self.atoms;
        let Some(Body::Function(_, segments)) = self.program.chains.get(chain) else { return Rc::default() };
        let make = || {
            let mut groups: BTreeMap<Action, BitSet> = BTreeMap::new();
            for atom in 0..atoms.len() {
                let action = segments.at(atoms.representative(atom));
                groups.entry(action).or_insert_with(|| BitSet::empty(atoms.len())).insert(atom);
            }
            Rc::new(groups.into_iter().collect())
        };
        self.run.groups.entry(chain).or_insert_with(make).clone()
    }
}
