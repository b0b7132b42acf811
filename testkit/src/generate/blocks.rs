//! Blocks of addresses: around addresses that exist, nested, adjacent, with exceptions of many lengths.

use super::cluster::World;
use crate::random::Random;
use netpolc_ir::addr::{Cidr, Family};
use serde_json::{Value, json};
use std::net::IpAddr;

const LENGTHS_V4: [u8; 16] = [0, 0, 1, 4, 8, 9, 12, 16, 20, 23, 24, 26, 30, 31, 32, 32];
const LENGTHS_V6: [u8; 14] = [0, 0, 1, 3, 16, 48, 56, 64, 100, 112, 120, 126, 127, 128];

/// An `ipBlock`, or several adjacent ones.
pub(super) fn ip_blocks(random: &mut Random, world: &World) -> Vec<Value> {
    let around = world.address(random);
    let whole = block_around(random, around, 0);
    if random.percent(15) {
        return halves(whole).into_iter().map(|c| json!({"ipBlock": {"cidr": c.to_string()}})).collect();
    }
    let except: Vec<String> = exceptions(random, world, whole).iter().map(Cidr::to_string).collect();
    let cidr = whole.to_string();
    vec![match except.is_empty() && random.percent(70) {
        true => json!({"ipBlock": {"cidr": cidr}}),
        false => json!({"ipBlock": {"cidr": cidr, "except": except}}),
    }]
}

/// Blocks without exceptions.
pub(super) fn networks(random: &mut Random, world: &World) -> Vec<String> {
    let count = random.between(1, 3);
    let block = |random: &mut Random| {
        let around = world.address(random);
        block_around(random, around, 0).to_string()
    };
    (0..count).map(|_| block(random)).collect()
}

/// A block that has an address and is longer than `longer`.
fn block_around(random: &mut Random, addr: IpAddr, longer: u8) -> Cidr {
    let lengths: &[u8] = match Family::of(addr) {
        Family::V4 => &LENGTHS_V4,
        Family::V6 => &LENGTHS_V6,
    };
    let fitting: Vec<u8> = lengths.iter().copied().filter(|l| *l > longer || longer == 0).collect();
    let len = random.pick(&fitting).copied().unwrap_or(Family::of(addr).bits());
    Cidr::new(addr, len).unwrap_or(Cidr::all(Family::of(addr)))
}

fn halves(whole: Cidr) -> Vec<Cidr> {
    let family = whole.family();
    if whole.prefix_len() == family.bits() {
        return vec![whole];
    }
    [whole.first(), whole.last()]
        .iter()
        .filter_map(|a| Cidr::new(family.addr(*a), whole.prefix_len() + 1))
        .collect()
}

/// Parts of a block: none, a few, or one of each of many lengths.
fn exceptions(random: &mut Random, world: &World, whole: Cidr) -> Vec<Cidr> {
    let width = whole.family().bits();
    if whole.prefix_len() == width || random.percent(40) {
        return Vec::new();
    }
    let inside: Vec<IpAddr> = world.addresses.iter().copied().filter(|a| whole.contains(*a)).collect();
    let somewhere = |random: &mut Random| {
        let base = random.pick(&inside).copied().unwrap_or(whole.addr());
        let bits = netpolc_ir::addr::bits(base);
        // A neighbour of something that exists is worth as much as the thing itself.
        let near = if random.percent(30) {
            bits ^ (1 << random.below(usize::from(width - whole.prefix_len())))
        } else {
            bits
        };
        whole.family().addr(near)
    };
    if random.percent(25) {
        // The neighbours of every second block on the way to one address: nothing of this can be united.
        let goal = netpolc_ir::addr::bits(somewhere(random));
        let lengths = (whole.prefix_len() + 1..=width).rev().step_by(usize::from(width / 16)).take(9);
        let beside = |len: u8| Cidr::new(whole.family().addr(goal ^ (1 << (width - len))), len);
        return lengths.filter_map(beside).collect();
    }
    let count = random.between(1, 3);
    let mut found = Vec::new();
    for _ in 0..count {
        let addr = somewhere(random);
        let part = block_around(random, addr, whole.prefix_len());
        if part.prefix_len() > whole.prefix_len() {
            found.push(part);
        }
    }
    found
}
