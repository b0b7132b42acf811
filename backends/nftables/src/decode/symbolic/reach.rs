//! The ports that are named by the rules which packets of one address may meet.

use super::program::{Action, Outcome, Program, Rule, SetId};
use super::{Axis, Value};
use crate::decode::{find_element, names};
use netpolc_bundle::nft::{Elements, Field, Key, Match, Table};
use netpolc_ir::proof::{Atoms, Bounds};

/// What the rules of each chain name, whatever they lead to.
pub(super) fn named(table: &Table) -> Vec<Bounds> {
    let chain = |chain| {
        let mut bounds = Bounds::default();
        names::chain_ports(table, chain, &mut bounds);
        bounds
    };
    table.chains.values().map(chain).collect()
}

/// Follows packets from or to an address through all chains that they may come to. Nothing else is looked at than sets and
/// maps of whole addresses, so more chains may be found than there are ways for packets.
pub(super) struct Reach<'a> {
    pub(super) program: &'a Program,
    pub(super) table: &'a Table,
    pub(super) atoms: &'a Atoms,
    /// The other end: all sources, or all destinations that are none of this node's.
    pub(super) axis: Axis,
    pub(super) fixed: u128,
}

impl Reach<'_> {
    pub(super) fn add_ports(&self, named: &[Bounds], bounds: &mut Bounds) {
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
