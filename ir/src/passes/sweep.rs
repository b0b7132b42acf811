//! `sweep`: drops sets and lists of ports that nothing uses, and numbers everything canonically.
//!
//! Classes are sorted by name, then by the smallest address that has them; classes of one name without addresses keep their
//! order. Sets and lists of ports are sorted by content, equal ones become one. Isolations are sorted by direction and
//! subject, rules by tier, direction, order and content. Nodes and endpoints are sorted already (U12).
//!
//! Sound because no meaning depends on a number, and the order of rules of one tier, direction and order does not matter
//! (U8). Needs verified input. Costs a few sorts.

use super::{drop_unused, renumber};
use crate::unit::*;
use cranelift_entity::{EntityRef, PrimaryMap};
use std::net::IpAddr;

/// The pass.
pub fn run(unit: Unit) -> Unit {
    let mut unit = drop_unused(unit);
    sort_classes(&mut unit);
    let sets = sorted(&mut unit.sets);
    let ports = sorted(&mut unit.ports);
    renumber(&mut unit, |s| sets[s], |p| ports[p]);
    unit.isolations
        .sort_by(|a, b| (a.direction, a.subject, &a.origins).cmp(&(b.direction, b.subject, &b.origins)));
    let mut rules: Vec<RuleData> = std::mem::take(&mut unit.rules).into_iter().map(|(_, r)| r).collect();
    rules.sort_by(|a, b| {
        fn key(r: &RuleData) -> (Tier, Direction, u32, Set, Set, Ports, Action, &[Origin]) {
            (r.tier, r.direction, r.order, r.subject, r.peers, r.ports, r.action, &r.origins)
        }
        key(a).cmp(&key(b))
    });
    unit.rules = rules.into_iter().collect();
    unit
}

fn sort_classes(unit: &mut Unit) {
    let mut lowest: Vec<Option<IpAddr>> = vec![None; unit.classes.len()];
    for &(addr, class) in unit.endpoints.values().flat_map(|e| &e.addrs) {
        let low = &mut lowest[class.index()];
        *low = Some(low.map_or(addr, |l| l.min(addr)));
    }
    let mut order: Vec<Class> = unit.classes.keys().collect();
    order.sort_by_key(|&c| (&unit.classes[c], lowest[c.index()]));
    let mut new: PrimaryMap<Class, Class> = order.iter().copied().collect();
    for (i, &old) in order.iter().enumerate() {
        new[old] = Class::new(i);
    }
    unit.classes = order.iter().map(|&c| std::mem::take(&mut unit.classes[c])).collect();
    for data in unit.sets.values_mut() {
        data.classes.iter_mut().for_each(|c| *c = new[*c]);
        data.classes.sort_unstable();
    }
    for (_, class) in unit.endpoints.values_mut().flat_map(|e| &mut e.addrs) {
        *class = new[*class];
    }
}

/// Sorts the items of a map and unites equal ones; returns the new id of each.
fn sorted<K: EntityRef, V: Ord>(map: &mut PrimaryMap<K, V>) -> PrimaryMap<K, K> {
    let mut items: Vec<(V, K)> = std::mem::take(map).into_iter().map(|(id, data)| (data, id)).collect();
    let mut new: PrimaryMap<K, K> = items.iter().map(|(_, id)| *id).collect();
    items.sort_by(|a, b| a.0.cmp(&b.0));
    let mut last: Option<K> = None;
    for (data, old) in items {
        let id = match last {
            Some(id) if map[id] == data => id,
            _ => map.push(data),
        };
        last = Some(id);
        new[old] = id;
    }
    new
}
