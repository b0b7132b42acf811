//! Packets made by hand, and whether they arrive: forged sources, segments of connections that do not exist.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use crate::error::Error;
use crate::listen::raw;
use crate::nonce::{nonce, source_port};
use crate::packet::{self, number, ports, without_ip_header};
use crate::probe::{LONGEST_TIMEOUT, any};
use crate::sctp;
use crate::spec::HostId;

/// A packet to send by hand from `from`, and to look out for at `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawPacket {
    /// The host that sends.
    pub from: HostId,
    /// The source address in the packet, which need not be the sender's.
    pub source: IpAddr,
    /// The destination address, of the same family as `source`.
    pub to: IpAddr,
    /// Destination port.
    pub port: u16,
    /// What follows the IP header.
    pub content: Content,
    /// The host where the packet is expected; not always the owner of `to`, since rules may translate addresses.
    pub at: HostId,
}

/// What a [`RawPacket`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    /// A UDP datagram of eight bytes.
    Udp,
    /// A TCP segment without data or options, with these flags (see [`tcp_flags`]) and random numbers.
    Tcp(u8),
    /// An SCTP packet with one chunk of this type (see [`sctp_chunk`]). Its verification tag is 0 for an INIT, as it must be,
    /// and random for others.
    Sctp(u8),
}

/// Types of SCTP chunks (RFC 9260, section 3.2).
pub mod sctp_chunk {
    /// User data.
    pub const DATA: u8 = 0;
    /// Asks for an association.
    pub const INIT: u8 = 1;
    /// The first answer.
    pub const INIT_ACK: u8 = 2;
    /// Asks whether the peer is there.
    pub const HEARTBEAT: u8 = 4;
    /// The answer to a heartbeat.
    pub const HEARTBEAT_ACK: u8 = 5;
    /// Asks for the end of an association.
    pub const SHUTDOWN: u8 = 7;
    /// The answer to a shutdown.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// The second packet of who asked for the association.
    pub const COOKIE_ECHO: u8 = 10;
}

/// Flags of a TCP header (RFC 9293, section 3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Resets a connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment number counts; alone, a segment from the middle of a connection.
    pub const ACK: u8 = 0x10;
}

/// What identifies a packet wherever it arrives, even with translated addresses.
#[derive(Clone, Copy)]
struct Mark {
    source_port: u16,
    nonce: u64,
    content: Content,
}

impl Mark {
    fn sequence(self) -> u32 {
        (self.nonce >> 32) as u32
    }

    fn protocol(self) -> u8 {
        match self.content {
            Content::Udp => packet::UDP,
            Content::Tcp(_) => packet::TCP,
            Content::Sctp(_) => packet::SCTP,
        }
    }

    /// A transport segment is ours by its nonce: the port may have been translated.
    fn is_on(self, segment: &[u8]) -> bool {
        match self.content {
            Content::Udp => segment.get(8..) == Some(&self.nonce.to_be_bytes()),
            Content::Tcp(flags) => {
                number(segment, 4) == Some(self.sequence())
                    && segment.get(13) == Some(&flags)
                    && ports(segment)
                        .is_some_and(|(from, _)| from == self.source_port || flags & tcp_flags::SYN != 0)
            }
            Content::Sctp(chunk) => sctp::is_chunk(segment, chunk, self.sequence()),
        }
    }
}

/// Watches for one packet at its destination. Made before the packet is sent.
pub(crate) struct Watch {
    socket: UdpSocket,
    mark: Mark,
}

impl Watch {
    /// Opens the watching socket, in the calling thread's namespace. Raw sockets get a copy of every packet for this
    /// host, after the input hook of netfilter.
    pub(crate) fn open(packet: &RawPacket) -> Result<Watch, Error> {
        let nonce = nonce();
        let mark = Mark { source_port: source_port(nonce), nonce, content: packet.content };
        let socket = raw(any(packet.to), mark.protocol())
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .map_err(|e| Error::system("watch for a packet", e))?;
        Ok(Watch { socket, mark })
    }

    /// Sends the packet, from the calling thread's namespace. `Ok(false)` if a rule there stopped it.
    pub(crate) fn send(&self, packet: &RawPacket) -> Result<bool, Error> {
        let ports = (self.mark.source_port, packet.port);
        let segment = match packet.content {
            Content::Udp => {
                packet::udp_segment(packet.source, packet.to, ports, &self.mark.nonce.to_be_bytes())
            }
            Content::Tcp(flags) => {
                let acknowledged = if flags & tcp_flags::ACK != 0 { self.mark.nonce as u32 } else { 0 };
                let numbers = (self.mark.sequence(), acknowledged);
                packet::tcp_segment(packet.source, packet.to, ports, numbers, flags)
            }
            Content::Sctp(chunk) => sctp::chunk(ports, chunk, self.mark.sequence()),
        };
        let bytes = packet::ip_packet(packet.source, packet.to, self.mark.protocol(), &segment);
        match send(packet, self.mark.protocol(), &bytes) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EPERM as i32) => Ok(false),
            Err(e) => Err(Error::system(format!("send a packet from {}", packet.source), e)),
        }
    }

    /// Waits for the packet; gives the source address that it arrived with.
    pub(crate) fn wait(&self, timeout: Duration) -> Result<Option<IpAddr>, Error> {
        let timeout = timeout.min(LONGEST_TIMEOUT);
        let deadline = Instant::now() + timeout;
        let mut buffer = [0; 256];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((len, from)) => {
                    if self.mark.is_on(without_ip_header(&buffer[..len], from.is_ipv4())) {
                        return Ok(Some(from.ip()));
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    let wait =
                        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
                    let _ = poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], wait);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::system("watch for a packet", e)),
            }
            if Instant::now() > deadline + timeout {
                // Strangers' packets never stop; ours is not among them.
                return Ok(None);
            }
        }
    }
}

fn send(packet: &RawPacket, protocol: u8, bytes: &[u8]) -> io::Result<()> {
    let to = SocketAddr::new(packet.to, 0);
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(i32::from(protocol).into()))?;
    if to.is_ipv4() {
        socket.set_header_included_v4(true)?;
    } else {
        socket.set_header_included_v6(true)?;
    }
    socket.send_to(bytes, &to.into()).map(drop)
}
