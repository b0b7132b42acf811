//! The passes: each turns a unit into a smaller one that gives every flow the same verdict.
//!
//! [`run`] runs the fixed [`pipeline`] and verifies the unit after every pass. No pass may raise [`Cost::weight`]. What a
//! pass unites keeps the origins of its parts; a rule that can never match is the only thing whose origins may go, and
//! [`PassStats::dropped`] names them. A united rule names all its parts' origins for everything that it matches: who must
//! know exactly which policy allows what asks the unit before the passes.
//!
//! The pipeline ends in a canonical unit: it does not depend on the order in which the input numbers its classes, sets,
//! lists of ports, isolations and rules, nor on the order of blocks and ports inside these.

pub mod cidr_cover;
pub mod dead_rules;
pub mod merge_classes;
pub mod merge_ports;
pub mod merge_rules;
pub mod merge_sets;
pub mod sweep;

use crate::unit::*;
use crate::verify::{Verified, Violation, verify};
use cranelift_entity::{EntityRef, PrimaryMap};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::Hash;

/// A pass.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// Its name, as users write it.
    pub name: &'static str,
    /// What it does. Needs a verified unit, gives one that verifies.
    pub run: fn(Unit) -> Unit,
}

/// Merges overlapping and touching spans of ports.
pub const MERGE_PORTS: Pass = Pass { name: "merge-ports", run: merge_ports::run };
/// Writes the blocks of every set as the fewest prefixes.
pub const CIDR_COVER: Pass = Pass { name: "cidr-cover", run: cidr_cover::run };
/// Shares equal sets and lists of ports.
pub const MERGE_SETS: Pass = Pass { name: "merge-sets", run: merge_sets::run };
/// Removes rules that cannot matter.
pub const DEAD_RULES: Pass = Pass { name: "dead-rules", run: dead_rules::run };
/// Unites rules that differ in peers only, or in ports only.
pub const MERGE_RULES: Pass = Pass { name: "merge-rules", run: merge_rules::run };
/// Unites classes that no rule tells apart.
pub const MERGE_CLASSES: Pass = Pass { name: "merge-classes", run: merge_classes::run };
/// Drops what is unused and numbers the rest canonically.
pub const SWEEP: Pass = Pass { name: "sweep", run: sweep::run };

/// Every pass once, in the order in which the pipeline first runs it.
pub const ALL: [Pass; 7] =
    [MERGE_PORTS, CIDR_COVER, MERGE_SETS, DEAD_RULES, MERGE_RULES, SWEEP, MERGE_CLASSES];

/// The passes in the order in which they are run. United rules may cover others, so `dead-rules` comes twice; unused sets
/// go before classes are merged, so that they do not keep classes apart. Merged classes make no two sets equal, so nothing
/// has to be repeated after that. A second run may find a little more, since smaller sets may be united more freely.
pub fn pipeline() -> &'static [Pass] {
    &[
        MERGE_PORTS,
        CIDR_COVER,
        MERGE_SETS,
        DEAD_RULES,
        MERGE_RULES,
        CIDR_COVER,
        MERGE_SETS,
        DEAD_RULES,
        SWEEP,
        MERGE_CLASSES,
        SWEEP,
    ]
}

/// The size of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Classes.
    pub classes: u64,
    /// Sets.
    pub sets: u64,
    /// Lists of ports.
    pub ports: u64,
    /// Isolations.
    pub isolations: u64,
    /// Rules.
    pub rules: u64,
    /// Members of sets (classes, blocks and exceptions) and of lists of ports (spans).
    pub entries: u64,
}

impl Cost {
    /// What a rule weighs.
    pub const RULE: u64 = 16;
    /// What a set or a list of ports weighs without its members.
    pub const LIST: u64 = 4;

    /// The size of this unit.
    pub fn of(unit: &Unit) -> Cost {
        let entries: u64 = unit.sets.values().map(set_entries).sum();
        Cost {
            classes: unit.classes.len() as u64,
            sets: unit.sets.len() as u64,
            ports: unit.ports.len() as u64,
            isolations: unit.isolations.len() as u64,
            rules: unit.rules.len() as u64,
            entries: entries + unit.ports.values().map(|p| p.len() as u64).sum::<u64>(),
        }
    }

    /// The measure that no pass may raise: a rule weighs [`Cost::RULE`], a set or list of ports [`Cost::LIST`], everything
    /// else 1.
    pub fn weight(&self) -> u64 {
        self.rules * Cost::RULE
            + (self.sets + self.ports) * Cost::LIST
            + self.classes
            + self.isolations
            + self.entries
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost { classes, sets, ports, isolations, rules, entries } = self;
        write!(
            f,
            "{rules} rules, {isolations} isolations, {classes} classes, {sets} sets, {ports} lists of ports, "
        )?;
        write!(f, "{entries} entries")
    }
}

/// Members of a set: classes, blocks and what blocks except.
fn set_entries(set: &SetData) -> u64 {
    set.classes.len() as u64 + set.blocks.iter().map(|b| 1 + b.except.len() as u64).sum::<u64>()
}

/// What a pass did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassStats {
    /// The pass.
    pub name: &'static str,
    /// The unit before it.
    pub before: Cost,
    /// The unit after it.
    pub after: Cost,
    /// Origins that no rule and no isolation has any more, sorted: their rules match nothing.
    pub dropped: Vec<Origin>,
}

/// A pass that broke its promise: always a fault of netpolc, never of its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// The unit no longer verifies.
    #[error("pass {name} made an invalid unit: {}", violations.first().map(ToString::to_string).unwrap_or_default())]
    Invalid {
        /// The pass.
        name: &'static str,
        /// What is wrong.
        violations: Vec<Violation>,
    },
    /// The unit weighs more than before.
    #[error("pass {name} made the unit larger: {before}, then {after}")]
    Grew {
        /// The pass.
        name: &'static str,
        /// The unit before.
        before: Cost,
        /// The unit after.
        after: Cost,
    },
}

/// Runs the [`pipeline`]; `observe` is called after each pass.
///
/// # Errors
///
/// A pass that broke a promise.
pub fn run(unit: Verified, observe: impl FnMut(&PassStats)) -> Result<Verified, PassError> {
    run_passes(pipeline(), unit, observe)
}

/// Runs these passes in this order, as [`run`].
///
/// # Errors
///
/// A pass that broke a promise.
pub fn run_passes(
    passes: &[Pass],
    mut unit: Verified,
    mut observe: impl FnMut(&PassStats),
) -> Result<Verified, PassError> {
    for &Pass { name, run } in passes {
        let (before, origins) = (Cost::of(&unit), origins(&unit));
        let changed = verify(run(unit.into_inner()));
        unit = changed.map_err(|violations| PassError::Invalid { name, violations })?;
        let after = Cost::of(&unit);
        if after.weight() > before.weight() {
            return Err(PassError::Grew { name, before, after });
        }
        let kept = self::origins(&unit);
        let dropped = origins.into_iter().filter(|o| kept.binary_search(o).is_err()).collect();
        observe(&PassStats { name, before, after, dropped });
    }
    Ok(unit)
}

/// All origins of a unit, sorted.
fn origins(unit: &Unit) -> Vec<Origin> {
    let rules = unit.rules.values().flat_map(|r| &r.origins);
    let mut all: Vec<Origin> =
        rules.chain(unit.isolations.iter().flat_map(|i| &i.origins)).copied().collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Adds origins to a sorted list.
fn add_origins(to: &mut Vec<Origin>, from: &[Origin]) {
    to.extend_from_slice(from);
    to.sort_unstable();
    to.dedup();
}

/// Distinct values with dense ids, in the order of their first appearance.
struct Pool<K: EntityRef, V> {
    items: PrimaryMap<K, V>,
    index: HashMap<V, K>,
}

impl<K: EntityRef, V: Clone + Eq + Hash> Pool<K, V> {
    fn new() -> Pool<K, V> {
        Pool { items: PrimaryMap::new(), index: HashMap::new() }
    }

    fn intern(&mut self, value: &V) -> K {
        if let Some(&id) = self.index.get(value) {
            return id;
        }
        let id = self.items.push(value.clone());
        self.index.insert(value.clone(), id);
        id
    }
}

/// Gives every mention of a set and of a list of ports another id.
fn renumber(unit: &mut Unit, set: impl Fn(Set) -> Set, ports: impl Fn(Ports) -> Ports) {
    for isolation in &mut unit.isolations {
        isolation.subject = set(isolation.subject);
    }
    for rule in unit.rules.values_mut() {
        rule.subject = set(rule.subject);
        rule.peers = set(rule.peers);
        rule.ports = ports(rule.ports);
    }
}

/// Drops sets and lists of ports that nothing uses; the others keep their order.
fn drop_unused(mut unit: Unit) -> Unit {
    let subjects = unit.isolations.iter().map(|i| i.subject);
    let of_rules = unit.rules.values().flat_map(|r| [r.subject, r.peers]);
    let used_sets: BTreeSet<Set> = subjects.chain(of_rules).collect();
    let used_ports: BTreeSet<Ports> = unit.rules.values().map(|r| r.ports).collect();
    let sets = keep(&mut unit.sets, &used_sets);
    let ports = keep(&mut unit.ports, &used_ports);
    renumber(&mut unit, |s| sets[&s], |p| ports[&p]);
    unit
}

/// Keeps these items of a map; returns their new ids.
fn keep<K: EntityRef + Hash + Ord, V>(map: &mut PrimaryMap<K, V>, used: &BTreeSet<K>) -> HashMap<K, K> {
    let mut ids = HashMap::new();
    let mut kept = PrimaryMap::new();
    for (id, data) in std::mem::take(map) {
        if used.contains(&id) {
            ids.insert(id, kept.push(data));
        }
    }
    *map = kept;
    ids
}
