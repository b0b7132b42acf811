//! Packets made and read by hand: IP, TCP, UDP and ICMP headers. Numbers on the wire are big-endian.

use std::net::{IpAddr, Ipv6Addr};

/// IP protocol numbers (IANA).
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;

/// Hops a hand-made packet may take.
const HOP_LIMIT: u8 = 64;

/// The Internet checksum (RFC 1071) of `parts` put together; every part but the last must have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of a TCP, UDP or ICMPv6 segment with its pseudo header (RFC 9293, RFC 768, RFC 8200 section 8.1).
fn transport_checksum(source: IpAddr, to: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let length = (segment.len() as u32).to_be_bytes();
    let tail = [0, 0, 0, protocol];
    match (source, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => checksum(&[&a.octets(), &b.octets(), &length, &tail, segment]),
        (a, b) => checksum(&[&v6(a).octets(), &v6(b).octets(), &length, &tail, segment]),
    }
}

fn v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// A whole IP packet around a transport segment, whose checksum must be there already. `source` and `to` are of one family.
pub(crate) fn ip_packet(source: IpAddr, to: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(40 + segment.len());
    match (source, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let length = (20 + segment.len()) as u16;
            // Version 4, five words of header, no service class.
            packet.extend([0x45, 0]);
            packet.extend(length.to_be_bytes());
            // Identification 0 with "don't fragment".
            packet.extend([0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
            packet.extend(a.octets());
            packet.extend(b.octets());
            let sum = checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (a, b) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((segment.len() as u16).to_be_bytes());
            packet.extend([protocol, HOP_LIMIT]);
            packet.extend(v6(a).octets());
            packet.extend(v6(b).octets());
        }
    }
    packet.extend(segment);
    packet
}

/// A TCP header without options or data.
pub(crate) fn tcp_segment(
    source: IpAddr,
    to: IpAddr,
    ports: (u16, u16),
    numbers: (u32, u32),
    flags: u8,
) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    segment.extend(numbers.0.to_be_bytes());
    segment.extend(numbers.1.to_be_bytes());
    // Five words of header; a window of 65535; room for the checksum; no urgent data.
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = transport_checksum(source, to, TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// A UDP datagram.
pub(crate) fn udp_segment(source: IpAddr, to: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::with_capacity(8 + payload.len());
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    segment.extend(((8 + payload.len()) as u16).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(payload);
    // A checksum of 0 would mean "none" (RFC 768).
    let sum = match transport_checksum(source, to, UDP, &segment) {
        0 => 0xffff,
        sum => sum,
    };
    segment[6..8].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// An echo request (RFC 792, RFC 4443). The kernel fills in the checksum of ICMPv6 on raw sockets, not that of ICMP.
pub(crate) fn echo_request(to: IpAddr, id: u16, payload: &[u8]) -> Vec<u8> {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend([0, 1]);
    message.extend(payload);
    if to.is_ipv4() {
        let sum = checksum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// True if `message` is the answer to [`echo_request`] with the same `to`, `id` and `payload`.
pub(crate) fn is_echo_reply(message: &[u8], to: IpAddr, id: u16, payload: &[u8]) -> bool {
    let kind = if to.is_ipv4() { 0 } else { 129 };
    message.len() >= 8
        && message[..2] == [kind, 0]
        && message[4..6] == id.to_be_bytes()
        && message[8..] == *payload
}

/// What a raw socket of family `v4` has read, without the IP header that IPv4 raw sockets deliver (raw(7)).
pub(crate) fn without_ip_header(read: &[u8], v4: bool) -> &[u8] {
    if !v4 {
        return read;
    }
    let words = read.first().map_or(0, |byte| usize::from(byte & 0x0f));
    read.get(words * 4..).unwrap_or_default()
}

/// Source and destination port of a TCP, UDP or SCTP segment.
pub(crate) fn ports(segment: &[u8]) -> Option<(u16, u16)> {
    let bytes = segment.first_chunk::<4>()?;
    Some((u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])))
}

/// The four bytes at `at`, as a number.
pub(crate) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_example_in_rfc_1071() {
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    #[test]
    fn a_packet_with_its_checksums_sums_to_zero() {
        let (a, b) = ("10.1.2.3".parse().unwrap(), "10.9.8.7".parse().unwrap());
        let segment = udp_segment(a, b, (1000, 53), b"odd");
        assert_eq!(transport_checksum(a, b, UDP, &segment), 0);
        let packet = ip_packet(a, b, UDP, &segment);
        assert_eq!(checksum(&[&packet[..20]]), 0);
        assert_eq!(ports(without_ip_header(&packet, true)), Some((1000, 53)));
    }

    #[test]
    fn short_reads_have_no_ports() {
        for len in 0..24 {
            let read = vec![0x45; len];
            assert_eq!(ports(without_ip_header(&read, true)).is_some(), len >= 24);
            assert!(!is_echo_reply(&read, "10.0.0.1".parse().unwrap(), 0, b""));
        }
    }
}
