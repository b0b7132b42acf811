//! Addresses and CIDR blocks, as leniently as the API server reads stored ones.
//!
//! Leading zeros are decimal and an IPv4-mapped IPv6 address is IPv4, as in the parser that Kubernetes kept from before
//! Go 1.17. Such spellings and host bits are masked with a warning; since 1.36 new objects may not have them.

use super::super::report::Report;
use super::super::tree::{Path, quote};
use super::invalid;
use crate::diagnostic::{CIDR_FORM, HOST_BITS, INVALID, REQUIRED};
use netpolc_ir::addr::{Block, Cidr};
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// A block as it is written: the address and the prefix length, which belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    addr: IpAddr,
    len: u8,
}

/// Reads an address; one that is IPv4-mapped is IPv4.
pub(in crate::read) fn address(text: &str) -> Option<IpAddr> {
    if text.contains(':') { v6(text).map(|a| a.to_canonical()) } else { v4(text).map(IpAddr::V4) }
}

/// Decimal octets; leading zeros do not matter.
fn v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn decimal(text: &str) -> Option<u8> {
    let digits = text.trim_start_matches('0');
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    if digits.is_empty() { Some(0) } else { digits.parse().ok() }
}

/// As the standard library, but groups and embedded octets may have more leading zeros.
fn v6(text: &str) -> Option<Ipv6Addr> {
    if text.len() > 200 {
        return None;
    }
    let group = |group: &str| -> Option<String> {
        if group.contains('.') {
            return v4(group).map(|a| a.to_string());
        }
        let short = if group.len() > 4 { group.trim_start_matches('0') } else { group };
        Some(if short.is_empty() && !group.is_empty() { "0".into() } else { short.to_string() })
    };
    let groups: Option<Vec<String>> = text.split(':').map(group).collect();
    groups?.join(":").parse().ok()
}

impl Written {
    fn parse(text: &str) -> Option<Written> {
        let (addr, len) = text.split_once('/')?;
        let len = decimal(len)?;
        if !addr.contains(':') {
            let addr = IpAddr::V4(v4(addr)?);
            return (len <= 32).then_some(Written { addr, len });
        }
        let v6 = v6(addr)?;
        match v6.to_ipv4_mapped() {
            _ if len > 128 => None,
            Some(v4) if len >= 96 => Some(Written { addr: IpAddr::V4(v4), len: len - 96 }),
            _ => Some(Written { addr: IpAddr::V6(v6), len }),
        }
    }

    fn masked(self) -> Option<Cidr> {
        Cidr::new(self.addr, self.len)
    }

    /// As the canonical form is, host bits left in.
    fn canonical(self) -> String {
        format!("{}/{}", self.addr, self.len)
    }
}

/// Reads a block. Host bits and unusual spellings are warned of and normalised; what is no block is an error.
pub(in crate::read) fn cidr(text: &str, report: &Report<'_, '_>, path: &Path<'_>) -> Option<Cidr> {
    let Some((written, masked)) = Written::parse(text).and_then(|w| Some((w, w.masked()?))) else {
        invalid(report, path, text, NOT_A_CIDR);
        return None;
    };
    let canonical = written.canonical();
    let shown = quote(text);
    if canonical != text {
        let better = Cow::from(masked.to_string());
        report.warn(CIDR_FORM, path, format!("non-standard CIDR value {shown}: use \"{better}\""));
    }
    if masked.addr() != written.addr {
        warn_host_bits(text, written.addr, &masked, report, path);
    }
    Some(masked)
}

/// Reads a block without leniency: unusual IPv4 spellings and IPv4-mapped IPv6 are errors, as for `isCIDR` in CEL. That
/// lets host bits pass, so they are masked with a warning.
pub(in crate::read) fn strict_cidr(text: &str, report: &Report<'_, '_>, path: &Path<'_>) -> Option<Cidr> {
    let block = text.split_once('/').and_then(|(addr, len)| {
        let plain = len == "0" || (!len.starts_with('0') && len.bytes().all(|b| b.is_ascii_digit()));
        let addr: IpAddr = addr.parse().ok()?;
        let mapped = matches!(addr, IpAddr::V6(a) if a.to_ipv4_mapped().is_some());
        let block = Cidr::new(addr, len.parse().ok()?)?;
        (plain && !mapped).then_some((block, addr))
    });
    let Some((block, addr)) = block else {
        invalid(report, path, text, "Invalid CIDR format provided");
        return None;
    };
    if block.addr() != addr {
        warn_host_bits(text, addr, &block, report, path);
    }
    Some(block)
}

fn warn_host_bits(text: &str, addr: IpAddr, masked: &Cidr, report: &Report<'_, '_>, path: &Path<'_>) {
    let host = if addr.is_ipv4() { 32 } else { 128 };
    let message = format!(
        "CIDR value {} has bits set beyond the prefix length: it is read as \"{masked}\" (or should it be \
         \"{addr}/{host}\"?)",
        quote(text)
    );
    report.warn(HOST_BITS, path, message);
}

/// Reads an `ipBlock`: each `except` must be a strict subset of `cidr`.
pub(in crate::read) fn block(
    cidr_text: &str,
    except: &[String],
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Option<Block> {
    let at = path.key("cidr");
    if cidr_text.is_empty() {
        report.error(REQUIRED, &at, "Required value");
        return None;
    }
    let whole = cidr(cidr_text, report, &at);
    let list = path.key("except");
    let mut inner = Vec::new();
    for (i, text) in except.iter().enumerate() {
        let at = list.index(i);
        let Some(part) = cidr(text, report, &at) else { continue };
        if whole.is_some_and(|w| !w.covers(&part) || w == part) {
            invalid(report, &at, text, "must be a strict subset of `cidr`");
        }
        inner.push(part);
    }
    Some(Block { cidr: whole?, except: inner })
}

/// Reads an address of a pod or a node.
pub(in crate::read) fn ip(text: &str, report: &Report<'_, '_>, path: &Path<'_>) -> Option<IpAddr> {
    let addr = address(text);
    match addr {
        None => report.error(
            INVALID,
            path,
            format!(
                "Invalid value: {}: must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                quote(text)
            ),
        ),
        Some(a) if a.is_ipv4() && a.to_string() != text => {
            report.warn(CIDR_FORM, path, format!("non-standard IP address {}: use \"{a}\"", quote(text)));
        }
        Some(_) => {}
    }
    addr
}

#[cfg(test)]
mod tests {
    use super::{Written, address};

    #[test]
    fn blocks_are_read_as_the_api_server_reads_them() {
        for (text, expect) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("010.000.0.0/08", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0a00:0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.0/80", "::/80"),
            ("FD00::/8", "fd00::/8"),
            ("::/0", "::/0"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("00fd00::1/128", "fd00::1/128"),
        ] {
            let got = Written::parse(text).and_then(Written::masked).map(|c| c.to_string());
            assert_eq!(got.as_deref(), Some(expect), "{text}");
        }
        for text in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.256/32",
            "fd00:::/8",
            "10.0.0.0/-1",
            "10.0.0.0/+1",
            " 10.0.0.0/8",
            "10.0.0.0/255.0.0.0",
            "10.0.0/8",
            "10.0.0.0.0/8",
            "::/129",
            "fd00::%eth0/64",
            "1:2:3:4:5:6:7:8:9/8",
            "10.0.0.0/8/8",
            "0x0a.0.0.0/8",
            "::ffff:10.0.0.0/",
            "1e1.0.0.0/8",
            "10.0.0.0/256",
            "12345::/16",
            ":1::/16",
        ] {
            assert_eq!(Written::parse(text).and_then(Written::masked), None, "{text}");
        }
        assert_eq!(address("::ffff:1.2.3.4"), "1.2.3.4".parse().ok());
        assert_eq!(address("10.0.0.300"), None);
        assert_eq!(address("fe80::1%eth0"), None);
    }
}
