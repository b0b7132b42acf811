//! Which addresses the blocks of a unit can tell apart.

use crate::addr::{AddrSet, Block, Family, bits};
use crate::unit::{Class, Unit};
use cranelift_entity::EntityRef;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// The address space cut at every boundary of every set's blocks, as far as endpoints have addresses in it. Stretches
/// that are in the blocks of the same sets are in one group.
pub(crate) struct Stretches {
    /// Where the stretches that have endpoints begin, ascending.
    starts: Vec<(Family, u128)>,
    /// The group of each.
    groups: Vec<u32>,
}

impl Stretches {
    pub(crate) fn new(unit: &Unit) -> Stretches {
        // Many sets have the same blocks; the order of the distinct ones does not matter.
        let distinct: BTreeSet<&[Block]> = unit.sets.values().map(|s| s.blocks.as_slice()).collect();
        let distinct: BTreeSet<AddrSet> = distinct.into_iter().map(AddrSet::from_blocks).collect();
        let mut bounds: Vec<(Family, u128)> = Family::ALL.map(|f| (f, 0)).to_vec();
        for set in &distinct {
            for family in Family::ALL {
                for &(lo, hi) in set.family(family).as_slice() {
                    bounds.push((family, lo));
                    bounds.extend(hi.checked_add(1).filter(|&x| x <= family.max()).map(|x| (family, x)));
                }
            }
        }
        bounds.sort_unstable();
        bounds.dedup();
        let mut used = vec![false; bounds.len()];
        for &(addr, _) in unit.endpoints.values().flat_map(|e| &e.addrs) {
            used[position(&bounds, addr)] = true;
        }
        let starts: Vec<(Family, u128)> =
            bounds.into_iter().zip(used).filter(|&(_, used)| used).map(|(start, _)| start).collect();
        let groups = refine(&starts, &distinct);
        Stretches { starts, groups }
    }

    /// The group of an address that an endpoint has.
    pub(crate) fn group(&self, addr: IpAddr) -> u32 {
        self.groups.get(position(&self.starts, addr)).copied().unwrap_or(0)
    }

    /// The group of each class, from one of its addresses; `None` if no endpoint has the class.
    pub(crate) fn class_groups(&self, unit: &Unit) -> Vec<Option<u32>> {
        let mut groups = vec![None; unit.classes.len()];
        for &(addr, class) in unit.endpoints.values().flat_map(|e| &e.addrs) {
            let group: &mut Option<u32> = &mut groups[Class::index(class)];
            if group.is_none() {
                *group = Some(self.group(addr));
            }
        }
        groups
    }
}

/// The stretch that has an address: the last one that begins at or before it.
fn position(starts: &[(Family, u128)], addr: IpAddr) -> usize {
    let key = (Family::of(addr), bits(addr));
    starts.partition_point(|&s| s <= key).saturating_sub(1)
}

/// Splits all stretches into groups, one set after the other. Splitting by what a set has or by what it has not is the
/// same, so the smaller side is walked: a rule for everything but a few blocks costs a few steps.
fn refine(starts: &[(Family, u128)], sets: &BTreeSet<AddrSet>) -> Vec<u32> {
    let mut groups = vec![0u32; starts.len()];
    let mut next = 1;
    for set in sets {
        let mut inside: Vec<(usize, usize)> = Vec::new();
        for family in Family::ALL {
            for &(lo, hi) in set.family(family).as_slice() {
                let from = starts.partition_point(|&s| s < (family, lo));
                let to = starts.partition_point(|&s| s <= (family, hi));
                if from < to {
                    inside.push((from, to));
                }
            }
        }
        let count: usize = inside.iter().map(|(from, to)| to - from).sum();
        let walked = if count * 2 > starts.len() { gaps(&inside, starts.len()) } else { inside };
        let mut moved: HashMap<u32, u32> = HashMap::new();
        for i in walked.into_iter().flat_map(|(from, to)| from..to) {
            groups[i] = *moved.entry(groups[i]).or_insert_with(|| {
                next += 1;
                next - 1
            });
        }
    }
    groups
}

/// What lies between ascending half-open ranges, in `0..len`.
fn gaps(ranges: &[(usize, usize)], len: usize) -> Vec<(usize, usize)> {
    let starts = std::iter::once(0).chain(ranges.iter().map(|r| r.1));
    let ends = ranges.iter().map(|r| r.0).chain([len]);
    starts.zip(ends).filter(|(a, b)| a < b).collect()
}
