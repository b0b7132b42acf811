//! Netlink messages, as far as connections, routes and links need them (`include/uapi/linux/netlink.h`, netlink(7)).
//!
//! A message is a header of 16 bytes and a payload; an attribute a header of 4 bytes and a value; both are padded to 4
//! bytes. Headers are in the machine's byte order. What comes in is checked against its own lengths: nothing is read
//! beyond the bytes that arrived, and what is cut short ends the walk.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvmsg, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};

/// The length of a message's header.
const HEADER: usize = 16;

/// The kernel fills at most 32 KiB at once, however large the buffer is (`netlink_recvmsg` and `netlink_dump`,
/// `net/netlink/af_netlink.c`).
const BUFFER_BYTES: usize = 64 << 10;

/// What every socket has room for: `net.core.wmem_default` is 208 KiB.
const SMALL_BYTES: usize = 64 << 10;

/// How long the kernel may keep silent, in seconds.
const PATIENCE_SECONDS: i64 = 10;

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 0x01;
/// `NLM_F_ACK`.
pub const ACK: u16 = 0x04;
/// `NLM_F_ROOT | NLM_F_MATCH`, which is `NLM_F_DUMP`.
pub const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: the table changed its shape during the dump, so some of it may be missing.
pub const DUMP_INTERRUPTED: u16 = 0x10;

/// `NLMSG_ERROR`, which also acknowledges.
pub const ERROR: u16 = 2;
/// `NLMSG_DONE`.
pub const DONE: u16 = 3;

/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` are no part of an attribute's type.
const TYPE_MASK: u16 = 0x3fff;

/// A message that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The number of the request that it answers.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// The error that an [`ERROR`] message, or the end of a dump, carries; `None` if all went well.
    pub fn error(&self) -> Option<io::Error> {
        let code = self.payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
    }
}

/// The messages in what was received.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_at_checked(HEADER)?;
        let message = bytes.get(HEADER..number(header, 0)?)?;
        let [kind, flags] = [short(header, 4)?, short(header, 6)?];
        let sequence = u32::from_ne_bytes(*header.get(8..)?.first_chunk()?);
        bytes = bytes.get(padded(HEADER + message.len())..).unwrap_or_default();
        Some(Message { kind, flags, sequence, payload: message })
    })
}

/// The attributes in a payload: type and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(short(bytes, 0)?);
        let kind = short(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(padded(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Messages to send.
#[derive(Debug, Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
}

impl Outgoing {
    /// Appends a message: its payload is `head` and then the attributes, whose values must be shorter than 64 KiB.
    pub fn push(&mut self, kind: u16, flags: u16, sequence: u32, head: &[u8], attributes: &[(u16, &[u8])]) {
        let start = self.bytes.len();
        self.last = start;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        // The kernel puts in the sender.
        self.bytes.extend([0; 4]);
        self.bytes.extend(head);
        self.pad();
        for (kind, value) in attributes {
            let Ok(length) = u16::try_from(4 + value.len()) else { continue };
            self.bytes.extend(length.to_ne_bytes());
            self.bytes.extend(kind.to_ne_bytes());
            self.bytes.extend(*value);
            self.pad();
        }
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Sets a flag of the last message.
    pub fn flag_last(&mut self, flag: u16) {
        let place = self.last + 6..self.last + 8;
        if let Some(place) = self.bytes.get_mut(place)
            && let Some(flags) = place.first_chunk::<2>()
        {
            let flags = u16::from_ne_bytes(*flags) | flag;
            place.copy_from_slice(&flags.to_ne_bytes());
        }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no messages.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Starts anew.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.last = 0;
    }

    fn pad(&mut self) {
        self.bytes.resize(padded(self.bytes.len()), 0);
    }
}

/// A socket in the network namespace of this thread.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` if the kernel has no nfnetlink.
    pub fn open() -> io::Result<Socket> {
        Socket::with(SockProtocol::NetlinkNetFilter)
    }

    /// Opens a socket for routes and links instead.
    ///
    /// # Errors
    /// If the kernel has none to give.
    pub fn open_route() -> io::Result<Socket> {
        Socket::with(SockProtocol::NetlinkRoute)
    }

    fn with(protocol: SockProtocol) -> io::Result<Socket> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0))?;
        Ok(Socket { fd, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Sends all messages to the kernel.
    ///
    /// # Errors
    /// If the kernel does not take them.
    pub fn send(&self, out: &Outgoing) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.fd.as_raw_fd(), &out.bytes, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    /// As [`Socket::send`], for messages that may be more than a socket has room for otherwise: they arrive as one.
    ///
    /// # Errors
    /// If the kernel does not take them; `EPERM` without `CAP_NET_ADMIN`.
    pub fn send_whole(&self, out: &Outgoing) -> io::Result<()> {
        if out.len() > SMALL_BYTES {
            setsockopt(&self.fd, sockopt::SndBufForce, &(2 * out.len()))?;
        }
        self.send(out)
    }

    /// What the kernel says next, for [`messages`].
    ///
    /// # Errors
    /// If it says nothing for ten seconds, or if what it said has got lost.
    pub fn receive(&mut self) -> io::Result<&[u8]> {
        loop {
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            let received = recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut parts, None, MsgFlags::empty());
            let (length, flags, sender) = match received {
                Ok(got) => (got.bytes, got.flags, got.address),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            };
            // Other processes may write to this socket as well.
            if sender.is_none_or(|sender| sender.pid() != 0) {
                continue;
            }
            if flags.contains(MsgFlags::MSG_TRUNC) {
                return Err(io::Error::other("a netlink message is longer than the kernel makes them"));
            }
            return Ok(self.buffer.get(..length).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut out = Outgoing::default();
        out.push(0x102, REQUEST | ACK, 7, &[2, 0, 0, 0], &[(0x8001, b"abcde"), (12, b"wxyz")]);
        out.push(0x101, REQUEST | DUMP, 8, &[10, 0, 0, 0], &[]);
        let read: Vec<Message<'_>> = messages(&out.bytes).collect();
        assert_eq!(
            read.iter().map(|m| (m.kind, m.flags, m.sequence)).collect::<Vec<_>>(),
            [(0x102, 5, 7), (0x101, 0x301, 8)]
        );
        assert_eq!(&read[0].payload[..4], [2, 0, 0, 0]);
        let found: Vec<_> = attributes(&read[0].payload[4..]).collect();
        assert_eq!(found, [(1, &b"abcde"[..]), (12, &b"wxyz"[..])]);
        assert_eq!(read[1].payload, [10, 0, 0, 0]);
    }

    /// However bytes are cut or changed, the walk ends and stays inside.
    #[test]
    fn broken_bytes_end_the_walk() {
        let mut out = Outgoing::default();
        out.push(1, 0, 7, &[2, 0, 0, 0], &[(1, b"abcde"), (12, b"wxyz")]);
        for length in 0..out.bytes.len() {
            assert_eq!(messages(&out.bytes[..length]).count(), 0);
            for value in 0..=u8::MAX {
                let mut bytes = out.bytes.clone();
                bytes[length] = value;
                for message in messages(&bytes) {
                    assert!(message.payload.len() <= bytes.len() - HEADER);
                    let inner: usize = attributes(message.payload).map(|(_, value)| value.len()).sum();
                    assert!(inner <= message.payload.len());
                }
            }
        }
    }

    #[test]
    fn errors_are_negative_numbers() {
        let message = |payload| Message { kind: ERROR, flags: 0, sequence: 0, payload };
        let code = (-2i32).to_ne_bytes();
        assert_eq!(message(&code).error().unwrap().kind(), io::ErrorKind::NotFound);
        assert!(message(&[0; 4]).error().is_none());
        assert!(message(&i32::MIN.to_ne_bytes()).error().is_some());
    }
}
