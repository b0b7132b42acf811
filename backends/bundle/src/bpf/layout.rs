//! The maps: what they are called, and what keys and values look like. Program, contents, decoder and loader share
//! this and nothing else about the data.
//!
//! | map | type | key | value |
//! |---|---|---|---|
//! | `pods4`, `pods6` | hash | address | column, ingress row, egress row, pod |
//! | `blocks` | longest prefix | prefix length, family, address | column |
//! | `pairs` | array | row + column | sets of TCP, UDP and SCTP ports; other protocols |
//! | `ports` | array | set of ports - 2 | bitmap |
//! | `interfaces` | hash | interface index | pod |
//! | `denied` | array | as in `pairs` | packets that the row has denied to the column |
//!
//! Numbers are little-endian, addresses in network order. A pod's address has 4 bytes or 16; each family has a map of its
//! own, since four bytes are hashed and compared in less time. In `blocks` an IPv4 address is followed by twelve zero bytes, as
//! in conntrack's own `union nf_inet_addr`, and the family is 4 or 6, so an IPv4-mapped address is never taken for an IPv4 one.

use super::Block;
use std::net::IpAddr;

/// Type of a map, by its number in the kernel (`enum bpf_map_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapType {
    /// `BPF_MAP_TYPE_HASH`.
    Hash,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array,
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    Lpm,
}

impl MapType {
    /// The kernel's number.
    pub const fn number(self) -> u32 {
        match self {
            MapType::Hash => 1,
            MapType::Array => 2,
            MapType::Lpm => 11,
        }
    }

    /// From the kernel's number.
    pub const fn from_number(number: u32) -> Option<MapType> {
        match number {
            1 => Some(MapType::Hash),
            2 => Some(MapType::Array),
            11 => Some(MapType::Lpm),
            _ => None,
        }
    }

    /// `map_flags`: a trie must have `BPF_F_NO_PREALLOC` (1) (`trie_alloc`, kernel/bpf/lpm_trie.c).
    pub const fn flags(self) -> u32 {
        match self {
            MapType::Hash | MapType::Array => 0,
            MapType::Lpm => 1,
        }
    }
}

/// One of our maps. The order is that of the object's `.maps` section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Map {
    /// IPv4 addresses of pods.
    Pods4,
    /// IPv6 addresses of pods.
    Pods6,
    /// Prefixes.
    Blocks,
    /// What a row allows with a column.
    Pairs,
    /// Bitmaps of ports.
    Ports,
    /// Which pod is behind an interface. Empty in the artifact: the loader knows the interfaces, and must fill this
    /// before it attaches the program. Where an interface is missing, new packets of its pod are dropped.
    Interfaces,
    /// How many packets each pair has denied since the map was made. Only the program writes it, and only people and
    /// their tools read it: no verdict depends on it.
    Denied,
}

impl Map {
    /// All, in order.
    pub const ALL: [Map; 7] =
        [Map::Pods4, Map::Pods6, Map::Blocks, Map::Pairs, Map::Ports, Map::Interfaces, Map::Denied];

    /// Those that know pods by their addresses.
    pub const PODS: [Map; 2] = [Map::Pods4, Map::Pods6];

    /// The one that knows the pod with an address.
    pub const fn of_pod(addr: IpAddr) -> Map {
        match addr {
            IpAddr::V4(_) => Map::Pods4,
            IpAddr::V6(_) => Map::Pods6,
        }
    }

    /// The name in the object; the kernel takes 15 characters.
    pub const fn name(self) -> &'static str {
        match self {
            Map::Pods4 => "pods4",
            Map::Pods6 => "pods6",
            Map::Blocks => "blocks",
            Map::Pairs => "pairs",
            Map::Ports => "ports",
            Map::Interfaces => "interfaces",
            Map::Denied => "denied",
        }
    }

    /// The map with this name.
    pub fn from_name(name: &str) -> Option<Map> {
        Map::ALL.into_iter().find(|m| m.name() == name)
    }

    /// Type, key size and value size in bytes.
    pub const fn shape(self) -> (MapType, u32, u32) {
        match self {
            Map::Pods4 => (MapType::Hash, 4, 16),
            Map::Pods6 => (MapType::Hash, 16, 16),
            Map::Blocks => (MapType::Lpm, 24, 4),
            Map::Pairs => (MapType::Array, 4, 16),
            Map::Ports => (MapType::Array, 4, BITMAP_BYTES as u32),
            Map::Interfaces => (MapType::Hash, 4, 4),
            Map::Denied => (MapType::Array, 4, 8),
        }
    }
}

/// A bitmap has one bit for each port: bit `port % 8` of byte `port / 8`.
pub const BITMAP_BYTES: usize = 8192;

/// The number of the empty set of ports.
pub const NO_PORTS: u32 = 0;
/// The number of the set of all ports.
pub const ALL_PORTS: u32 = 1;
/// The number of the first set that has a bitmap.
pub const FIRST_BITMAP: u32 = 2;
/// The number of the set of port 0 alone, and with a port added of that port alone. A set of one port, as most are, needs
/// no bitmap: a look into another map, and most often a cache miss, less for the packet.
pub const ONE_PORT: u32 = 0x1_0000;

/// A set of ports by its number in `pairs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// No port.
    None,
    /// Every port.
    All,
    /// One port.
    One(u16),
    /// Those of a bitmap, by its key in `ports`.
    Bitmap(u32),
}

impl Ports {
    /// What a number stands for. Numbers that nothing stands for are no port, as they are to the program.
    pub const fn of(number: u32) -> Ports {
        match number {
            NO_PORTS => Ports::None,
            ALL_PORTS => Ports::All,
            FIRST_BITMAP..ONE_PORT => Ports::Bitmap(number - FIRST_BITMAP),
            _ => match number - ONE_PORT {
                port @ 0..=0xffff => Ports::One(port as u16),
                _ => Ports::None,
            },
        }
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        match self {
            Ports::None => NO_PORTS,
            Ports::All => ALL_PORTS,
            Ports::One(port) => ONE_PORT + port as u32,
            Ports::Bitmap(key) => FIRST_BITMAP + key,
        }
    }
}

/// The word that stands for the family of an address in keys of `blocks`.
pub const fn family_word(addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(_) => 4,
        IpAddr::V6(_) => 6,
    }
}

/// The key of an address in [its map](Map::of_pod).
pub fn pod_key(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The address of a key of `pods4` or `pods6`; `None` if it is none of ours.
pub fn pod_of_key(key: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(key).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(key).map(IpAddr::from)).ok()
}

/// The key of a whole address in `blocks`.
pub fn address_key(addr: IpAddr) -> [u8; 24] {
    let mut key = [0; 24];
    key[..4].copy_from_slice(&160u32.to_le_bytes());
    key[4..8].copy_from_slice(&family_word(addr).to_le_bytes());
    match addr {
        IpAddr::V4(a) => key[8..12].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => key[8..].copy_from_slice(&a.octets()),
    }
    key
}

/// The key of a prefix in `blocks`: the family is part of the prefix.
pub fn block_key(block: &Block) -> [u8; 24] {
    let mut key = address_key(block.addr());
    key[..4].copy_from_slice(&(32 + u32::from(block.prefix_len())).to_le_bytes());
    key
}

/// The prefix of a key of `blocks`; `None` if it is none of ours.
pub fn block_of_key(key: &[u8]) -> Option<Block> {
    let (len, rest) = key.split_first_chunk::<4>()?;
    let (family, addr) = rest.split_first_chunk::<4>()?;
    let addr = <[u8; 16]>::try_from(addr).ok()?;
    let addr = match u32::from_le_bytes(*family) {
        4 if addr[4..] == [0; 12] => IpAddr::from([addr[0], addr[1], addr[2], addr[3]]),
        6 => IpAddr::from(addr),
        _ => return None,
    };
    let len = u8::try_from(u32::from_le_bytes(*len).checked_sub(32)?).ok()?;
    Block::new(addr, len).filter(|block| block.addr() == addr)
}

/// In `interfaces`, instead of a pod's number: several pods of this node are behind the interface, as with a bridge.
pub const SHARED: u32 = 0x7fff_ffff;
