//! A packet that opens a connection through the contents of maps, as our program judges it: what
//! [`super::layout`] says that the numbers mean, and no instruction.
//!
//! The compiler's proof executes the program itself. The loader asks here what contents that somebody changed come to.

use super::Block;
use super::contents::Entry;
use super::layout::{self, Map, Ports};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What a value of `pods4` or `pods6` says. Rows are as the map has them: the key in `pairs` of their column 0, plus one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names are those of the layout")]
pub struct Known {
    pub column: u32,
    pub ingress: u32,
    pub egress: u32,
    pub pod: u32,
}

/// Contents of maps, to be asked. Entries that no packet can meet are left out.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of the maps")]
pub struct Tables {
    pub pods: BTreeMap<IpAddr, Known>,
    pub blocks: BTreeMap<Block, u32>,
    /// Sets of TCP, UDP and SCTP ports; other protocols.
    pub pairs: BTreeMap<u32, [u32; 4]>,
    /// Bitmaps, by their key.
    pub ports: BTreeMap<u32, Vec<u8>>,
}

fn words(bytes: &[u8]) -> Option<[u32; 4]> {
    let words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    words.collect::<Vec<_>>().try_into().ok()
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_le_bytes)
}

impl Tables {
    /// From entries, as the compiler writes them or a kernel has them.
    pub fn of(entries: impl IntoIterator<Item = Entry>) -> Tables {
        let mut tables = Tables::default();
        for entry in entries {
            // What has another shape than the layout says does not count.
            let _ = tables.insert(&entry);
        }
        tables
    }

    fn insert(&mut self, entry: &Entry) -> Option<()> {
        let Entry { map, key, value } = entry;
        match map {
            Map::Pods4 | Map::Pods6 => {
                let [column, ingress, egress, pod] = words(value)?;
                self.pods.insert(layout::pod_of_key(key)?, Known { column, ingress, egress, pod });
            }
            Map::Blocks => drop(self.blocks.insert(layout::block_of_key(key)?, number(value)?)),
            Map::Pairs => drop(self.pairs.insert(number(key)?, words(value)?)),
            Map::Ports => drop(self.ports.insert(number(key)?, value.clone())),
            Map::Interfaces | Map::Denied => {}
        }
        Some(())
    }

    /// What is known about an address.
    pub fn who(&self, addr: IpAddr) -> Known {
        if let Some(known) = self.pods.get(&addr) {
            return *known;
        }
        let longest = if addr.is_ipv4() { 32 } else { 128 };
        let blocks = (0..=longest).rev().filter_map(|length| self.blocks.get(&Block::new(addr, length)?));
        Known { column: blocks.copied().next().unwrap_or(0), ..Known::default() }
    }

    /// Whether the first packet of a connection passes, if it comes from the interface that its source lives behind.
    pub fn passes(&self, src: IpAddr, dst: IpAddr, protocol: u8, port: u16) -> bool {
        let (from, to) = (self.who(src), self.who(dst));
        let itself = from.pod != 0 && from.pod == to.pod;
        itself
            || self.allows(from.egress, to.column, protocol, port)
                && self.allows(to.ingress, from.column, protocol, port)
    }

    fn allows(&self, row: u32, column: u32, protocol: u8, port: u16) -> bool {
        if row == 0 {
            return true;
        }
        let Some(pair) = self.pairs.get(&row.wrapping_add(column).wrapping_sub(1)) else { return false };
        let set = match protocol {
            6 => pair[0],
            17 => pair[1],
            132 => pair[2],
            _ => pair[3],
        };
        match Ports::of(set) {
            Ports::All => true,
            Ports::None => false,
            Ports::One(only) => only == port,
            Ports::Bitmap(key) => {
                let bits = self.ports.get(&key);
                let byte = bits.and_then(|bits| bits.get(usize::from(port / 8)));
                byte.is_some_and(|byte| byte >> (port % 8) & 1 == 1)
            }
        }
    }
}
