//! `dead-rules`: removes rules that cannot change a verdict.
//!
//! - A rule whose subject, peers or ports are empty matches nothing. An isolation of nobody isolates nobody.
//! - A rule of the NetworkPolicy tier about classes of which none is isolated in its direction is never asked.
//! - A rule is subsumed by another one of the same tier, direction and order that has all of its subject, peers and ports:
//!   whatever it matches, the other matches, with the same action (U8). Every surviving rule that subsumes it gets its
//!   origins. Of equal rules the first survives. Isolations of one set in one direction become one, too.
//!
//! A survivor may be about more subjects, peers and ports than the rules whose origins it gets.
//!
//! Sound as said. "Has all of its peers" is judged by listed classes and by addresses, each on its own, which misses
//! classes that are covered by blocks alone, and is never wrong.
//! Needs verified input; finds more after `merge-sets`, `merge-ports` and `cidr-cover`.
//!
//! Cost: each rule looks at the subject sets that have the rarest of its classes and at the rules on those that have its
//! whole subject. If either are more than [`LIMIT`], the rule is kept without looking, so the pass takes at most rules x
//! [`LIMIT`] comparisons; a comparison mostly ends at 64-bit summaries of the sets.

use super::add_origins;
use crate::addr::{AddrSet, Family};
use crate::ports::PortSpan;
use crate::unit::*;
use cranelift_entity::{EntityRef, PrimaryMap};
use std::collections::{BTreeMap, HashMap};

/// With how many others a rule is compared at most.
pub const LIMIT: usize = 256;

/// The pass.
pub fn run(mut unit: Unit) -> Unit {
    unite_isolations(&mut unit);
    drop_matchless(&mut unit);
    drop_subsumed(&mut unit);
    unit
}

fn unite_isolations(unit: &mut Unit) {
    let mut index: HashMap<(Direction, Set), usize> = HashMap::new();
    let mut kept: Vec<Isolation> = Vec::new();
    for isolation in std::mem::take(&mut unit.isolations) {
        if unit.sets[isolation.subject].classes.is_empty() {
            continue;
        }
        match index.get(&(isolation.direction, isolation.subject)) {
            Some(&i) => add_origins(&mut kept[i].origins, &isolation.origins),
            None => {
                index.insert((isolation.direction, isolation.subject), kept.len());
                kept.push(isolation);
            }
        }
    }
    unit.isolations = kept;
}

fn drop_matchless(unit: &mut Unit) {
    let mut isolated = Direction::ALL.map(|_| vec![false; unit.classes.len()]);
    for isolation in &unit.isolations {
        for class in &unit.sets[isolation.subject].classes {
            isolated[isolation.direction as usize][class.index()] = true;
        }
    }
    // For each set: whether nobody is in it, and whether nobody in it is isolated in a direction.
    let nobody: PrimaryMap<Set, bool> = unit
        .sets
        .values()
        .map(|s| s.classes.is_empty() && (s.blocks.is_empty() || AddrSet::from_blocks(&s.blocks).is_empty()))
        .collect();
    let free: PrimaryMap<Set, [bool; 2]> = unit
        .sets
        .values()
        .map(|s| Direction::ALL.map(|d| !s.classes.iter().any(|c| isolated[d as usize][c.index()])))
        .collect();
    for (_, rule) in std::mem::take(&mut unit.rules) {
        let dead = nobody[rule.subject]
            || nobody[rule.peers]
            || unit.ports[rule.ports].is_empty()
            || (rule.tier == Tier::NetworkPolicy && free[rule.subject][rule.direction as usize]);
        if !dead {
            unit.rules.push(rule);
        }
    }
}

fn drop_subsumed(unit: &mut Unit) {
    let index = Index::new(unit);
    let above: PrimaryMap<Rule, Vec<Rule>> = unit.rules.keys().map(|rule| index.subsuming(rule)).collect();
    // What subsumes a removed rule may be removed itself; then what subsumes that one is in the first one's list as well.
    let mut gained: BTreeMap<Rule, Vec<Origin>> = BTreeMap::new();
    for (rule, above_it) in above.iter() {
        for &survivor in above_it.iter().filter(|&&a| above[a].is_empty()) {
            gained.entry(survivor).or_default().extend_from_slice(&unit.rules[rule].origins);
        }
    }
    for (rule, mut data) in std::mem::take(&mut unit.rules) {
        if above[rule].is_empty() {
            if let Some(origins) = gained.get(&rule) {
                add_origins(&mut data.origins, origins);
            }
            unit.rules.push(data);
        }
    }
}

/// What subsumption is asked about, prepared once.
struct Index<'a> {
    unit: &'a Unit,
    /// The distinct subject sets that have a class, by class.
    subjects: Vec<Vec<Set>>,
    /// The rules of one tier, direction and order about one subject set.
    rules: HashMap<(Tier, Direction, u32, Set), Vec<Rule>>,
    /// The addresses of each set's blocks.
    addrs: PrimaryMap<Set, AddrSet>,
    everybody: PrimaryMap<Set, bool>,
    /// One bit for each class, modulo 64: a set can only have all of another if its bits do.
    summaries: PrimaryMap<Set, u64>,
}

impl<'a> Index<'a> {
    fn new(unit: &'a Unit) -> Index<'a> {
        let mut rules: HashMap<(Tier, Direction, u32, Set), Vec<Rule>> = HashMap::new();
        for (rule, data) in unit.rules.iter() {
            rules.entry((data.tier, data.direction, data.order, data.subject)).or_default().push(rule);
        }
        let mut is_subject: PrimaryMap<Set, bool> = unit.sets.values().map(|_| false).collect();
        unit.rules.values().for_each(|r| is_subject[r.subject] = true);
        let mut subjects = vec![Vec::new(); unit.classes.len()];
        for (set, data) in unit.sets.iter().filter(|(set, _)| is_subject[*set]) {
            data.classes.iter().for_each(|c| subjects[c.index()].push(set));
        }
        let addrs: PrimaryMap<Set, AddrSet> =
            unit.sets.values().map(|s| AddrSet::from_blocks(&s.blocks)).collect();
        let all = AddrSet::all();
        let everybody = addrs.values().map(|a| *a == all).collect();
        let summary = |s: &SetData| s.classes.iter().fold(0, |bits, c| bits | 1 << (c.index() % 64));
        Index {
            unit,
            subjects,
            rules,
            addrs,
            everybody,
            summaries: unit.sets.values().map(summary).collect(),
        }
    }

    /// The rules that subsume a rule.
    fn subsuming(&self, rule: Rule) -> Vec<Rule> {
        let data = &self.unit.rules[rule];
        let classes = &self.unit.sets[data.subject].classes;
        let rarest = classes.iter().map(|c| &self.subjects[c.index()]).min_by_key(|sets| sets.len());
        let Some(sets) = rarest.filter(|sets| sets.len() <= LIMIT) else { return Vec::new() };
        let mut candidates: Vec<Rule> = Vec::new();
        for &set in sets.iter().filter(|&&set| self.has_classes(set, data.subject)) {
            let rules = self.rules.get(&(data.tier, data.direction, data.order, set));
            candidates.extend(rules.into_iter().flatten());
            if candidates.len() > LIMIT {
                return Vec::new();
            }
        }
        // Subjects are known to fit one way; the other way is asked of equal rules only.
        let fits = |big: &RuleData, small: &RuleData| {
            self.has_ports(big.ports, small.ports) && self.has_peers(big.peers, small.peers)
        };
        candidates.retain(|&other| {
            let big = &self.unit.rules[other];
            other != rule
                && fits(big, data)
                && (other < rule || !fits(data, big) || !self.has_classes(data.subject, big.subject))
        });
        candidates
    }

    fn has_classes(&self, big: Set, small: Set) -> bool {
        if big == small {
            return true;
        }
        let (b, s) = (&self.unit.sets[big].classes, &self.unit.sets[small].classes);
        s.len() <= b.len()
            && self.summaries[small] & !self.summaries[big] == 0
            && s.iter().all(|c| b.binary_search(c).is_ok())
    }

    fn has_peers(&self, big: Set, small: Set) -> bool {
        let has_addrs = |family: Family| {
            let (big, small) = (self.addrs[big].family(family), self.addrs[small].family(family));
            small.is_empty() || small.subtract(big).is_empty()
        };
        big == small
            || self.everybody[big]
            || (self.has_classes(big, small) && Family::ALL.into_iter().all(has_addrs))
    }

    /// Every span lies in one span of the other list; exact for lists as `merge-ports` writes them.
    fn has_ports(&self, big: Ports, small: Ports) -> bool {
        let within = |small: &PortSpan, big: &PortSpan| match (small, big) {
            (_, PortSpan::Any) => true,
            (PortSpan::Any, PortSpan::Ports { .. }) => false,
            (
                PortSpan::Ports { transport: s, lo, hi },
                PortSpan::Ports { transport: b, lo: from, hi: to },
            ) => s == b && from <= lo && hi <= to,
        };
        let list = &self.unit.ports[big];
        big == small || self.unit.ports[small].iter().all(|s| list.iter().any(|b| within(s, b)))
    }
}
