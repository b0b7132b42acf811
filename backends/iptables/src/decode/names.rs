//! The addresses, ports and protocols that a program names: where its answers may change.

use super::program::{Body, Condition, Program};
use super::segments::Parts;
use netpolc_ir::ports::{Protocol, Transport};
use netpolc_ir::proof::{Bounds, Constants};
use std::collections::BTreeSet;

/// What the programs of a family tell apart. Most of them do so alike.
pub(super) fn addresses<'p>(programs: impl Iterator<Item = &'p Program>) -> Constants {
    let mut parts: BTreeSet<Parts> = BTreeSet::new();
    for program in programs {
        let mut numbers = BTreeSet::new();
        for id in program.reached() {
            match &program.chains[id] {
                Body::Function(_, segments) => parts.extend(segments.constants()),
                Body::Rules(rules) => {
                    numbers.extend(rules.iter().flat_map(|r| &r.conditions).filter_map(number))
                }
            }
        }
        parts.extend(numbers.into_iter().flat_map(|number| program.addrs[number].constants()));
    }
    let mut constants = Constants::default();
    for (singles, ranges) in parts {
        if !singles.is_empty() {
            constants.sets.push(singles);
        }
        constants.ranges.extend(ranges);
    }
    constants
}

fn number(condition: &Condition) -> Option<usize> {
    match condition {
        Condition::Addr(_, number) => Some(*number),
        Condition::Protocol(_) | Condition::Ports(..) | Condition::OfPod => None,
    }
}

pub(super) fn ports(program: &Program, bounds: &mut Bounds) {
    program.reached().into_iter().for_each(|id| chain_ports(&program.chains[id], bounds));
}

/// What the rules of one chain name.
pub(super) fn chain_ports(chain: &Body, bounds: &mut Bounds) {
    let Body::Rules(rules) = chain else { return };
    for rule in rules {
        let protocol = rule.conditions.iter().find_map(|c| match c {
            Condition::Protocol(number) => Some(Protocol::from_number(*number)),
            _ => None,
        });
        if let Some(Protocol::Other(number)) = protocol {
            bounds.protocols.insert(number);
        }
        for condition in &rule.conditions {
            let Condition::Ports(lo, hi) = condition else { continue };
            let fits = |t: &&Transport| protocol.is_none_or(|p| p == Protocol::Transport(**t));
            Transport::ALL.iter().filter(fits).for_each(|t| bounds.add_ports(*t, *lo, *hi));
        }
    }
}
