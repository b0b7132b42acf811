//! The ports that are named by the rules which packets of one address may meet.

use super::program::{Action, Outcome, Program, Rule, SetId};
use super::{Axis, Run, Value};
use crate::decode::{find_element, names};
use netpolc_bundle::nft::{Elements, Field, Key, Match, Table};
use netpolc_ir::addr::bits;
use netpolc_ir::proof::{Atoms, Bounds};
use std::net::IpAddr;

impl Run {
    /// The ports that rules name for what an address gets, and for what it sends to addresses that are none of this node's.
    pub(in crate::decode) fn ports_of(&mut self, table: &Table, atoms: &Atoms, local: IpAddr) -> Bounds {
        let named = self.named.get_or_insert_with(|| named(table));
        let mut bounds = Bounds::default();
        for axis in [Axis::Src, Axis::Dst] {
            let reach = Reach { program: &self.program, table, atoms, axis, fixed: bits(local) };
            reach.add_ports(named, &mut bounds);
        }
        bounds
    }
}

/// What the rules of each chain name, whatever they lead to.
fn named(table: &Table) -> Vec<Bounds> {
    let chain = |chain| {
        let mut bounds = Bounds::default();
        names::chain_ports(table, chain, &mut bounds);
        bounds
    };
    table.chains.values().map(chain).collect()
}

/// Follows packets from or to an address through all chains that they may come to. Nothing else is looked at than sets and
/// maps of whole addresses, so more chains may be found than there are ways for packets.
struct Reach<'a> {
    program: &'a Program,
    table: &'a Table,
    atoms: &'a Atoms,
    /// The other end: all sources, or all destinations that are none of this node's.
    axis: Axis,
    fixed: u128,
}

impl Reach<'_> {
    fn add_ports(&self, named: &[Bounds], bounds: &mut Bounds) {
        let mut seen = vec![false; self.program.chains.len()];
        let mut todo = self.program.bases.clone();
        while let Some(chain) = todo.pop() {
            let Some(seen) = seen.get_mut(chain).filter(|seen| !**seen) else { continue };
            *seen = true;
            named.get(chain).into_iter().for_each(|named| bounds.extend_ports(named));
            for rule in self.program.chains[chain].iter().filter(|rule| self.may_match(rule)) {
                self.follow(&rule.outcome, &mut todo);
            }
        }
    }

    /// Whether the end that a field is about, if that is a whole address, is the fixed one.
    fn is_fixed(&self, fields: &[Field]) -> Option<bool> {
        match fields {
            [Field::Saddr] => Some(self.axis == Axis::Dst),
            [Field::Daddr] => Some(self.axis == Axis::Src),
            _ => None,
        }
    }

    fn may_match(&self, rule: &Rule) -> bool {
        rule.matches.iter().all(|(found, set)| match (found, set) {
            (Match::InSet(fields, _), Some(set)) if self.is_fixed(fields) == Some(true) => {
                find_element(self.program.set(self.table, *set), &[Value::Addr(self.fixed)]).is_some()
            }
            _ => true,
        })
    }

    fn follow(&self, outcome: &Outcome, todo: &mut Vec<usize>) {
        let mut lead = |action: Action| match action {
            Action::Jump(chain) | Action::Goto(chain) => todo.push(chain),
            Action::Accept | Action::Drop | Action::Return => {}
        };
        match outcome {
            Outcome::Action(action) => lead(*action),
            Outcome::Vmap(fields, map) => match self.is_fixed(fields) {
                Some(true) => {
                    let found = self.program.lookup(self.table, *map, &[Value::Addr(self.fixed)]);
                    found.into_iter().for_each(lead);
                }
                other => self.verdicts(*map, other.is_some()).into_iter().for_each(lead),
            },
        }
    }

    /// All that a map may lead to; `axis` if it is asked for the address at the other end.
    fn verdicts(&self, map: SetId, axis: bool) -> Vec<Action> {
        let Elements::General(elements) = &self.program.set(self.table, map).elements else {
            return Vec::new();
        };
        let met = |keys: &[Key]| match keys {
            [Key::Addr(lo, hi)] if axis && self.axis == Axis::Dst && lo == hi => {
                !self.atoms.local(self.atoms.atom(*lo))
            }
            _ => true,
        };
        let verdicts =
            elements.iter().filter(|(keys, _)| met(keys)).filter_map(|(_, verdict)| verdict.as_ref());
        verdicts.map(|verdict| self.program.action(verdict)).collect()
    }
}
