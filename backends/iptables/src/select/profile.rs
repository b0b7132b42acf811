//! The chain of one profile: from protocol and port to the set of peers.

use super::names::denying;
use super::tree::fan_out;
use super::{DENY, Object, Planned, Selector, chain, rule};
use crate::limits;
use netpolc_bundle::ipt::{Family, Match, Rule, Target};
use netpolc_ir::matrix::{Cell, Peers, Profile, ProfileData};
use netpolc_ir::ports::Transport;
use netpolc_ir::unit::{Direction, Origin};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

/// Ports `lo..=hi` and where they lead.
type Stretch = (u16, u16, Target);

impl Selector<'_> {
    /// Where the packets of a pod with this profile go.
    pub(super) fn profile(&mut self, profile: Profile, direction: Direction, family: Family) -> Planned {
        if let Some(planned) = self.profiles.get(&(profile, direction, family)) {
            return planned.clone();
        }
        let matrix = self.matrix;
        let planned = self.build_profile(&matrix.profiles[profile], direction, family);
        self.profiles.insert((profile, direction, family), planned.clone());
        planned
    }

    fn build_profile(&mut self, data: &ProfileData, direction: Direction, family: Family) -> Planned {
        let origins: BTreeSet<Origin> =
            data.origins.iter().chain(data.cells().flat_map(|(_, c)| &c.origins)).copied().collect();
        let origins: Rc<Vec<Origin>> = Rc::new(origins.into_iter().collect());
        // Without sets, peers are trees, which profiles share with all that they lead to.
        let denying = self.sets.then(|| denying(self.origins, direction, origins.clone()));
        let deny = denying.as_ref().map_or(DENY, |object| object.name.as_str()).to_owned();
        let mut objects: Vec<Object> = denying.into_iter().collect();
        let mut made: HashMap<Peers, Target> = HashMap::new();
        let mut target = |this: &mut Self, cell: &Cell| -> Target {
            let make = || {
                let planned = this.peers(cell.peers, direction, family).denying(&deny);
                objects.extend(planned.objects.iter().cloned());
                planned.target
            };
            made.entry(cell.peers).or_insert_with(make).clone()
        };
        let other = target(self, &data.other);
        let mut transports: Vec<(Transport, Vec<Stretch>, Target)> = Vec::new();
        for (transport, cells) in Transport::ALL.into_iter().zip(&data.transports) {
            let default = match widest(cells) {
                Some(cell) => target(self, cell),
                None => other.clone(),
            };
            let stretches: Vec<Stretch> = cells
                .iter()
                .map(|cell| (cell.lo, cell.hi, target(self, cell)))
                .filter(|s| s.2 != default)
                .collect();
            if !stretches.is_empty() || default != other {
                transports.push((transport, stretches, default));
            }
        }
        // A profile that denies everything keeps a chain of its own, whose comment names the policies behind it.
        if transports.is_empty() && other != Target::Goto(deny.clone()) {
            if other == Target::Return {
                objects.clear();
            }
            return Planned { target: other, objects: Rc::new(objects) };
        }
        let kind = match direction {
            Direction::Ingress => "IN",
            Direction::Egress => "OUT",
        };
        let mut ports = Ports { kind, objects, origins };
        let rules = ports.profile(transports, other);
        let name = ports.chain(rules);
        Planned { target: Target::Goto(name), objects: Rc::new(ports.objects) }
    }
}

/// Makes the chains of a profile.
struct Ports {
    kind: &'static str,
    objects: Vec<Object>,
    origins: Rc<Vec<Origin>>,
}

impl Ports {
    /// All protocols in one chain if that is short, else a tree of ports for each.
    fn profile(&mut self, transports: Vec<(Transport, Vec<Stretch>, Target)>, other: Target) -> Vec<Rule> {
        let short = transports.iter().map(|t| t.1.len() + 1).sum::<usize>() <= 2 * limits::LEAF;
        let mut rules = Vec::new();
        for (transport, stretches, default) in transports {
            let protocol = || Match::Protocol(transport.number());
            if short {
                rules.extend(stretches.iter().map(|s| stretch(transport, s.0, s.1, s.2.clone())));
                if default != other {
                    rules.push(rule(vec![protocol()], default));
                }
            } else {
                let fan = fan_out(stretches.len(), limits::PORT_DEPTH);
                let tree = self.tree(transport, &stretches, &default, fan);
                let target = if stretches.is_empty() { default } else { Target::Goto(self.chain(tree)) };
                rules.push(rule(vec![protocol()], target));
            }
        }
        // What falls through a chain that was gone to returns to the caller, which is what `RETURN` does.
        if other != Target::Return {
            rules.push(rule(Vec::new(), other));
        }
        rules
    }

    /// Sorted stretches one after the other, or in groups of about the same size.
    fn tree(
        &mut self,
        transport: Transport,
        stretches: &[Stretch],
        default: &Target,
        fan: usize,
    ) -> Vec<Rule> {
        let mut rules = Vec::new();
        let size =
            if stretches.len() <= limits::LEAF { 1 } else { stretches.len().div_ceil(fan).max(limits::LEAF) };
        for group in stretches.chunks(size) {
            match group {
                [] => {}
                [(lo, hi, target)] => rules.push(stretch(transport, *lo, *hi, target.clone())),
                [first, .., last] => {
                    let inner = self.tree(transport, group, default, fan);
                    let name = self.chain(inner);
                    rules.push(stretch(transport, first.0, last.1, Target::Goto(name)));
                }
            }
        }
        if *default != Target::Return {
            rules.push(rule(Vec::new(), default.clone()));
        }
        rules
    }

    fn chain(&mut self, rules: Vec<Rule>) -> String {
        let object = chain(self.kind, rules, self.origins.clone());
        let name = object.name.clone();
        self.objects.push(object);
        name
    }
}

fn stretch(transport: Transport, lo: u16, hi: u16, target: Target) -> Rule {
    rule(vec![Match::Protocol(transport.number()), Match::Port(lo, hi)], target)
}

/// The cell that answers for the most ports: the default of its protocol.
fn widest(cells: &[Cell]) -> Option<&Cell> {
    let mut width: BTreeMap<_, u32> = BTreeMap::new();
    for cell in cells {
        *width.entry(cell.peers).or_default() += u32::from(cell.hi - cell.lo) + 1;
    }
    let best = width.into_iter().max_by_key(|&(peers, width)| (width, std::cmp::Reverse(peers)))?.0;
    cells.iter().find(|c| c.peers == best)
}
