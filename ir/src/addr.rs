//! Addresses: families, CIDR blocks and canonical sets of addresses.
//!
//! Inside this crate an address is a [`Family`] and a `u128` that holds its bits in host order (an IPv4 address uses
//! the low 32 bits), so that set operations are written once for both families. IPv4 and IPv6 never match each other;
//! an IPv4-mapped IPv6 address is an IPv6 address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, 32 bits.
    V4,
    /// IPv6, 128 bits.
    V6,
}

impl Family {
    /// Both families, in output order.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// Width of an address in bits.
    pub const fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// The largest address as a number.
    pub const fn max(self) -> u128 {
        match self {
            Family::V4 => u32::MAX as u128,
            Family::V6 => u128::MAX,
        }
    }

    /// The family of an address.
    pub const fn of(addr: IpAddr) -> Family {
        match addr {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The address with these bits; bits beyond the family's width are cut off.
    pub fn addr(self, bits: u128) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(bits as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(bits)),
        }
    }

    /// The mask of a prefix length (`len` above the width counts as the width).
    pub const fn mask(self, len: u8) -> u128 {
        let bits = self.bits();
        let len = if len > bits { bits } else { len };
        if len == 0 { 0 } else { (self.max() >> (bits - len)) << (bits - len) }
    }
}

/// The bits of an address as a number, in host order.
pub fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

/// A CIDR block. Invariant: no host bits are set and the length fits the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    family: Family,
    base: u128,
    len: u8,
}

impl Cidr {
    /// The block of `addr` with this prefix length; host bits are masked. `None` if the length exceeds the family's.
    pub fn new(addr: IpAddr, len: u8) -> Option<Cidr> {
        let family = Family::of(addr);
        (len <= family.bits()).then(|| Cidr { family, base: bits(addr) & family.mask(len), len })
    }

    /// Every address of a family.
    pub const fn all(family: Family) -> Cidr {
        Cidr { family, base: 0, len: 0 }
    }

    pub(crate) const fn from_bits(family: Family, base: u128, len: u8) -> Cidr {
        Cidr { family, base: base & family.mask(len), len }
    }

    /// The family.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The first address.
    pub fn addr(&self) -> IpAddr {
        self.family.addr(self.base)
    }

    /// The prefix length.
    pub const fn prefix_len(&self) -> u8 {
        self.len
    }

    /// The first address as a number.
    pub const fn first(&self) -> u128 {
        self.base
    }

    /// The last address as a number.
    pub const fn last(&self) -> u128 {
        self.base | (self.family.max() ^ self.family.mask(self.len))
    }

    /// Whether the block has this address.
    pub fn contains(&self, addr: IpAddr) -> bool {
        Family::of(addr) == self.family && bits(addr) & self.family.mask(self.len) == self.base
    }

    /// Whether the block has all of `other` (an equal block counts).
    pub fn covers(&self, other: &Cidr) -> bool {
        self.family == other.family
            && self.len <= other.len
            && other.base & self.family.mask(self.len) == self.base
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.len)
    }
}

/// A text that is no CIDR block in the form `address/length`, without host bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a CIDR block without host bits: {0}")]
pub struct BadCidr(pub String);

impl FromStr for Cidr {
    type Err = BadCidr;

    fn from_str(text: &str) -> Result<Cidr, BadCidr> {
        let bad = || BadCidr(text.chars().take(64).collect());
        let (addr, len) = text.split_once('/').ok_or_else(bad)?;
        let addr: IpAddr = addr.parse().map_err(|_| bad())?;
        let cidr = Cidr::new(addr, len.parse().map_err(|_| bad())?).ok_or_else(bad)?;
        if cidr.first() == bits(addr) { Ok(cidr) } else { Err(bad()) }
    }
}

/// A block minus some blocks inside it, as an `ipBlock` is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The block.
    pub cidr: Cidr,
    /// What is taken out of this block, and of no other. Of the same family; may lie anywhere.
    pub except: Vec<Cidr>,
}

impl Block {
    /// A block without exceptions.
    pub fn whole(cidr: Cidr) -> Block {
        Block { cidr, except: Vec::new() }
    }

    /// Whether the block matches this address.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.cidr.contains(addr) && !self.except.iter().any(|e| e.contains(addr))
    }
}

/// Addresses of one family as sorted inclusive ranges that neither overlap nor touch. Equal sets have equal ranges.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ranges(Vec<(u128, u128)>);

impl Ranges {
    /// The set of these inclusive ranges, in any order, overlapping or not. A range with `lo > hi` is empty.
    pub fn new(mut ranges: Vec<(u128, u128)>) -> Ranges {
        ranges.retain(|(lo, hi)| lo <= hi);
        ranges.sort_unstable();
        let mut out: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (lo, hi) in ranges {
            match out.last_mut() {
                Some(last) if lo <= last.1.saturating_add(1) => last.1 = last.1.max(hi),
                _ => out.push((lo, hi)),
            }
        }
        Ranges(out)
    }

    /// The ranges.
    pub fn as_slice(&self) -> &[(u128, u128)] {
        &self.0
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this address is in the set.
    pub fn contains(&self, x: u128) -> bool {
        let i = self.0.partition_point(|&(_, hi)| hi < x);
        self.0.get(i).is_some_and(|&(lo, _)| lo <= x)
    }

    /// What is in either.
    pub fn union(&self, other: &Ranges) -> Ranges {
        if other.is_empty() {
            return self.clone();
        }
        Ranges::new(self.0.iter().chain(&other.0).copied().collect())
    }

    /// What is in both.
    pub fn intersect(&self, other: &Ranges) -> Ranges {
        let (mut i, mut j, mut out) = (0, 0, Vec::new());
        while let (Some(&(a, b)), Some(&(c, d))) = (self.0.get(i), other.0.get(j)) {
            if a.max(c) <= b.min(d) {
                out.push((a.max(c), b.min(d)));
            }
            if b < d { i += 1 } else { j += 1 }
        }
        Ranges(out)
    }

    /// What is in this set and not in `other`.
    pub fn subtract(&self, other: &Ranges) -> Ranges {
        let (mut j, mut out) = (0, Vec::new());
        for &(lo, hi) in &self.0 {
            let mut lo = lo;
            let mut open = true;
            while let Some(&(c, d)) = other.0.get(j) {
                if d < lo {
                    j += 1;
                    continue;
                }
                if c > hi {
                    break;
                }
                if c > lo {
                    out.push((lo, c - 1));
                }
                if d >= hi {
                    open = false;
                    break;
                }
                lo = d + 1;
                j += 1;
            }
            if open {
                out.push((lo, hi));
            }
        }
        Ranges(out)
    }
}

/// A set of addresses of both families, in canonical form: equal sets compare equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AddrSet {
    /// IPv4 part.
    pub v4: Ranges,
    /// IPv6 part.
    pub v6: Ranges,
}

impl AddrSet {
    /// Every address of both families.
    pub fn all() -> AddrSet {
        AddrSet { v4: Ranges::new(vec![(0, Family::V4.max())]), v6: Ranges::new(vec![(0, Family::V6.max())]) }
    }

    /// The union of these blocks, each less its own exceptions.
    pub fn from_blocks<'a>(blocks: impl IntoIterator<Item = &'a Block>) -> AddrSet {
        let mut parts: [Vec<(u128, u128)>; 2] = [Vec::new(), Vec::new()];
        for block in blocks {
            let whole = Ranges::new(vec![(block.cidr.first(), block.cidr.last())]);
            let except = block.except.iter().filter(|e| e.family() == block.cidr.family());
            let except = Ranges::new(except.map(|e| (e.first(), e.last())).collect());
            parts[block.cidr.family() as usize].extend(whole.subtract(&except).0);
        }
        let [v4, v6] = parts;
        AddrSet { v4: Ranges::new(v4), v6: Ranges::new(v6) }
    }

    /// The part of one family.
    pub fn family(&self, family: Family) -> &Ranges {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether this address is in the set.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.family(Family::of(addr)).contains(bits(addr))
    }

    /// What is in either.
    pub fn union(&self, o: &AddrSet) -> AddrSet {
        AddrSet { v4: self.v4.union(&o.v4), v6: self.v6.union(&o.v6) }
    }

    /// What is in both.
    pub fn intersect(&self, o: &AddrSet) -> AddrSet {
        AddrSet { v4: self.v4.intersect(&o.v4), v6: self.v6.intersect(&o.v6) }
    }

    /// What is in this set and not in `o`.
    pub fn subtract(&self, o: &AddrSet) -> AddrSet {
        AddrSet { v4: self.v4.subtract(&o.v4), v6: self.v6.subtract(&o.v6) }
    }
}
