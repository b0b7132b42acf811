//! The kernel's table of connections, through ctnetlink (`net/netfilter/nf_conntrack_netlink.c`,
//! `include/uapi/linux/netfilter/nfnetlink_conntrack.h`).
//!
//! The table is walked once, and what is to go is deleted on a second socket meanwhile, so no more than one buffer of it
//! is ever held. An entry is deleted by the very bytes of its tuple, with its id: another connection that has taken the
//! tuple since is not hit.

use crate::netlink::{self, ACK, DONE, DUMP, DUMP_INTERRUPTED, ERROR, Outgoing, REQUEST, Socket};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a walk is begun again that the kernel says it could not do properly.
const ATTEMPTS: u32 = 5;

/// How long all walks may take together. 100,000 entries take a fraction of a second.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How many entries are deleted at once. Their acknowledgements must fit into a socket's receive buffer.
const BATCH: usize = 64;

/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_NEW`, `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
const CT_NEW: u16 = 0x100;
const CT_GET: u16 = 0x101;
const CT_DELETE: u16 = 0x102;

/// Whether conntrack's directory of switches says that it is there and knows no SCTP.
pub fn lacks_sctp(switches: &Path) -> bool {
    let has = |name: &str| switches.join(name).exists();
    has("nf_conntrack_max") && !has("nf_conntrack_sctp_timeout_established")
}

/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ID`, `CTA_TUPLE_MASTER`, `CTA_ZONE`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const MASTER: u16 = 14;
const ZONE: u16 = 18;

/// `CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;

/// `CTA_IP_V4_SRC` and `CTA_IP_V6_SRC`.
const IP_V4_SOURCE: u16 = 1;
const IP_V6_SOURCE: u16 = 3;

/// `CTA_PROTO_NUM`, `CTA_PROTO_SRC_PORT`.
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// `AF_INET` and `AF_INET6`; 0 is both.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The length of `struct nfgenmsg`: family, version, and two bytes that are not used here.
const HEAD: usize = 4;

/// A connection as its first packet crossed the forward hook: after destination NAT, before source NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection {
    /// Who opened it.
    pub source: IpAddr,
    /// Who answers.
    pub destination: IpAddr,
    /// The IP protocol's number.
    pub protocol: u8,
    /// The port at the destination; 0 for protocols without ports.
    pub port: u16,
}

/// What became of the connections.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many entries there were.
    pub seen: u64,
    /// How many were deleted.
    pub cut: u64,
    /// How many the kernel would not delete.
    pub failed: u64,
    /// Why, for the first of those.
    pub failure: Option<io::Error>,
    /// Whether the kernel says of the last walk, too, that it may have missed some.
    pub incomplete: bool,
}

/// Says of each of some connections whether it is to end. An error ends the walk.
pub type Denied<'a> = dyn FnMut(&[Connection]) -> io::Result<Vec<bool>> + 'a;

/// Walks the connections of both families and deletes those for which `denied` says so. It is asked about as many at once as
/// the kernel shows at once, some hundred. Connections that another one announced (`RELATED`, such as the data connections
/// of FTP) are left alone: no policy lists them.
///
/// # Errors
/// If the kernel has no ctnetlink, if the permission lacks, if the kernel stops answering, and those of `denied`.
pub fn cut(denied: &mut Denied<'_>) -> io::Result<Tally> {
    let deadline = Instant::now() + TIMEOUT;
    let mut dump = Socket::open()?;
    let mut deletions = Deletions::open()?;
    let mut tally = Tally::default();
    for sequence in 1..=ATTEMPTS {
        let walk = Walk { sequence, deadline };
        let (seen, whole) = walk.run(&mut dump, &mut deletions, &mut tally, denied)?;
        (tally.seen, tally.incomplete) = (seen, !whole);
        if whole {
            break;
        }
    }
    Ok(tally)
}

/// One walk over all entries.
struct Walk {
    sequence: u32,
    deadline: Instant,
}

impl Walk {
    /// How many entries there were, and whether they were all.
    fn run(
        &self,
        dump: &mut Socket,
        deletions: &mut Deletions,
        tally: &mut Tally,
        denied: &mut Denied<'_>,
    ) -> io::Result<(u64, bool)> {
        let mut request = Outgoing::default();
        request.push(CT_GET, REQUEST | DUMP, self.sequence, &[0; HEAD], &[]);
        dump.send(&request)?;
        let (mut seen, mut whole) = (0, true);
        loop {
            if Instant::now() > self.deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let ours = |m: &netlink::Message<'_>| m.sequence == self.sequence;
            let (mut entries, mut done) = (Vec::new(), false);
            for message in netlink::messages(dump.receive()?).filter(ours) {
                whole &= message.flags & DUMP_INTERRUPTED == 0;
                match message.kind {
                    CT_NEW => entries.extend(Entry::read(message.payload)),
                    DONE | ERROR => {
                        if let Some(error) = message.error() {
                            return Err(error);
                        }
                        done = true;
                    }
                    _ => {}
                }
            }
            seen += entries.len() as u64;
            entries.retain(|entry| !entry.related);
            let connections: Vec<Connection> = entries.iter().map(|entry| entry.connection).collect();
            for (entry, _) in entries.iter().zip(denied(&connections)?).filter(|(_, denied)| *denied) {
                deletions.add(entry, tally)?;
            }
            if done {
                deletions.flush(tally)?;
                return Ok((seen, whole));
            }
        }
    }
}

/// An entry, with the bytes that name it.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    connection: Connection,
    original: &'a [u8],
    id: &'a [u8],
    zone: Option<&'a [u8]>,
    related: bool,
}

impl<'a> Entry<'a> {
    /// `None` if something is missing that entries have.
    fn read(payload: &'a [u8]) -> Option<Entry<'a>> {
        let (mut original, mut reply, mut id, mut zone, mut related) = (None, None, None, None, false);
        for (kind, value) in netlink::attributes(payload.get(HEAD..)?) {
            match kind {
                ORIGINAL => original = Some(value),
                REPLY => reply = Some(value),
                ID => id = Some(value),
                ZONE => zone = Some(value),
                MASTER => related = true,
                _ => {}
            }
        }
        let original = original?;
        let (source, protocol, _) = sender(original)?;
        let (destination, _, port) = sender(reply?)?;
        let connection = Connection { source, destination, protocol, port };
        Some(Entry { connection, original, id: id?, zone, related })
    }
}

/// The source of a tuple: address, protocol, and port, which is 0 where there is none.
fn sender(tuple: &[u8]) -> Option<(IpAddr, u8, u16)> {
    let (mut addr, mut protocol, mut port) = (None, None, 0);
    for (kind, value) in netlink::attributes(tuple) {
        for (inner, value) in netlink::attributes(value) {
            match (kind, inner) {
                (TUPLE_IP, IP_V4_SOURCE) => {
                    addr = Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into())
                }
                (TUPLE_IP, IP_V6_SOURCE) => {
                    addr = Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into())
                }
                (TUPLE_PROTOCOL, PROTOCOL_NUMBER) => protocol = value.first().copied(),
                (TUPLE_PROTOCOL, SOURCE_PORT) => port = u16::from_be_bytes(value.try_into().ok()?),
                _ => {}
            }
        }
    }
    Some((addr?, protocol?, port))
}

/// Entries that are to be deleted.
struct Deletions {
    socket: Socket,
    out: Outgoing,
    sequence: u32,
    pending: usize,
}

impl Deletions {
    fn open() -> io::Result<Deletions> {
        Ok(Deletions { socket: Socket::open()?, out: Outgoing::default(), sequence: 0, pending: 0 })
    }

    fn add(&mut self, entry: &Entry<'_>, tally: &mut Tally) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut attributes = vec![(ORIGINAL | NESTED, entry.original), (ID, entry.id)];
        attributes.extend(entry.zone.map(|zone| (ZONE, zone)));
        let family = if entry.connection.source.is_ipv4() { AF_INET } else { AF_INET6 };
        self.out.push(CT_DELETE, REQUEST | ACK, self.sequence, &[family, 0, 0, 0], &attributes);
        self.pending += 1;
        if self.pending == BATCH { self.flush(tally) } else { Ok(()) }
    }

    /// Sends what is waiting; each message has an answer.
    fn flush(&mut self, tally: &mut Tally) -> io::Result<()> {
        if self.pending == 0 {
            return Ok(());
        }
        self.socket.send(&self.out)?;
        self.out.clear();
        while self.pending > 0 {
            for message in netlink::messages(self.socket.receive()?).filter(|m| m.kind == ERROR) {
                self.pending = self.pending.saturating_sub(1);
                match message.error() {
                    None => tally.cut += 1,
                    // It has ended by itself.
                    Some(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Some(error) => {
                        tally.failed += 1;
                        tally.failure.get_or_insert(error);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry as Linux 6.18 dumps it (little-endian): TCP from 10.1.0.1 to the Service 10.96.0.1:80, whose pod is
    /// 10.1.0.2:8080; then a zone.
    const ENTRY: &[u8] = &[
        2, 0, 0, 0, // nfgenmsg
        52, 0, 1, 0x80, // CTA_TUPLE_ORIG
        20, 0, 1, 0x80, 8, 0, 1, 0, 10, 1, 0, 1, 8, 0, 2, 0, 10, 96, 0, 1, // its addresses
        28, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0, 6, 0, 2, 0, 0x9c, 0x40, 0, 0, 6, 0, 3, 0, 0, 80, 0,
        0, // its ports
        52, 0, 2, 0x80, // CTA_TUPLE_REPLY
        20, 0, 1, 0x80, 8, 0, 1, 0, 10, 1, 0, 2, 8, 0, 2, 0, 10, 1, 0, 1, //
        28, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0, 6, 0, 2, 0, 0x1f, 0x90, 0, 0, 6, 0, 3, 0, 0x9c, 0x40, 0,
        0, //
        8, 0, 12, 0, 1, 2, 3, 4, // CTA_ID
        6, 0, 18, 0, 0, 5, 0, 0, // CTA_ZONE
    ];

    #[cfg(target_endian = "little")]
    #[test]
    fn an_entry_is_read_behind_the_service() {
        let entry = Entry::read(ENTRY).unwrap();
        let wanted = Connection {
            source: "10.1.0.1".parse().unwrap(),
            destination: "10.1.0.2".parse().unwrap(),
            protocol: 6,
            port: 8080,
        };
        assert_eq!(entry.connection, wanted);
        assert_eq!((entry.id, entry.zone, entry.related), (&[1, 2, 3, 4][..], Some(&[0, 5][..]), false));
        assert_eq!(entry.original, &ENTRY[8..56]);
    }

    /// What is cut short is no entry, and no panic; nothing is deleted without its id.
    #[test]
    fn a_broken_entry_is_none() {
        let complete = ENTRY.len() - 8;
        for length in 0..complete {
            assert_eq!(Entry::read(&ENTRY[..length]), None, "{length}");
        }
        for at in 0..ENTRY.len() {
            for value in 0..=u8::MAX {
                let mut bytes = ENTRY.to_vec();
                bytes[at] = value;
                let _ = Entry::read(&bytes);
            }
        }
    }
}
