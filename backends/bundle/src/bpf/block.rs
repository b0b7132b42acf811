//! A prefix of addresses.

use crate::ipt::{Family, Prefix};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A prefix of addresses of one family. Invariant: no bits beyond the length are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    family: Family,
    prefix: Prefix,
}

impl Block {
    /// The prefix of this length that an address is in; `None` if the length exceeds the family's.
    pub fn new(addr: IpAddr, len: u8) -> Option<Block> {
        let (family, bits) = match addr {
            IpAddr::V4(a) => (Family::V4, u128::from(u32::from(a))),
            IpAddr::V6(a) => (Family::V6, u128::from(a)),
        };
        let fits = len <= family.bits();
        fits.then(|| Block { family, prefix: Prefix { base: bits & family.mask(len), len } })
    }

    /// The first address.
    pub fn addr(&self) -> IpAddr {
        self.family.addr(self.prefix.base)
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        self.family.addr(self.prefix.last(self.family))
    }

    /// The length in bits.
    pub fn prefix_len(&self) -> u8 {
        self.prefix.len
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.prefix.len)
    }
}

/// A text that is no prefix in the form `address/length`, or has bits beyond the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a prefix of addresses")]
pub struct NoBlock;

impl FromStr for Block {
    type Err = NoBlock;

    fn from_str(text: &str) -> Result<Block, NoBlock> {
        let (addr, len) = text.split_once('/').ok_or(NoBlock)?;
        let addr: IpAddr = addr.parse().map_err(|_| NoBlock)?;
        let block = Block::new(addr, len.parse().map_err(|_| NoBlock)?).ok_or(NoBlock)?;
        if block.addr() == addr { Ok(block) } else { Err(NoBlock) }
    }
}
