//! `merge-rules`: rules that differ in their peers only become one rule with all these peers; rules that differ in their
//! ports only become one rule with all these ports. "Only" leaves origins aside, which are united.
//!
//! Subjects are not united: it would save nothing in the matrix, where every class has its own rules anyway, and name
//! policies where they select nobody.
//!
//! Sound because rules of one tier, direction and order have one action (U8), so any of them that matches says the same;
//! and a packet that matches subject, ports and one of several sets of peers matches subject, ports and their union.
//! Needs `merge-sets` before it, since sets are compared by id.
//!
//! A union may repeat the members of a set that other rules go on using, so many unions of one large set could make the
//! unit much larger. Rules are therefore united only if the members of all their distinct sets weigh no more than the
//! rules saved and the sets that nobody uses any longer, as [`Cost`] weighs them. Costs a hash of every rule.

use super::{Cost, add_origins, drop_unused, merge_ports, merge_sets, set_entries};
use crate::unit::*;
use cranelift_entity::{EntityRef, PrimaryMap};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

/// The pass. Rules whose ports have been united may have come to differ in their peers only, so peers come twice.
pub fn run(unit: Unit) -> Unit {
    let steps: [fn(Unit) -> Unit; 3] = [unite_peers, unite_ports, unite_peers];
    drop_unused(steps.into_iter().fold(unit, |unit, step| merge_sets::run(step(unit))))
}

fn unite_peers(mut unit: Unit) -> Unit {
    let subjects = unit.isolations.iter().map(|i| i.subject);
    let uses = count(subjects.chain(unit.rules.values().flat_map(|r| [r.subject, r.peers])));
    let groups = group(&unit, |r| (r.tier, r.direction, r.order, r.subject, r.ports));
    let sizes: PrimaryMap<Set, u64> = unit.sets.values().map(set_entries).collect();
    let mut heads = BTreeMap::new();
    for rules in groups {
        if let Some(parts) = worthwhile(&unit, &rules, |r| r.peers, &uses, |set| sizes[set]) {
            let mut whole = SetData::default();
            for set in parts {
                whole.classes.extend_from_slice(&unit.sets[set].classes);
                whole.blocks.extend_from_slice(&unit.sets[set].blocks);
            }
            whole.classes.sort_unstable();
            whole.classes.dedup();
            whole.blocks.sort_unstable();
            whole.blocks.dedup();
            let peers = unit.sets.push(whole);
            rules.iter().for_each(|&r| unit.rules[r].peers = peers);
            heads.extend(rules.iter().map(|&r| (r, rules[0])));
        }
    }
    join(unit, &heads)
}

fn unite_ports(mut unit: Unit) -> Unit {
    let uses = count(unit.rules.values().map(|r| r.ports));
    let groups = group(&unit, |r| (r.tier, r.direction, r.order, r.subject, r.peers));
    let sizes: PrimaryMap<Ports, u64> = unit.ports.values().map(|p| p.len() as u64).collect();
    let mut heads = BTreeMap::new();
    for rules in groups {
        if let Some(parts) = worthwhile(&unit, &rules, |r| r.ports, &uses, |ports| sizes[ports]) {
            let whole: PortsData = parts.into_iter().flat_map(|p| unit.ports[p].iter().copied()).collect();
            let ports = unit.ports.push(merge_ports::merged(whole));
            rules.iter().for_each(|&r| unit.rules[r].ports = ports);
            heads.extend(rules.iter().map(|&r| (r, rules[0])));
        }
    }
    join(unit, &heads)
}

fn count<K: Hash + Eq>(uses: impl Iterator<Item = K>) -> HashMap<K, usize> {
    let mut counts = HashMap::new();
    uses.for_each(|k| *counts.entry(k).or_insert(0) += 1);
    counts
}

/// Groups of at least two rules that share a key, each ascending.
fn group<K: Ord>(unit: &Unit, key: impl Fn(&RuleData) -> K) -> Vec<Vec<Rule>> {
    let mut groups: BTreeMap<K, Vec<Rule>> = BTreeMap::new();
    for (rule, data) in unit.rules.iter() {
        groups.entry(key(data)).or_default().push(rule);
    }
    groups.into_values().filter(|rules| rules.len() > 1).collect()
}

/// The distinct parts of these rules, if one rule with the union of them weighs no more. The answer does not depend on
/// what other groups do: uses are counted before the first union.
fn worthwhile<K: EntityRef + Ord + Hash>(
    unit: &Unit,
    rules: &[Rule],
    part: impl Fn(&RuleData) -> K,
    uses: &HashMap<K, usize>,
    size: impl Fn(K) -> u64,
) -> Option<BTreeSet<K>> {
    let here = count(rules.iter().map(|&r| part(&unit.rules[r])));
    let parts: BTreeSet<K> = here.keys().copied().collect();
    let weight = |k: K| Cost::LIST + size(k);
    let added = Cost::LIST + parts.iter().map(|&k| size(k)).sum::<u64>();
    let freed: u64 = parts.iter().filter(|k| uses.get(k) == here.get(k)).map(|&k| weight(k)).sum();
    let saved = Cost::RULE * (rules.len() as u64 - 1);
    (added <= freed + saved).then_some(parts)
}

/// Gives the origins of each rule to the head of its group and keeps heads and rules without a group.
fn join(mut unit: Unit, heads: &BTreeMap<Rule, Rule>) -> Unit {
    let mut origins: BTreeMap<Rule, Vec<Origin>> = BTreeMap::new();
    for (rule, head) in heads {
        origins.entry(*head).or_default().extend_from_slice(&unit.rules[*rule].origins);
    }
    let rules = std::mem::take(&mut unit.rules);
    for (rule, mut data) in rules {
        if heads.get(&rule).is_none_or(|&head| head == rule) {
            add_origins(&mut data.origins, origins.get(&rule).map_or(&[], Vec::as_slice));
            unit.rules.push(data);
        }
    }
    unit
}
