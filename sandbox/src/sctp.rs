//! As much SCTP (RFC 9260) as a probe needs: INIT, INIT ACK and ABORT, with the checksum that conntrack verifies.

use crate::packet::{number, ports};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;

/// Common header: ports, verification tag, checksum (RFC 9260, section 3.1).
const HEADER_LEN: usize = 12;

/// The State Cookie parameter, which an INIT ACK must have (section 3.3.3).
const STATE_COOKIE: u16 = 7;

/// What a packet says, as far as a probe or listener cares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Someone asks for an association and wants `tag` in every answer.
    Init {
        /// The sender's initiate tag.
        tag: u32,
    },
    /// The answer of a listener, carrying the tag of the INIT.
    InitAck {
        /// Verification tag.
        tag: u32,
    },
    /// The answer of a closed port, carrying the tag of the INIT.
    Abort {
        /// Verification tag.
        tag: u32,
    },
}

/// Reads a packet that starts with the common header: source port, destination port, message. None for anything that
/// is damaged or of no interest.
pub(crate) fn read(packet: &[u8]) -> Option<(u16, u16, Message)> {
    let (from, to) = ports(packet)?;
    let tag = number(packet, 4)?;
    let mut blank = packet.to_vec();
    blank.get_mut(8..HEADER_LEN)?.fill(0);
    if crc32c(&blank).to_le_bytes() != packet[8..HEADER_LEN] {
        return None;
    }
    let message = match *packet.get(HEADER_LEN)? {
        // An INIT has the verification tag 0 (section 8.5.1).
        INIT if tag == 0 => Message::Init { tag: number(packet, HEADER_LEN + 4)? },
        INIT_ACK => Message::InitAck { tag },
        ABORT => Message::Abort { tag },
        _ => return None,
    };
    Some((from, to, message))
}

/// A packet asking for an association. `tag` must not be 0.
pub(crate) fn init(ports: (u16, u16), tag: u32) -> Vec<u8> {
    packet(ports, 0, INIT, &init_body(tag))
}

/// The answer of a listener to an INIT with `tag`; `ports` are those of the answer.
pub(crate) fn init_ack(ports: (u16, u16), tag: u32) -> Vec<u8> {
    let mut body = init_body(!tag | 1);
    body.extend(STATE_COOKIE.to_be_bytes());
    body.extend([0, 8]);
    body.extend(tag.to_be_bytes());
    packet(ports, tag, INIT_ACK, &body)
}

/// The answer of a closed port to an INIT with `tag`.
pub(crate) fn abort(ports: (u16, u16), tag: u32) -> Vec<u8> {
    packet(ports, tag, ABORT, &[])
}

/// A packet with one chunk that holds a mark.
pub(crate) fn chunk(ports: (u16, u16), chunk: u8, mark: u32) -> Vec<u8> {
    // Only an INIT has the verification tag 0.
    let tag = if chunk == INIT { 0 } else { mark | 1 };
    packet(ports, tag, chunk, &init_body(mark | 1))
}

/// Whether a packet is one that [`chunk`] made.
pub(crate) fn is_chunk(packet: &[u8], chunk: u8, mark: u32) -> bool {
    packet.get(HEADER_LEN) == Some(&chunk) && number(packet, HEADER_LEN + 4) == Some(mark | 1)
}

/// Initiate tag, a window of 64 KiB, one stream each way, and the first sequence number.
fn init_body(tag: u32) -> Vec<u8> {
    let mut body = tag.to_be_bytes().to_vec();
    body.extend(0x1_0000u32.to_be_bytes());
    body.extend([0, 1, 0, 1]);
    body.extend(tag.to_be_bytes());
    body
}

fn packet(ports: (u16, u16), tag: u32, chunk: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER_LEN + 4 + body.len());
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 0]);
    packet.extend(((4 + body.len()) as u16).to_be_bytes());
    packet.extend(body);
    // The checksum alone is little-endian on the wire (appendix A of RFC 9260).
    let sum = crc32c(&packet);
    packet[8..HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// CRC-32C, reflected, bit by bit: packets here have some fifty bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_examples_in_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(read(&init((1, 2), 77)), Some((1, 2, Message::Init { tag: 77 })));
        assert_eq!(read(&init_ack((2, 1), 77)), Some((2, 1, Message::InitAck { tag: 77 })));
        assert_eq!(read(&abort((2, 1), 77)), Some((2, 1, Message::Abort { tag: 77 })));
    }

    #[test]
    fn chunks_are_known_by_type_and_mark() {
        for kind in [0, INIT, 4, 10] {
            let packet = chunk((1, 2), kind, 7_000);
            assert!(is_chunk(&packet, kind, 7_000));
            assert!(!is_chunk(&packet, kind, 7_004) && !is_chunk(&packet, kind + 1, 7_000));
            assert_eq!(number(&packet, 4) == Some(0), kind == INIT);
        }
    }

    #[test]
    fn damaged_or_short_packets_are_nothing() {
        let good = init_ack((1, 2), 77);
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 4;
            assert_eq!(read(&bad), None, "bit of byte {i}");
            assert_eq!(read(&good[..i]), None, "length {i}");
        }
    }
}
