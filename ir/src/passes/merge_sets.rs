//! `merge-sets`: equal sets become one set, equal lists of ports one list.
//!
//! Sound because rules and isolations mean a set's members, not its number.
//! Needs nothing; finds more after `cidr-cover` and `merge-ports`, which write equal meaning alike.
//! Costs one hash of every set and list.

use super::{Pool, renumber};
use crate::unit::{Ports, Set, Unit};
use cranelift_entity::PrimaryMap;

/// The pass.
pub fn run(mut unit: Unit) -> Unit {
    let (mut sets, mut ports) = (Pool::new(), Pool::new());
    let new_sets: PrimaryMap<Set, Set> = unit.sets.values().map(|data| sets.intern(data)).collect();
    let new_ports: PrimaryMap<Ports, Ports> = unit.ports.values().map(|data| ports.intern(data)).collect();
    unit.sets = sets.items;
    unit.ports = ports.items;
    renumber(&mut unit, |s| new_sets[s], |p| new_ports[p]);
    unit
}
