//! What the maps hold at first: the part of the artifact that differs between nodes and policies.
//!
//! The text form is made to be reviewed and is read back strictly: one entry a line, in a fixed order, so that equal
//! contents are equal bytes. [`Contents::entries`] turns it into the keys and values of [`super::layout`].

mod text;

pub use text::ContentsError;

use super::Block;
use super::layout::{self, ALL_PORTS, Map, Ports};
use crate::limits;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What happens to packets of a connection that passed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Established {
    /// Every packet is judged by the addresses and the port that its connection was opened with: a connection that new
    /// policies deny ends with them.
    Cut,
    /// They pass on conntrack's word.
    Keep,
}

impl Established {
    /// Both.
    pub const ALL: [Established; 2] = [Established::Cut, Established::Keep];

    /// The word in texts and in the name of the program.
    pub const fn word(self) -> &'static str {
        match self {
            Established::Cut => "cut",
            Established::Keep => "keep",
        }
    }

    /// The name of the program.
    pub const fn program(self) -> &'static str {
        match self {
            Established::Cut => "netpolc_cut",
            Established::Keep => "netpolc_keep",
        }
    }
}

/// What the program knows about the address of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pod {
    /// The column of everything that it is allowed as a peer.
    pub column: u32,
    /// The row that says what may come in; 0 = not isolated, or not on this node.
    pub ingress: u32,
    /// The row that says what may go out; 0 = not isolated, or not on this node.
    pub egress: u32,
    /// The number of the pod; 0 = not on this node.
    pub pod: u32,
}

/// What a row allows with a column: numbers of sets of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pair {
    /// Sets of TCP, UDP and SCTP ports.
    pub ports: [u32; 3],
    /// Protocols without ports: none (0) or all (1).
    pub other: u32,
}

/// Ports as sorted inclusive ranges that neither overlap nor touch.
pub type PortSet = Vec<(u16, u16)>;

/// The contents of all maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// How many columns there are. Column 0 is nobody's: what is in no map has it.
    pub columns: u32,
    /// For each row, from row 1 on, whose it is, for people.
    pub rows: Vec<String>,
    /// Addresses of pods.
    pub pods: BTreeMap<IpAddr, Pod>,
    /// The column of other addresses by longest prefix; no match is column 0.
    pub blocks: BTreeMap<Block, u32>,
    /// What row and column allow; what is not in here is nothing.
    pub pairs: BTreeMap<(u32, u32), Pair>,
    /// The sets of ports that have a bitmap, by its key.
    pub ports: Vec<PortSet>,
}

/// Most entries that one of our maps can hold, for those who read them from a kernel.
pub const MOST_ENTRIES: usize = 4 * limits::BPF_PODS;

/// One entry of a map, as the kernel takes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The map.
    pub map: Map,
    /// The key, of the map's key size.
    pub key: Vec<u8>,
    /// The value, of the map's value size.
    pub value: Vec<u8>,
}

impl Contents {
    /// The index in `pairs` of a row's column 0, plus one; 0 for row 0.
    fn base(&self, row: u32) -> u32 {
        row.checked_sub(1).map_or(0, |r| r.saturating_mul(self.columns).saturating_add(1))
    }

    /// How many entries each map must have room for (`max_entries`), at least. The maps of pods, where addresses come later, must
    /// be [as they are made](Contents::room).
    pub fn needs(&self, map: Map) -> u32 {
        let at_least_one = |n: usize| u32::try_from(n.max(1)).unwrap_or(u32::MAX);
        match map {
            Map::Pods4 | Map::Pods6 | Map::Interfaces => self.room(map),
            Map::Blocks => at_least_one(self.blocks.len()),
            Map::Pairs | Map::Denied => at_least_one(self.rows.len().saturating_mul(self.columns as usize)),
            Map::Ports => at_least_one(self.ports.len()),
        }
    }

    /// How many entries each map is made with room for. A power of two, so that most changes leave the shapes of
    /// maps as they are, and with them the whole object: a loader can then have it loaded before the change comes.
    pub fn room(&self, map: Map) -> u32 {
        match map {
            Map::Pods4 | Map::Pods6 => {
                let there = self.pods.keys().filter(|addr| Map::of_pod(**addr) == map).count();
                let twice = u32::try_from(there.max(1) * 2).unwrap_or(u32::MAX);
                twice.checked_next_power_of_two().unwrap_or(u32::MAX).max(limits::BPF_PODS_ROOM)
            }
            Map::Interfaces => limits::BPF_INTERFACES,
            _ => self.needs(map).checked_next_power_of_two().unwrap_or(u32::MAX),
        }
    }

    /// The entry of a pod's address.
    pub fn pod_entry(&self, addr: IpAddr, pod: &Pod) -> Entry {
        let words = [pod.column, self.base(pod.ingress), self.base(pod.egress), pod.pod];
        let value = words.into_iter().flat_map(u32::to_le_bytes).collect();
        Entry { map: Map::of_pod(addr), key: layout::pod_key(addr), value }
    }

    /// All entries, in the order of maps and keys: IPv4 addresses come before IPv6 ones. Arrays start as zeros, which is
    /// "nothing allowed".
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let pods = self.pods.iter().map(|(addr, pod)| self.pod_entry(*addr, pod));
        let blocks = self.blocks.iter().map(|(block, column)| Entry {
            map: Map::Blocks,
            key: layout::block_key(block).to_vec(),
            value: column.to_le_bytes().to_vec(),
        });
        let pairs = self.pairs.iter().map(|(&(row, column), pair)| {
            let index = self.base(row).saturating_sub(1) + column;
            let words = pair.ports.into_iter().chain([pair.other]);
            let value = words.flat_map(u32::to_le_bytes).collect();
            Entry { map: Map::Pairs, key: index.to_le_bytes().to_vec(), value }
        });
        let ports = (0u32..).zip(&self.ports).map(|(i, set)| Entry {
            map: Map::Ports,
            key: i.to_le_bytes().to_vec(),
            value: bitmap(set),
        });
        pods.chain(blocks).chain(pairs).chain(ports)
    }

    /// What would make the program read past a row or a table.
    fn fault(&self) -> Option<String> {
        let rows = self.rows.len() as u64;
        let (columns, sets) = (u64::from(self.columns), self.ports.len() as u64);
        let too_many = [
            ("addresses", self.pods.len(), limits::BPF_PODS),
            ("prefixes", self.blocks.len(), limits::BPF_BLOCKS),
            ("pairs", usize::try_from(rows * columns).unwrap_or(usize::MAX), limits::BPF_PAIRS),
            ("sets of ports", self.ports.len(), limits::BPF_PORT_SETS),
        ];
        if let Some((what, count, limit)) = too_many.into_iter().find(|(_, count, limit)| count > limit) {
            return Some(format!("{count} {what}; the limit is {limit}"));
        }
        if columns == 0 {
            return Some("there is no column 0".into());
        }
        let pod_ok = |p: &Pod| {
            u64::from(p.column) < columns
                && u64::from(p.ingress.max(p.egress)) <= rows
                && (p.pod != 0 || (p.ingress == 0 && p.egress == 0))
                && p.pod < layout::SHARED
        };
        if let Some((addr, _)) = self.pods.iter().find(|(_, p)| !pod_ok(p)) {
            return Some(format!("pod {addr} names a row, a column or a pod that does not exist"));
        }
        if let Some((block, _)) = self.blocks.iter().find(|(_, c)| u64::from(**c) >= columns) {
            return Some(format!("block {block} names a column that does not exist"));
        }
        let known = |set: u32| match Ports::of(set) {
            Ports::Bitmap(key) => u64::from(key) < sets,
            named => named.number() == set,
        };
        let pair_ok = |(key, p): (&(u32, u32), &Pair)| {
            (1..=rows).contains(&u64::from(key.0))
                && u64::from(key.1) < columns
                && p.ports.iter().all(|s| known(*s))
                && p.other <= ALL_PORTS
        };
        if let Some(((row, column), _)) = self.pairs.iter().find(|e| !pair_ok(*e)) {
            return Some(format!("pair {row} {column} names something that does not exist"));
        }
        let sorted = |set: &PortSet| {
            set.iter().all(|(lo, hi)| lo <= hi)
                && set.windows(2).all(|w| u32::from(w[0].1) + 1 < u32::from(w[1].0))
        };
        self.ports.iter().position(|s| !sorted(s)).map(|i| format!("set {} is not sorted", i + 2))
    }

    /// The number of a set that needs no bitmap.
    pub fn plain_set(set: &PortSet) -> Option<Ports> {
        match set.as_slice() {
            [] => Some(Ports::None),
            [(0, u16::MAX)] => Some(Ports::All),
            [(lo, hi)] if lo == hi => Some(Ports::One(*lo)),
            _ => None,
        }
    }
}

fn bitmap(set: &PortSet) -> Vec<u8> {
    let mut bits = vec![0u8; layout::BITMAP_BYTES];
    for port in set.iter().flat_map(|&(lo, hi)| lo..=hi) {
        if let Some(byte) = bits.get_mut(usize::from(port / 8)) {
            *byte |= 1 << (port % 8);
        }
    }
    bits
}
