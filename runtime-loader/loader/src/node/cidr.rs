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

    /// Whether it is a range of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }

    /// Whether all of the other lies inside.
    pub fn contains(&self, other: &Cidr) -> bool {
        self.is_ipv4() == other.is_ipv4()
            && self.length <= other.length
            && Cidr::new(other.addr, self.length) == Some(*self)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.length)
    }
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
}
