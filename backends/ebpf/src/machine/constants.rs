//! What an artifact names: the addresses, ports and protocols that its program may tell apart.

use super::Machine;
use super::answers::Known;
use super::maps::Maps;
use crate::insn::{Insn, Operand};
use crate::layout::{self, Map, Ports};
use netpolc_ir::addr::{Cidr, Family, bits};
use netpolc_ir::ports::Transport;
use netpolc_ir::proof::{Bounds, Constants};
use std::collections::{BTreeMap, BTreeSet};

/// Addresses of which the maps know the same are told apart only as addresses of the same pod or of another one, so each
/// address of a pod that has several stands alone.
pub(super) fn addresses(machine: &Machine, family: Family) -> Constants {
    let mut constants = Constants::default();
    let mut alike: BTreeMap<([u32; 3], bool), Vec<u128>> = BTreeMap::new();
    let mut pods: BTreeMap<u32, Vec<u128>> = BTreeMap::new();
    let map = if family == Family::V4 { Map::Pods4 } else { Map::Pods6 };
    for addr in machine.maps.keys(map).filter_map(layout::pod_of_key) {
        let known = Known::of(&machine.maps, addr);
        alike.entry((known.judged, known.pod != 0)).or_default().push(bits(addr));
        if known.pod != 0 {
            pods.entry(known.pod).or_default().push(bits(addr));
        }
    }
    constants.sets.extend(alike.into_values());
    let several = pods.into_values().filter(|addrs| addrs.len() > 1).flatten();
    constants.sets.extend(several.map(|addr| vec![addr]));
    for block in machine.maps.keys(Map::Blocks).filter_map(layout::block_of_key) {
        if let Some(cidr) = Cidr::new(block.addr(), block.prefix_len()).filter(|c| c.family() == family) {
            constants.ranges.insert((cidr.first(), cidr.last()));
        }
    }
    if !machine.program.known && family == Family::V4 {
        let imms = immediates(&machine.program.slots);
        let addrs = imms.iter().flat_map(|i| [*i as u32, (*i as u32).swap_bytes()]);
        constants.sets.extend(addrs.map(|a| vec![u128::from(a)]));
    }
    constants
}

/// The known program looks ports up in the sets that its pairs name for the packet's protocol. Another one may look
/// anywhere, and compare with whatever it has as a constant.
pub(super) fn ports(machine: &Machine) -> Bounds {
    let mut bounds = Bounds::default();
    if machine.program.known {
        bounds.ports = Transport::ALL.map(|transport| {
            let (ones, bitmaps) = sets(&machine.maps, transport);
            let bitmaps = bitmaps.iter().filter_map(|key| machine.maps.get(Map::Ports, key)).flat_map(starts);
            bitmaps
                .chain(ones.into_iter().flat_map(|port| [Some(port), port.checked_add(1)]).flatten())
                .collect()
        });
        return bounds;
    }
    // Such a program may also take the wrong bit of the right byte, so ports of each stretch are asked about that differ in
    // one of their last bits.
    let stretches = machine.maps.values(Map::Ports).flat_map(starts);
    let mut all: BTreeSet<u16> =
        stretches.flat_map(|first| [0, 1, 2, 4, 8].map(|more| first.saturating_add(more))).collect();
    for imm in immediates(&machine.program.slots) {
        let port = u16::try_from(imm).ok();
        let ports = port.into_iter().flat_map(|p| [p, p.swap_bytes()]);
        all.extend(ports.flat_map(|p| [p, p.saturating_add(1)]));
        bounds.protocols.extend(u8::try_from(imm));
    }
    bounds.ports = Transport::ALL.map(|_| all.clone());
    bounds
}

/// The sets of ports that some pair names for a protocol: single ports, and the keys of bitmaps.
pub(super) fn sets(maps: &Maps, transport: Transport) -> (BTreeSet<u16>, Vec<[u8; 4]>) {
    let at = transport as usize * 4;
    let number = |pair: &[u8]| Some(u32::from_le_bytes(*pair.get(at..)?.first_chunk()?));
    let numbers: BTreeSet<u32> = maps.values(Map::Pairs).filter_map(number).collect();
    let (mut ones, mut bitmaps) = (BTreeSet::new(), Vec::new());
    for number in numbers {
        match Ports::of(number) {
            Ports::One(port) => drop(ones.insert(port)),
            Ports::Bitmap(key) => bitmaps.push(key.to_le_bytes()),
            Ports::None | Ports::All => {}
        }
    }
    (ones, bitmaps)
}

/// Whether a port is in a bitmap.
pub(super) fn has(bitmap: &[u8], port: u16) -> bool {
    bitmap.get(usize::from(port / 8)).is_some_and(|byte| byte >> (port % 8) & 1 == 1)
}

/// The ports of a bitmap that differ from the port before them.
pub(super) fn starts(bitmap: &[u8]) -> Vec<u16> {
    let mut found = Vec::new();
    let mut before = bitmap.first().map_or(0, |byte| byte & 1);
    for (bytes, first) in bitmap.chunks(64).zip((0..=u16::MAX).step_by(8 * 64)) {
        // Most of a bitmap is like what comes before it.
        let same = if before == 0 { 0 } else { 0xff };
        if bytes.iter().all(|byte| *byte == same) {
            continue;
        }
        for (byte, first) in bytes.iter().zip((first..).step_by(8)) {
            let changes = byte ^ (byte << 1 | before);
            found.extend((0..8).filter(|i| changes >> i & 1 == 1).map(|i| first + i));
            before = byte >> 7;
        }
    }
    found
}

/// The constants of a program that is not known: whatever it may compare with.
fn immediates(slots: &[Option<Insn>]) -> BTreeSet<i32> {
    let of = |insn: &Insn| match insn {
        Insn::Alu { src: Operand::Imm(imm), .. } | Insn::Branch { src: Operand::Imm(imm), .. } => Some(*imm),
        _ => None,
    };
    slots.iter().flatten().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_of_stretches() {
        let mut bitmap = vec![0; layout::BITMAP_BYTES];
        let mut set = |ports: std::ops::RangeInclusive<u16>| {
            ports.for_each(|p| bitmap[usize::from(p / 8)] |= 1 << (p % 8));
        };
        set(0..=0);
        set(7..=8);
        set(80..=80);
        set(1024..=65535);
        assert_eq!(starts(&bitmap), [1, 7, 9, 80, 81, 1024]);
        let slow: Vec<u16> = (1..=u16::MAX).filter(|p| has(&bitmap, *p) != has(&bitmap, p - 1)).collect();
        assert_eq!(starts(&bitmap), slow);
    }
}
