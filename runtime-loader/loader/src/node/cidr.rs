//! Ranges of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address and a prefix length; the bits beyond it are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    addr: IpAddr,
    length: u8,
}

impl Cidr {
    /// A range of which this is an address; `None` if the length is beyond the family's.
    pub fn new(addr: IpAddr, length: u8) -> Option<Cidr> {
        let cut = |bits: u8| u32::from(bits).checked_sub(u32::from(length));
        let addr = match addr {
            IpAddr::V4(addr) => {
                let mask = u32::MAX.checked_shl(cut(32)?).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(addr) & mask))
            }
            IpAddr::V6(addr) => {
                let mask = u128::MAX.checked_shl(cut(128)?).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(addr) & mask))
            }
        };
        Some(Cidr { addr, length })
    }

    /// Reads `10.0.0.0/8`, or an address alone.
    pub fn parse(text: &str) -> Option<Cidr> {
        let (addr, length) = match text.split_once('/') {
            Some((addr, length)) => {
                let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
                (addr, Some(length.parse().ok().filter(|_| digits)?))
            }
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().ok()?;
        Cidr::new(addr, length.unwrap_or(if addr.is_ipv4() { 32 } else { 128 }))
    }

    /// The lowest address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The prefix length.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// The highest address.
    pub fn last(&self) -> IpAddr {
        let host = |bits: u8| u32::from(bits).saturating_sub(u32::from(self.length));
        match self.addr {
            IpAddr::V4(addr) => {
                let mask = u32::MAX.checked_shl(host(32)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(addr) | !mask))
            }
            IpAddr::V6(addr) => {
                let mask = u128::MAX.checked_shl(host(128)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(addr) | !mask))
            }
        }
    }

    /// Whether it is a range of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }

    /// Whether an address lies inside.
    pub fn has(&self, addr: IpAddr) -> bool {
        self.is_ipv4() == addr.is_ipv4() && Cidr::new(addr, self.length) == Some(*self)
    }

    /// Whether all of the other lies inside.
    pub fn contains(&self, other: &Cidr) -> bool {
        self.length <= other.length && self.has(other.addr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.length)
    }
}

/// The fewest ranges that are all addresses from the first to the last, and no others; none if the last comes before the
/// first or is of the other family. At most two for each bit of an address.
pub fn from_to(first: IpAddr, last: IpAddr) -> Vec<Cidr> {
    let (bits, mut next, end) = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            (32u8, u128::from(u32::from(first)), u128::from(u32::from(last)))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => (128, u128::from(first), u128::from(last)),
        _ => return Vec::new(),
    };
    let mut ranges = Vec::new();
    while next <= end {
        // As many bits as the range can leave free: it begins at `next`, and does not go beyond the end.
        let aligned = u8::try_from(next.trailing_zeros()).unwrap_or(bits).min(bits);
        let beyond = |free: u8| u128::MAX.checked_shl(free.into()).map_or(u128::MAX, |mask| !mask);
        let fits = |free: &u8| next.checked_add(beyond(*free)).is_some_and(|last| last <= end);
        let free = (0..=aligned).rev().find(fits).unwrap_or(0);
        let addr = match u32::try_from(next) {
            Ok(addr) if bits == 32 => IpAddr::V4(addr.into()),
            _ => IpAddr::V6(next.into()),
        };
        ranges.extend(Cidr::new(addr, bits - free));
        let Some(after) = next.checked_add(beyond(free)).and_then(|last| last.checked_add(1)) else { break };
        next = after;
    }
    ranges
}

/// The ranges without those that lie inside others, sorted.
pub fn outermost(ranges: impl IntoIterator<Item = Cidr>) -> Vec<Cidr> {
    let mut sorted: Vec<Cidr> = ranges.into_iter().collect();
    // A range sorts before those inside, which follow it without a gap.
    sorted.sort();
    let mut kept: Vec<Cidr> = Vec::new();
    for range in sorted {
        if kept.last().is_none_or(|last| !last.contains(&range)) {
            kept.push(range);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_masked() {
        let shown = |text: &str| Cidr::parse(text).map(|range| range.to_string());
        assert_eq!(shown("10.1.2.3/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(shown("10.1.2.3").as_deref(), Some("10.1.2.3/32"));
        assert_eq!(shown("0.0.0.0/0").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(shown("fd00::1/64").as_deref(), Some("fd00::/64"));
        assert_eq!(shown("::/0").as_deref(), Some("::/0"));
        for bad in ["", "/", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "fd00::/129", "x/8", "10.0.0.0/8/8"] {
            assert_eq!(shown(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_lies_inside_goes() {
        let ranges = ["10.244.1.0/24", "10.244.0.0/16", "192.0.2.1", "fd00::/48", "fd00::1", "10.245.0.0/24"];
        let kept = outermost(ranges.iter().map(|text| Cidr::parse(text).unwrap()));
        let shown: Vec<String> = kept.iter().map(Cidr::to_string).collect();
        assert_eq!(shown, ["10.244.0.0/16", "10.245.0.0/24", "192.0.2.1/32", "fd00::/48"]);
    }

    #[test]
    fn from_an_address_to_another() {
        let shown = |first: &str, last: &str| {
            let ranges = from_to(first.parse().unwrap(), last.parse().unwrap());
            ranges.iter().map(Cidr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            shown("10.0.0.10", "10.0.0.20"),
            ["10.0.0.10/31", "10.0.0.12/30", "10.0.0.16/30", "10.0.0.20/32"]
        );
        assert_eq!(shown("10.0.0.0", "10.0.0.255"), ["10.0.0.0/24"]);
        assert_eq!(shown("0.0.0.0", "255.255.255.255"), ["0.0.0.0/0"]);
        assert_eq!(shown("255.255.255.255", "255.255.255.255"), ["255.255.255.255/32"]);
        assert_eq!(shown("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), ["::/0"]);
        assert_eq!(shown("fd00::ffff", "fd00::1:0"), ["fd00::ffff/128", "fd00::1:0/128"]);
        assert_eq!(shown("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe").len(), 254, "the worst");
        assert!(shown("10.0.0.2", "10.0.0.1").is_empty() && shown("10.0.0.1", "fd00::1").is_empty());
        for text in ["10.0.0.0/8", "10.0.0.7/32", "0.0.0.0/0", "fd00::/64", "::/0"] {
            let range = Cidr::parse(text).unwrap();
            assert_eq!(from_to(range.addr(), range.last()), [range]);
        }
    }
}
