//! What the program can tell about the ends of packets.

use super::super::ProtocolPort;
use super::super::constants::has;
use super::super::maps::Maps;
use crate::contents::Established;
use crate::layout::{self, Map, Ports};
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::Kind;
use netpolc_ir::unit::Direction;
use rustc_hash::FxHashMap;
use std::net::IpAddr;

/// What the maps know about an address: column, ingress row, egress row; and apart from that the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::machine) struct Known {
    pub(in crate::machine) judged: [u32; 3],
    pub(in crate::machine) pod: u32,
}

impl Known {
    pub(in crate::machine) fn of(maps: &Maps, addr: IpAddr) -> Known {
        if let Some(value) = maps.get(Map::of_pod(addr), &layout::pod_key(addr)) {
            return Known { judged: [word(value, 0), word(value, 1), word(value, 2)], pod: word(value, 3) };
        }
        let column = maps.get(Map::Blocks, &layout::address_key(addr)).map_or(0, |value| word(value, 0));
        Known { judged: [column, 0, 0], pod: 0 }
    }

    /// The pod alone, which only the maps of pods know; 0 = none of this node's.
    pub(in crate::machine) fn pod_of(maps: &Maps, addr: IpAddr) -> u32 {
        maps.get(Map::of_pod(addr), &layout::pod_key(addr)).map_or(0, |value| word(value, 3))
    }

    /// What is asked where it does not matter what rows allow.
    pub(super) fn isolated(self) -> Known {
        let [_, ingress, egress] = self.judged;
        Known { judged: [0, ingress.min(1), egress.min(1)], ..self }
    }

    /// Everything but which pod of this node it is, if it is one.
    pub(super) fn class(self) -> Class {
        (self.judged, self.pod != 0)
    }
}

/// A word of a value; 0 where there is none.
pub(super) fn word(value: &[u8], i: usize) -> u32 {
    value.get(i * 4..i * 4 + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// What the program can tell about an end, other than which pod of this node it is.
pub(super) type Class = ([u32; 3], bool);

/// Two ends that are different pods, as far as the program tells such ends apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    /// What the rows of the two ends, egress and ingress of each, say of the other end: 0 if there is no such row, else a
    /// number of what `pairs` has, or 1 where that does not matter.
    pub(super) rows: [u32; 4],
    /// Whether they are pods of this node.
    pub(super) pods: [bool; 2],
}

/// Values of `pairs` by number: those that are found have numbers from [`Pairs::FIRST`] on.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    numbers: FxHashMap<Vec<u8>, u32>,
    /// The sets of TCP, UDP and SCTP ports of each.
    pub(super) sets: Vec<[u32; 3]>,
}

impl Pairs {
    /// There is no entry at this sum.
    const NOTHING: u32 = 2;
    /// The number of the first value that was found.
    pub(super) const FIRST: u32 = 3;

    /// What a row says of a column.
    pub(super) fn of(&mut self, maps: &Maps, row: u32, column: u32) -> u32 {
        if row == 0 {
            return 0;
        }
        let key = row.wrapping_add(column).wrapping_sub(1).to_le_bytes();
        let Some(value) = maps.get(Map::Pairs, &key) else { return Pairs::NOTHING };
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let number = Pairs::FIRST + self.sets.len() as u32;
        self.numbers.insert(value.to_vec(), number);
        self.sets.push([0, 1, 2].map(|transport| word(value, transport)));
        number
    }

    /// For each row of two ends, whether a port is in the set that it names.
    pub(super) fn holds(&self, maps: &Maps, ends: &Ends, (protocol, port): ProtocolPort) -> [bool; 4] {
        let Protocol::Transport(transport) = protocol else { return [false; 4] };
        ends.rows.map(|row| {
            let sets = row.checked_sub(Pairs::FIRST).and_then(|place| self.sets.get(place as usize));
            match Ports::of(sets.map_or(0, |sets| sets[transport as usize])) {
                Ports::None | Ports::All => false,
                Ports::One(only) => only == port,
                Ports::Bitmap(key) => {
                    maps.get(Map::Ports, &key.to_le_bytes()).is_some_and(|bitmap| has(bitmap, port))
                }
            }
        })
    }

    /// The first end sends, or, if packets go both ways, either does.
    pub(super) fn ends(&mut self, maps: &Maps, [src, dst]: [Known; 2], (direction, matter): Way) -> Ends {
        let ([src_column, src_in, src_out], [dst_column, dst_in, dst_out]) = (src.judged, dst.judged);
        let mut asked = |row: u32, column| match matter {
            true => self.of(maps, row, column),
            false => row.min(1),
        };
        let there = [asked(src_out, dst_column), asked(dst_in, src_column)];
        let back = match direction {
            Some(_) => [dst_out.min(1), src_in.min(1)],
            None => [asked(dst_out, src_column), asked(src_in, dst_column)],
        };
        Ends { rows: [there[0], there[1], back[0], back[1]], pods: [src.pod != 0, dst.pod != 0] }
    }
}

/// How packets of a kind go: from the peer, to the peer, or both ways in one question; and whether it matters what rows
/// allow, or only whether there are any.
pub(super) type Way = (Option<Direction>, bool);

pub(super) fn way(direction: Direction, kind: Kind, established: Established) -> Way {
    match kind {
        Kind::Established => (None, established == Established::Cut),
        Kind::Opening | Kind::Asymmetric | Kind::NeighbourDiscovery => (Some(direction), true),
        Kind::Spoofed
        | Kind::MidStream
        | Kind::MidStreamAsymmetric
        | Kind::MidStreamSpoofed
        | Kind::Untracked
        | Kind::UntrackedMidStream
        | Kind::UntrackedAsymmetric
        | Kind::UntrackedSpoofed => (Some(direction), false),
    }
}
