//! Stretches of addresses -> the fewest prefixes whose longest match gives each address its column.
//!
//! Draves, King, Venkatachary, Zill: "Constructing Optimal IP Routing Tables", 1999, for any number of marks and a given
//! default (column 0, which needs no entry). Nodes of the binary trie that lie in one stretch are leaves, so the work is
//! the number of stretches times the width of the family.

use super::Stretches;
use netpolc_ir::addr::{Cidr, Family};
use std::collections::BTreeMap;

/// A node of the trie: the columns that it may have itself at no extra cost, sorted, and its halves.
struct Node {
    columns: Vec<u32>,
    halves: Option<[usize; 2]>,
}

struct Trie<'s> {
    family: Family,
    stretches: &'s Stretches,
    nodes: Vec<Node>,
}

/// The table of prefixes. Deterministic; what it does not match has column 0.
pub(super) fn cover(family: Family, stretches: &Stretches) -> BTreeMap<Cidr, u32> {
    let mut trie = Trie { family, stretches, nodes: Vec::new() };
    let root = trie.build(0, 0);
    let mut table = BTreeMap::new();
    trie.assign(root, (0, 0), 0, &mut table);
    table
}

impl Trie<'_> {
    fn last(&self, first: u128, len: u8) -> u128 {
        first | (self.family.max() ^ self.family.mask(len))
    }

    fn build(&mut self, first: u128, len: u8) -> usize {
        let at = self.stretches.partition_point(|s| s.0 <= first).saturating_sub(1);
        let whole = self.stretches.get(at + 1).is_none_or(|next| next.0 > self.last(first, len));
        let node = if whole || len >= self.family.bits() {
            Node { columns: vec![self.stretches.get(at).map_or(0, |s| s.1)], halves: None }
        } else {
            let middle = first | (1 << (self.family.bits() - len - 1));
            let halves = [self.build(first, len + 1), self.build(middle, len + 1)];
            let [low, high] = halves.map(|h| &self.nodes[h].columns);
            let both: Vec<u32> = low.iter().copied().filter(|c| high.binary_search(c).is_ok()).collect();
            let columns = if both.is_empty() { merged(low, high) } else { both };
            Node { columns, halves: Some(halves) }
        };
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn assign(&self, node: usize, (first, len): (u128, u8), above: u32, table: &mut BTreeMap<Cidr, u32>) {
        let data = &self.nodes[node];
        let mut column = above;
        if data.columns.binary_search(&above).is_err() {
            column = data.columns.first().copied().unwrap_or(0);
            if let Some(cidr) = Cidr::new(self.family.addr(first), len) {
                table.insert(cidr, column);
            }
        }
        if let Some([low, high]) = data.halves {
            let middle = first | (1 << (self.family.bits() - len - 1));
            self.assign(low, (first, len + 1), column, table);
            self.assign(high, (middle, len + 1), column, table);
        }
    }
}

fn merged(a: &[u32], b: &[u32]) -> Vec<u32> {
    let mut all = [a, b].concat();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpolc_ir::addr::bits;

    fn lookup(table: &BTreeMap<Cidr, u32>, addr: u128) -> u32 {
        let hits = table.iter().filter(|(c, _)| c.contains(Family::V4.addr(addr)));
        hits.max_by_key(|(c, _)| c.prefix_len()).map_or(0, |(_, column)| *column)
    }

    #[test]
    fn every_stretch_gets_its_column() {
        let ip = |text: &str| bits(text.parse().unwrap());
        let stretches = vec![
            (0, 1),
            (ip("10.0.0.0"), 2),
            (ip("10.0.5.7"), 3),
            (ip("10.0.5.8"), 2),
            (ip("10.1.0.0"), 0),
            (ip("11.0.0.0"), 1),
            (ip("255.255.255.255"), 4),
        ];
        let table = cover(Family::V4, &stretches);
        for (i, &(start, column)) in stretches.iter().enumerate() {
            let end = stretches.get(i + 1).map_or(u128::from(u32::MAX), |s| s.0 - 1);
            for addr in [start, start + (end - start) / 2, end] {
                assert_eq!(lookup(&table, addr), column, "{addr:x}");
            }
        }
        assert!(table.len() < 20, "{table:?}");
    }

    #[test]
    fn nothing_needs_no_prefix() {
        assert!(cover(Family::V6, &vec![(0, 0)]).is_empty());
        assert_eq!(cover(Family::V6, &vec![(0, 7)]).len(), 1);
    }
}
