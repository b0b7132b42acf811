//! The minimal cover against every possible table, and against random lists of blocks.

use crate::common::{Rng, block};
use netpolc_ir::addr::{AddrSet, Block, Cidr, bits};
use netpolc_ir::passes::cidr_cover::cover;
use std::collections::BTreeSet;
use std::net::IpAddr;

fn entries(blocks: &[Block]) -> usize {
    blocks.iter().map(|b| 1 + b.except.len()).sum()
}

/// Eight addresses have 15 prefixes. The sets that are the union of `k` blocks, each less some prefixes, with `n` entries
/// in all, are found for growing `n`; the first `n` at which a set appears is its shortest length.
#[test]
fn no_shorter_list_exists() {
    let prefixes: Vec<u8> =
        (0..4u32).flat_map(|level| (0..1u32 << level).map(move |i| prefix_mask(level, i))).collect();
    // One block with up to n - 1 exceptions.
    let mut shortest = [usize::MAX; 256];
    shortest[0] = 0;
    let mut single: Vec<BTreeSet<u8>> = vec![BTreeSet::new(), prefixes.iter().copied().collect()];
    for n in 2..=8 {
        let next = single[n - 1].iter().flat_map(|s| prefixes.iter().map(move |p| s & !p)).collect();
        single.push(next);
    }
    let mut reached: Vec<BTreeSet<u8>> = vec![BTreeSet::from([0])];
    for n in 1..=8 {
        let mut sets = BTreeSet::new();
        for last in 1..=n {
            sets.extend(reached[n - last].iter().flat_map(|a| single[last].iter().map(move |b| a | b)));
        }
        sets.iter().for_each(|&s| shortest[usize::from(s)] = shortest[usize::from(s)].min(n));
        reached.push(sets);
    }
    let base: IpAddr = "10.0.0.0".parse().unwrap();
    for set in 0..=255u8 {
        let one =
            |i: u32| Cidr::new(IpAddr::from(std::net::Ipv4Addr::from(bits(base) as u32 + i)), 32).unwrap();
        let blocks: Vec<Block> = (0..8).filter(|i| set >> i & 1 == 1).map(|i| Block::whole(one(i))).collect();
        let addrs = AddrSet::from_blocks(&blocks);
        let found = cover(&addrs);
        assert_eq!(AddrSet::from_blocks(&found), addrs, "{set:08b}");
        assert_eq!(entries(&found), shortest[usize::from(set)], "{set:08b}: {found:?}");
    }
}

/// The addresses `index << (3 - level) ..` of eight, as bits.
fn prefix_mask(level: u32, index: u32) -> u8 {
    let size = 8 >> level;
    (0..size).fold(0, |mask, i| mask | 1 << (index * size + i))
}

#[test]
fn a_cover_is_the_same_set_and_never_longer() {
    let mut shorter = 0;
    for seed in 0..20_000 {
        let rng = &mut Rng::new(seed);
        let blocks: Vec<Block> = (0..1 + rng.below(6)).map(|_| block(rng)).collect();
        let set = AddrSet::from_blocks(&blocks);
        let found = cover(&set);
        assert_eq!(AddrSet::from_blocks(&found), set, "{blocks:?} {found:?}");
        assert!(entries(&found) <= entries(&blocks), "{blocks:?} {found:?}");
        shorter += usize::from(entries(&found) < entries(&blocks));
    }
    assert!((2000..19_000).contains(&shorter), "{shorter}");
}
