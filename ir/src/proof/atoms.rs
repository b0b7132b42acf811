//! Atoms: addresses of one family that neither side of a proof can tell apart.

use crate::addr::Family;
use crate::bitset::BitSet;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeSet;

/// The addresses that an artifact names in one family, as numbers in host order.
#[derive(Debug, Clone, Default)]
pub struct Constants {
    /// Sets of single addresses. An atom lies wholly inside or wholly outside of each.
    pub sets: Vec<Vec<u128>>,
    /// Inclusive ranges (prefixes, intervals). An atom lies wholly inside or wholly outside of each.
    pub ranges: BTreeSet<(u128, u128)>,
}

/// What an atom is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Atom {
    representative: u128,
    /// The address after the representative, where addresses are named one by one and there is another.
    second: Option<u128>,
    group: Option<usize>,
    local: bool,
}

/// All addresses of a family, cut into atoms.
#[derive(Debug, Clone)]
pub struct Atoms {
    family: Family,
    atoms: Vec<Atom>,
    /// Addresses that are named one by one.
    single: FxHashMap<u128, u32>,
    /// First address of each stretch of the others, with its atom; sorted; the first is 0.
    stretches: Vec<(u128, u32)>,
}

impl Atoms {
    /// Cuts the addresses of a family. `bound` are the endpoints' addresses with group and locality, `starts` the
    /// first addresses of stretches that the reference names.
    pub fn new(
        family: Family,
        bound: &[(u128, usize, bool)],
        constants: &Constants,
        starts: &BTreeSet<u128>,
    ) -> Atoms {
        let mut keys: Vec<(u128, Option<usize>, bool)> =
            bound.iter().map(|&(a, g, l)| (a, Some(g), l)).collect();
        let known: FxHashSet<u128> = bound.iter().map(|b| b.0).collect();
        let strays: BTreeSet<u128> =
            constants.sets.iter().flatten().copied().filter(|a| !known.contains(a)).collect();
        keys.extend(strays.into_iter().map(|a| (a, None, false)));
        keys.sort_unstable();
        keys.dedup_by_key(|k| k.0);
        let mut cut = Cut::new(&keys);
        for set in &constants.sets {
            let members = set.iter().filter_map(|a| cut.index.get(a).copied()).collect();
            cut.split(members);
        }
        for &(lo, hi) in &constants.ranges {
            let (from, to) = (keys.partition_point(|k| k.0 < lo), keys.partition_point(|k| k.0 <= hi));
            cut.split((from as u32..to as u32).collect());
        }
        let mut atoms = cut.atoms(&keys);
        let single = keys.iter().zip(&cut.atom).map(|(k, &a)| (k.0, a)).collect();
        let mut bounds: BTreeSet<u128> = starts.iter().copied().chain([0]).collect();
        for &(lo, hi) in &constants.ranges {
            bounds.insert(lo);
            bounds.extend((hi < family.max()).then(|| hi + 1));
        }
        let bounds: Vec<u128> = bounds.into_iter().collect();
        let mut stretches = Vec::with_capacity(bounds.len());
        for (i, &lo) in bounds.iter().enumerate() {
            let hi = bounds.get(i + 1).map_or(family.max(), |next| next - 1);
            match free_address(&keys, lo, hi) {
                Some(representative) => {
                    stretches.push((lo, atoms.len() as u32));
                    atoms.push(Atom { representative, second: None, group: None, local: false });
                }
                // Every address of the stretch is named one by one, so no packet is of the stretch itself.
                None => stretches.push((lo, cut.atom[keys.partition_point(|k| k.0 < lo)])),
            }
        }
        Atoms { family, atoms, single, stretches }
    }

    /// The family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// How many atoms there are.
    pub fn len(&self) -> usize {
        self.atoms.len()
    }

    /// Whether there are none (never: every family has addresses).
    pub fn is_empty(&self) -> bool {
        self.atoms.is_empty()
    }

    /// An address of the atom.
    pub fn representative(&self, atom: usize) -> u128 {
        self.atoms[atom].representative
    }

    /// An address of the atom other than this one, if it has another.
    pub fn other_than(&self, atom: usize, addr: u128) -> u128 {
        let Atom { representative, second, .. } = self.atoms[atom];
        if representative == addr { second.unwrap_or(representative) } else { representative }
    }

    /// The group of the atom's addresses in the reference; `None` where no endpoint has them.
    pub fn group(&self, atom: usize) -> Option<usize> {
        self.atoms[atom].group
    }

    /// Whether the atom's addresses live on the node in question.
    pub fn local(&self, atom: usize) -> bool {
        self.atoms[atom].local
    }

    /// The atom of an address.
    pub fn atom(&self, addr: u128) -> usize {
        if let Some(&atom) = self.single.get(&addr) {
            return atom as usize;
        }
        let i = self.stretches.partition_point(|s| s.0 <= addr);
        self.stretches[i.saturating_sub(1)].1 as usize
    }

    /// The atoms of some addresses (sound for the sets and ranges that the atoms were cut by).
    pub fn of_addresses<'a>(&self, addrs: impl IntoIterator<Item = &'a u128>) -> BitSet {
        let mut bits = BitSet::empty(self.len());
        addrs.into_iter().for_each(|a| bits.insert(self.atom(*a)));
        bits
    }

    /// The atoms whose representative fulfils a condition.
    pub fn of_condition(&self, condition: impl Fn(u128) -> bool) -> BitSet {
        self.atoms.iter().enumerate().map(|(i, a)| (i, condition(a.representative))).collect()
    }

    /// How many addresses that are named one by one lie in the atom (0 for a stretch).
    pub fn sizes(&self) -> Vec<u32> {
        let mut sizes = vec![0; self.len()];
        self.single.values().for_each(|&a| sizes[a as usize] += 1);
        sizes
    }
}

/// The first address in `lo..=hi` that is not among the sorted keys.
fn free_address(keys: &[(u128, Option<usize>, bool)], lo: u128, hi: u128) -> Option<u128> {
    let mut candidate = lo;
    for key in &keys[keys.partition_point(|k| k.0 < lo)..] {
        if key.0 != candidate {
            break;
        }
        if candidate == hi {
            return None;
        }
        candidate += 1;
    }
    Some(candidate)
}

/// Partition refinement over the addresses that are named one by one.
struct Cut {
    index: FxHashMap<u128, u32>,
    atom: Vec<u32>,
    size: Vec<u32>,
}

impl Cut {
    fn new(keys: &[(u128, Option<usize>, bool)]) -> Cut {
        let mut first: FxHashMap<(Option<usize>, bool, Option<u128>), u32> = FxHashMap::default();
        let mut cut = Cut {
            index: keys.iter().enumerate().map(|(i, k)| (k.0, i as u32)).collect(),
            atom: Vec::with_capacity(keys.len()),
            size: Vec::new(),
        };
        for &(addr, group, local) in keys {
            // Addresses of no group are told apart by the reference at bounds that are not known here: one atom each.
            let key = (group, local, group.is_none().then_some(addr));
            let atom = *first.entry(key).or_insert_with(|| {
                cut.size.push(0);
                cut.size.len() as u32 - 1
            });
            cut.size[atom as usize] += 1;
            cut.atom.push(atom);
        }
        cut
    }

    /// Separates members (distinct indices) from the others of their atoms.
    fn split(&mut self, members: Vec<u32>) {
        let mut count: FxHashMap<u32, u32> = FxHashMap::default();
        for &m in &members {
            *count.entry(self.atom[m as usize]).or_default() += 1;
        }
        let mut fresh: FxHashMap<u32, u32> = FxHashMap::default();
        for m in members {
            let atom = self.atom[m as usize];
            if count.get(&atom).is_none_or(|&n| n >= self.size[atom as usize]) && !fresh.contains_key(&atom) {
                continue;
            }
            let new = *fresh.entry(atom).or_insert_with(|| {
                self.size.push(0);
                self.size.len() as u32 - 1
            });
            self.atom[m as usize] = new;
            self.size[atom as usize] -= 1;
            self.size[new as usize] += 1;
        }
    }

    fn atoms(&self, keys: &[(u128, Option<usize>, bool)]) -> Vec<Atom> {
        let mut atoms: Vec<Option<Atom>> = vec![None; self.size.len()];
        for (key, &atom) in keys.iter().zip(&self.atom) {
            match &mut atoms[atom as usize] {
                Some(atom) => atom.second = atom.second.or(Some(key.0)),
                slot => {
                    *slot = Some(Atom { representative: key.0, second: None, group: key.1, local: key.2 });
                }
            }
        }
        atoms.into_iter().flatten().collect()
    }
}
