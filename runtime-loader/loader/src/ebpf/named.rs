//! What the maps of two versions name, for [`crate::witness`].
//!
//! Packets are asked about as if each came from the interface that its source lives behind; that another number stands for
//! an interface is a difference of its own.

use crate::witness::{Candidates, Witness, witness};
use netpolc_bundle::Bundle;
use netpolc_bundle::bpf::contents::{Contents, Entry};
use netpolc_bundle::bpf::layout::Ports;
use netpolc_bundle::bpf::run::{Known, Tables};
use std::collections::BTreeSet;

/// A packet that the kernel's maps judge otherwise than the bundle's.
pub(super) fn difference(bundle: &Bundle, wanted: &Contents, seen: Vec<Entry>) -> Option<Witness> {
    let (wanted, seen) = (Tables::of(wanted.entries()), Tables::of(seen));
    let candidates = candidates(&wanted, &seen);
    witness(
        bundle,
        &candidates,
        &|packet| wanted.passes(packet.src, packet.dst, packet.protocol, packet.dport),
        &|packet| seen.passes(packet.src, packet.dst, packet.protocol, packet.dport),
    )
}

/// The addresses and ports of both; first those that something differs for.
fn candidates(wanted: &Tables, seen: &Tables) -> Candidates {
    let mut candidates = Candidates::default();
    let pairs = changed_pairs(wanted, seen);
    let rows = rows(wanted).union(&rows(seen)).copied().collect::<BTreeSet<u32>>();
    let touched = |column: u32| {
        pairs
            .iter()
            .any(|pair| pair.checked_sub(column).is_some_and(|base| rows.contains(&base.saturating_add(1))))
    };
    for only_changed in [true, false] {
        for (one, other) in [(seen, wanted), (wanted, seen)] {
            for (addr, known) in &one.pods {
                if !only_changed || other.pods.get(addr) != Some(known) || touched(known.column) {
                    candidates.address(*addr);
                }
            }
            for (block, column) in &one.blocks {
                if !only_changed || other.blocks.get(block) != Some(column) || touched(*column) {
                    candidates.block(block.addr(), block.last());
                }
            }
            let named = one.pairs.iter().filter(|(key, _)| !only_changed || pairs.contains(key));
            for set in named.flat_map(|(_, pair)| &pair[..3]) {
                if let Ports::One(port) = Ports::of(*set) {
                    candidates.ports(port, port);
                }
            }
            for (number, bits) in &one.ports {
                let other = other.ports.get(number).map(Vec::as_slice).unwrap_or_default();
                if only_changed {
                    ranges(&differing(bits, other)).for_each(|(lo, hi)| candidates.ports(lo, hi));
                } else {
                    ranges(bits).for_each(|(lo, hi)| candidates.ports(lo, hi));
                }
            }
        }
    }
    candidates
}

/// The keys of `pairs` that say something else, or name a set of ports that does.
fn changed_pairs(wanted: &Tables, seen: &Tables) -> BTreeSet<u32> {
    let same_ports = |number: u32| match Ports::of(number) {
        Ports::Bitmap(key) => wanted.ports.get(&key) == seen.ports.get(&key),
        Ports::None | Ports::All | Ports::One(_) => true,
    };
    let keys = wanted.pairs.keys().chain(seen.pairs.keys()).copied();
    let same = |key: &u32| {
        let pair = wanted.pairs.get(key);
        pair == seen.pairs.get(key) && pair.is_some_and(|pair| pair[..3].iter().all(|set| same_ports(*set)))
    };
    keys.filter(|key| !same(key)).collect()
}

/// What stands for rows in the maps of pods.
fn rows(tables: &Tables) -> BTreeSet<u32> {
    let rows = |known: &Known| [known.ingress, known.egress];
    tables.pods.values().flat_map(rows).filter(|row| *row != 0).collect()
}

/// The bits that only one of two bitmaps has.
fn differing(one: &[u8], other: &[u8]) -> Vec<u8> {
    let other = other.iter().copied().chain(std::iter::repeat(0));
    one.iter().zip(other).map(|(one, other)| one ^ other).collect()
}

/// The ports in a bitmap, as ranges.
fn ranges(bits: &[u8]) -> impl Iterator<Item = (u16, u16)> {
    let has = |port: u16| bits.get(usize::from(port / 8)).is_some_and(|byte| byte >> (port % 8) & 1 == 1);
    let starts = (0..=u16::MAX).filter(move |port| has(*port) && !port.checked_sub(1).is_some_and(has));
    starts.map(move |lo| (lo, (lo..=u16::MAX).take_while(|port| has(*port)).last().unwrap_or(lo)))
}
