//! One probe: a real packet, and what came back.
//!
//! A probe is a small state machine around one non-blocking socket, so that one thread can have many under way. Each
//! carries a nonce and counts only an answer with that nonce.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use socket2::{Domain, Socket, Type};

use crate::listen::raw;
use crate::nonce::{NONCE_LEN, nonce, source_port};
use crate::packet::{self, without_ip_header};
use crate::sctp::{self, Message};
use crate::spec::{HostId, Protocol};

/// How long a probe waits after an SCTP ABORT. Where the kernel's own SCTP is loaded it sends an ABORT beside our
/// listener's INIT ACK, and the INIT ACK counts.
const ABORT_GRACE: Duration = Duration::from_millis(50);

/// Longest time that anything waits for an answer. A bound that no sum of times can overflow.
pub(crate) const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);

/// Most packets read from a raw socket before other probes have their turn.
const TURN: usize = 64;

/// A question to the network: does a packet from here get there, and the answer back?
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    /// The host that sends.
    pub from: HostId,
    /// The source address, one of the sender's own; `None` lets its kernel choose.
    pub from_addr: Option<IpAddr>,
    /// The destination address; need not belong to any host of the sandbox (a Service, for instance).
    pub to: IpAddr,
    /// What to speak.
    pub protocol: Protocol,
    /// Destination port; ignored for ICMP.
    pub port: u16,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// A listener answered: packets pass in both directions.
    Reached,
    /// A TCP reset, an SCTP ABORT or an ICMP "port unreachable" came back. Without rules that reject, this means
    /// that the packet arrived where nobody listens.
    Refused,
    /// Another ICMP error came back, or the sender has no route: the packet did not arrive.
    Unreachable(String),
    /// Silence until the time was up, or a rule in the sender's own namespace stopped the packet.
    NotReached,
    /// The probe itself could not be carried out; says nothing about the network.
    Error(String),
}

impl Outcome {
    /// Whether the packet arrived, in a sandbox whose rules drop and do not reject; `None` if the probe failed.
    pub fn arrived(&self) -> Option<bool> {
        match self {
            Outcome::Reached | Outcome::Refused => Some(true),
            Outcome::Unreachable(_) | Outcome::NotReached => Some(false),
            Outcome::Error(_) => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Reached => f.write_str("reached"),
            Outcome::Refused => f.write_str("refused"),
            Outcome::Unreachable(reason) => write!(f, "unreachable ({reason})"),
            Outcome::NotReached => f.write_str("not reached"),
            Outcome::Error(reason) => write!(f, "failed ({reason})"),
        }
    }
}

/// What an error from the kernel means for a probe (ip(7), "Errors"; `icmp_err_convert` in the kernel).
pub(crate) fn judge(error: &io::Error) -> Outcome {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED) => Outcome::Refused,
        // A verdict "drop" in the sender's own output hook is reported as EPERM.
        Some(Errno::EPERM | Errno::ETIMEDOUT) => Outcome::NotReached,
        Some(
            Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EACCES
            | Errno::EHOSTDOWN
            | Errno::ENONET
            | Errno::ENOPROTOOPT
            | Errno::EPROTO
            | Errno::EOPNOTSUPP,
        ) => Outcome::Unreachable(error.to_string()),
        _ => Outcome::Error(error.to_string()),
    }
}

/// A probe under way.
pub(crate) struct Flight {
    deadline: Instant,
    to: IpAddr,
    nonce: u64,
    kind: Kind,
}

enum Kind {
    Tcp { socket: Socket, sent: bool, got: Vec<u8> },
    Udp { socket: UdpSocket },
    Sctp { socket: UdpSocket, port: u16, aborted: bool },
    Icmp { socket: UdpSocket },
}

impl Flight {
    /// Opens the socket in the calling thread's namespace and sends the first packet.
    ///
    /// # Errors
    ///
    /// An outcome that is known at once.
    pub(crate) fn start(probe: &Probe, timeout: Duration) -> Result<Flight, Outcome> {
        if probe.from_addr.is_some_and(|from| from.is_ipv4() != probe.to.is_ipv4()) {
            return Err(Outcome::Error("source and destination are of different families".into()));
        }
        let nonce = nonce();
        let kind = match probe.protocol {
            Protocol::Tcp => tcp(probe),
            Protocol::Udp => udp(probe, nonce),
            Protocol::Sctp => sctp(probe, nonce),
            Protocol::Icmp => icmp(probe, nonce),
        };
        let kind = kind.map_err(|e| judge(&e))?;
        Ok(Flight { deadline: Instant::now() + timeout.min(LONGEST_TIMEOUT), to: probe.to, nonce, kind })
    }

    /// When the probe's time is up.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What to poll the socket for.
    pub(crate) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        match &self.kind {
            Kind::Tcp { socket, sent: false, .. } => (socket.as_fd(), PollFlags::POLLOUT),
            Kind::Tcp { socket, .. } => (socket.as_fd(), PollFlags::POLLIN),
            Kind::Udp { socket } | Kind::Sctp { socket, .. } | Kind::Icmp { socket } => {
                (socket.as_fd(), PollFlags::POLLIN)
            }
        }
    }

    /// Reads what is there. `None` while the outcome is open.
    pub(crate) fn step(&mut self) -> Option<Outcome> {
        let nonce = self.nonce;
        let result = match &mut self.kind {
            Kind::Tcp { socket, sent, got } => step_tcp(socket, sent, got, nonce),
            Kind::Udp { socket } => step_udp(socket, nonce),
            Kind::Sctp { socket, port, aborted } => {
                let was_aborted = *aborted;
                let result = step_sctp(socket, *port, nonce, aborted);
                if *aborted && !was_aborted {
                    self.deadline = self.deadline.min(Instant::now() + ABORT_GRACE);
                }
                result
            }
            Kind::Icmp { socket } => step_icmp(socket, self.to, nonce),
        };
        match result {
            Ok(outcome) => outcome,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
            Err(e) => Some(judge(&e)),
        }
    }

    /// The outcome once the time is up.
    pub(crate) fn expire(self) -> Outcome {
        match self.kind {
            Kind::Sctp { aborted: true, .. } => Outcome::Refused,
            _ => Outcome::NotReached,
        }
    }
}

/// The unspecified address of the family of `to`.
pub(crate) fn any(to: IpAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn tcp(probe: &Probe) -> io::Result<Kind> {
    let to = SocketAddr::new(probe.to, probe.port);
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(from) = probe.from_addr {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    match socket.connect(&to.into()) {
        Err(e) if e.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(e),
        _ => Ok(Kind::Tcp { socket, sent: false, got: Vec::new() }),
    }
}

fn udp(probe: &Probe, nonce: u64) -> io::Result<Kind> {
    let socket = UdpSocket::bind((probe.from_addr.unwrap_or(any(probe.to)), 0))?;
    socket.set_nonblocking(true)?;
    // Only a connected socket hears of ICMP errors.
    socket.connect((probe.to, probe.port))?;
    socket.send(&nonce.to_be_bytes())?;
    Ok(Kind::Udp { socket })
}

/// A raw socket for a probe. It is not connected: a connected raw socket would also be told of ICMP errors that belong
/// to other probes to the same address.
fn raw_probe(probe: &Probe, protocol: u8, packet: &[u8]) -> io::Result<UdpSocket> {
    let socket = raw(probe.from_addr.unwrap_or(any(probe.to)), protocol)?;
    socket.set_nonblocking(true)?;
    socket.send_to(packet, (probe.to, 0))?;
    Ok(socket)
}

fn sctp(probe: &Probe, nonce: u64) -> io::Result<Kind> {
    let packet = sctp::init((source_port(nonce), probe.port), tag(nonce));
    let socket = raw_probe(probe, packet::SCTP, &packet)?;
    Ok(Kind::Sctp { socket, port: probe.port, aborted: false })
}

fn icmp(probe: &Probe, nonce: u64) -> io::Result<Kind> {
    let protocol = if probe.to.is_ipv4() { packet::ICMP } else { packet::ICMPV6 };
    let packet = packet::echo_request(probe.to, source_port(nonce), &nonce.to_be_bytes());
    Ok(Kind::Icmp { socket: raw_probe(probe, protocol, &packet)? })
}

/// An SCTP tag made of a nonce; 0 is reserved.
fn tag(nonce: u64) -> u32 {
    ((nonce >> 32) as u32).max(1)
}

fn step_tcp(
    socket: &mut Socket,
    sent: &mut bool,
    got: &mut Vec<u8>,
    nonce: u64,
) -> io::Result<Option<Outcome>> {
    if !*sent {
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        match socket.write(&nonce.to_be_bytes()) {
            Ok(NONCE_LEN) => *sent = true,
            Ok(_) => return Ok(Some(Outcome::Error("a new connection took less than 8 bytes".into()))),
            Err(e) if e.kind() == ErrorKind::NotConnected => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    let mut buffer = [0; NONCE_LEN];
    let len = socket.read(&mut buffer)?;
    got.extend(&buffer[..len]);
    if len == 0 || !nonce.to_be_bytes().starts_with(got) {
        return Ok(Some(Outcome::Error("the connection was accepted but not echoed".into())));
    }
    Ok((got.len() == NONCE_LEN).then_some(Outcome::Reached))
}

fn step_udp(socket: &UdpSocket, nonce: u64) -> io::Result<Option<Outcome>> {
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer)?;
    Ok((buffer[..len] == nonce.to_be_bytes()).then_some(Outcome::Reached))
}

/// Hands every packet of a raw socket to `wanted` until one gives an outcome.
fn read_raw(
    socket: &UdpSocket,
    v4: bool,
    mut wanted: impl FnMut(&[u8]) -> Option<Outcome>,
) -> io::Result<Option<Outcome>> {
    let mut buffer = [0; 256];
    for _ in 0..TURN {
        let len = socket.recv(&mut buffer)?;
        if let Some(outcome) = wanted(without_ip_header(&buffer[..len], v4)) {
            return Ok(Some(outcome));
        }
    }
    Ok(None)
}

fn step_sctp(socket: &UdpSocket, port: u16, nonce: u64, aborted: &mut bool) -> io::Result<Option<Outcome>> {
    let v4 = socket.local_addr()?.is_ipv4();
    read_raw(socket, v4, |segment| {
        let (from, to, message) = sctp::read(segment)?;
        if from != port || to != source_port(nonce) {
            return None;
        }
        match message {
            Message::InitAck { tag: t } if t == tag(nonce) => return Some(Outcome::Reached),
            Message::Abort { tag: t } if t == tag(nonce) => *aborted = true,
            _ => {}
        }
        None
    })
}

fn step_icmp(socket: &UdpSocket, to: IpAddr, nonce: u64) -> io::Result<Option<Outcome>> {
    read_raw(socket, to.is_ipv4(), |message| {
        packet::is_echo_reply(message, to, source_port(nonce), &nonce.to_be_bytes())
            .then_some(Outcome::Reached)
    })
}
