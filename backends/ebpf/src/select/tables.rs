//! Rows and columns -> pairs, and the sets of ports that they name.

use super::Columns;
use crate::contents::{Contents, Pair, PortSet};
use crate::layout::{ALL_PORTS, Ports};
use netpolc_ir::matrix::{Peers, ProfileData};
use std::collections::{BTreeMap, HashMap};

#[derive(Default)]
pub(super) struct Tables {
    pub(super) pairs: BTreeMap<(u32, u32), Pair>,
    pub(super) ports: Vec<PortSet>,
    index: HashMap<PortSet, u32>,
}

impl Tables {
    /// Fills a row: for each column, the ports of the cells whose peers have the column.
    pub(super) fn row(&mut self, row: u32, profile: &ProfileData, columns: &Columns<'_>) {
        let mut members: HashMap<Peers, Vec<u32>> = HashMap::new();
        let mut pairs: Vec<Pair> = vec![Pair::default(); columns.len()];
        for (t, cells) in profile.transports.iter().enumerate() {
            let mut sets: Vec<PortSet> = vec![Vec::new(); columns.len()];
            for cell in cells {
                let list = members.entry(cell.peers).or_insert_with(|| columns.members(cell.peers));
                for &column in list.iter() {
                    let set = &mut sets[column as usize];
                    match set.last_mut() {
                        Some(last) if last.1.checked_add(1) == Some(cell.lo) => last.1 = cell.hi,
                        _ => set.push((cell.lo, cell.hi)),
                    }
                }
            }
            for (pair, set) in pairs.iter_mut().zip(sets) {
                pair.ports[t] = self.set(set);
            }
        }
        for column in columns.members(profile.other.peers) {
            pairs[column as usize].other = ALL_PORTS;
        }
        let filled = (0u32..).zip(pairs).filter(|(_, pair)| *pair != Pair::default());
        self.pairs.extend(filled.map(|(column, pair)| ((row, column), pair)));
    }

    /// The number of a set. More sets with a bitmap than there may be are refused by the caller, which counts them.
    fn set(&mut self, set: PortSet) -> u32 {
        if let Some(plain) = Contents::plain_set(&set) {
            return plain.number();
        }
        if let Some(&number) = self.index.get(&set) {
            return number;
        }
        let number =
            u16::try_from(self.ports.len()).map_or(Ports::None, |n| Ports::Bitmap(n.into())).number();
        self.ports.push(set.clone());
        self.index.insert(set, number);
        number
    }
}
