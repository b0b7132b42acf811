//! The ports that are named by the rules which packets of one address may meet.

use super::names;
use super::program::{Action, Body, Condition, Program};
use netpolc_bundle::ipt::End;
use netpolc_ir::proof::{Atoms, Bounds};

/// What the rules of each chain name, whatever they lead to.
pub(super) fn named(program: &Program) -> Vec<Bounds> {
    let chain = |chain| {
        let mut bounds = Bounds::default();
        names::chain_ports(chain, &mut bounds);
        bounds
    };
    program.chains.iter().map(chain).collect()
}

/// Follows packets from or to an address through all chains that they may come to. Nothing else is looked at than addresses,
/// so more chains may be found than there are ways for packets.
pub(super) struct Reach<'a> {
    pub(super) program: &'a Program,
    pub(super) atoms: &'a Atoms,
    /// The end that is the address. The other one is any source, or any destination that is none of this node's.
    pub(super) end: End,
    pub(super) fixed: u128,
}

impl Reach<'_> {
    pub(super) fn add_ports(&self, named: &[Bounds], bounds: &mut Bounds) {
        let mut seen = vec![false; self.program.chains.len()];
        let mut todo = self.program.entries.clone();
        while let Some(chain) = todo.pop() {
            let Some(seen) = seen.get_mut(chain).filter(|seen| !**seen) else { continue };
            *seen = true;
            named.get(chain).into_iter().for_each(|named| bounds.extend_ports(named));
            todo.extend(self.next(&self.program.chains[chain]).into_iter().filter_map(
                |action| match action {
                    Action::Jump(chain) | Action::Goto(chain) => Some(chain),
                    Action::Drop | Action::Return => None,
                },
            ));
        }
    }

    fn next(&self, body: &Body) -> Vec<Action> {
        match body {
            Body::Rules(rules) => {
                let met = |condition: &Condition| match condition {
                    Condition::Addr(end, number) if *end == self.end => {
                        self.program.addrs[*number].at(self.fixed)
                    }
                    _ => true,
                };
                let rules = rules.iter().filter(|rule| rule.conditions.iter().all(met));
                rules.map(|rule| rule.action).collect()
            }
            Body::Function(end, segments) if *end == self.end => vec![segments.at(self.fixed)],
            Body::Function(_, segments) => {
                let of_this_node = |lo, hi| lo == hi && self.atoms.local(self.atoms.atom(lo));
                let met = |lo, hi| self.end == End::Dst || !of_this_node(lo, hi);
                segments.iter().filter(|&(lo, hi, _)| met(lo, hi)).map(|(_, _, action)| action).collect()
            }
        }
    }
}
