//! `cidr-cover`: the blocks of every set become the shortest list with the same addresses.
//!
//! Length counts blocks and exceptions. A table of prefixes, each marked *in* or *out*, where the longest matching prefix
//! decides and no match means *out*, is the same thing as a list of blocks: an *in* prefix is a block, an *out* prefix is
//! an exception of the smallest block around it, an *in* prefix inside of an exception is a block of its own. The shortest
//! such table for a set of addresses is found on the binary trie of its prefixes: for each node, and for either mark that
//! it may inherit from above, the fewest entries that its subtree needs are the sum of its children's, or one more than
//! that with the other mark set here (Draves, King, Venkatachary, Zill: "Constructing Optimal IP Routing Tables", 1999,
//! for two marks and a given default). Ties are broken toward no entry here, hence toward longer prefixes and fewer
//! exceptions, so the list depends on the addresses alone: equal sets are written equally.
//!
//! A set of all addresses of both families also loses its classes: they add nothing.
//!
//! Sound because the union of the blocks is all that a set's blocks mean (exceptions are local to their block).
//! Needs verified input (exceptions of the block's family). Keeps U6, which speaks of the union alone. Costs, for each
//! set, its number of boundaries times the width of the family; equal lists are solved once.

use super::set_entries;
use crate::addr::{AddrSet, Block, Cidr, Family, Ranges};
use crate::unit::{SetData, Unit};
use std::collections::HashMap;

/// The pass.
pub fn run(mut unit: Unit) -> Unit {
    let mut solved: HashMap<Vec<Block>, Vec<Block>> = HashMap::new();
    let everything = Family::ALL.map(|f| Block::whole(Cidr::all(f)));
    for set in unit.sets.values_mut().filter(|s| !s.blocks.is_empty()) {
        let blocks = std::mem::take(&mut set.blocks);
        if let Some(known) = solved.get(&blocks) {
            set.blocks = known.clone();
        } else {
            set.blocks = shorter(blocks.clone());
            solved.insert(blocks, set.blocks.clone());
        }
        if set.blocks == everything {
            set.classes.clear();
        }
    }
    unit
}

fn shorter(blocks: Vec<Block>) -> Vec<Block> {
    let length = |blocks: &[Block]| set_entries(&SetData { classes: Vec::new(), blocks: blocks.to_vec() });
    let cover = cover(&AddrSet::from_blocks(&blocks));
    // The cover is the shortest table, so this holds always; were it not so, the unit must still not grow.
    if length(&cover) <= length(&blocks) { cover } else { blocks }
}

/// The shortest list of blocks with these addresses, sorted, IPv4 before IPv6.
pub fn cover(set: &AddrSet) -> Vec<Block> {
    let mut blocks = Vec::new();
    for family in Family::ALL {
        let mut trie = Trie { family, nodes: Vec::new() };
        let ranges: &Ranges = set.family(family);
        let root = trie.build(0, 0, ranges.as_slice());
        trie.emit(root, 0, 0, None, &mut blocks);
    }
    blocks.sort_unstable();
    for block in &mut blocks {
        block.except.sort_unstable();
    }
    blocks
}

/// A prefix and what is below it.
struct Node {
    /// Fewest entries in this subtree, if `[out, in]` is inherited.
    cost: [u32; 2],
    /// The halves; `None` if the prefix is wholly in or out.
    children: Option<[usize; 2]>,
}

struct Trie {
    family: Family,
    nodes: Vec<Node>,
}

impl Trie {
    /// Builds the subtree of a prefix, given the ranges that touch it. As deep as the family is wide.
    fn build(&mut self, base: u128, len: u8, ranges: &[(u128, u128)]) -> usize {
        let last = Cidr::from_bits(self.family, base, len).last();
        let node = match ranges {
            [] => Node { cost: [0, 1], children: None },
            [(lo, hi)] if *lo <= base && last <= *hi => Node { cost: [1, 0], children: None },
            _ => {
                let middle = base + (last - base) / 2 + 1;
                let left = &ranges[..ranges.partition_point(|r| r.0 < middle)];
                let right = &ranges[ranges.partition_point(|r| r.1 < middle)..];
                let children = [self.build(base, len + 1, left), self.build(middle, len + 1, right)];
                let below = |mark: usize| {
                    children.iter().map(|&c| self.nodes[c].cost[mark]).fold(0, u32::saturating_add)
                };
                let (out, inside) = (below(0), below(1));
                let cost = [out.min(inside.saturating_add(1)), inside.min(out.saturating_add(1))];
                Node { cost, children: Some(children) }
            }
        };
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Writes the entries of a subtree. `block` is the innermost block around it if *in* is inherited, and the block
    /// that exceptions belong to.
    fn emit(&self, node: usize, base: u128, len: u8, block: Option<usize>, out: &mut Vec<Block>) {
        let Node { cost, children } = &self.nodes[node];
        let inherited = usize::from(block.is_some());
        let below = match children {
            Some(c) => self.nodes[c[0]].cost[inherited].saturating_add(self.nodes[c[1]].cost[inherited]),
            None => cost[inherited].saturating_mul(2),
        };
        let mut block = block;
        if cost[inherited] < below {
            // The other mark is set here.
            let cidr = Cidr::from_bits(self.family, base, len);
            block = match block {
                None => {
                    out.push(Block::whole(cidr));
                    Some(out.len() - 1)
                }
                Some(around) => {
                    out[around].except.push(cidr);
                    None
                }
            };
        }
        if let Some([left, right]) = *children {
            let middle = Cidr::from_bits(self.family, base, len);
            let middle = middle.first() + (middle.last() - middle.first()) / 2 + 1;
            self.emit(left, base, len + 1, block, out);
            self.emit(right, middle, len + 1, block, out);
        }
    }
}
