//! A connection that stays open while rules change.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use crate::nonce::nonce;
use crate::probe::{LONGEST_TIMEOUT, Outcome, Probe, any, judge};
use crate::spec::Protocol;

/// Most bytes kept of a stream while looking for a nonce.
const KEEP: usize = 4_096;

/// An open TCP connection, or a UDP flow with a fixed source port, to a listener of the sandbox.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    stream: bool,
    /// The end of what a stream has brought: answers of earlier exchanges may come late.
    got: Vec<u8>,
    local: SocketAddr,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", if self.stream { "tcp" } else { "udp" }, self.local)
    }
}

impl Connection {
    /// Connects from the calling thread's namespace; for TCP, waits for the handshake.
    pub(crate) fn open(probe: &Probe, timeout: Duration) -> Result<Connection, Outcome> {
        let to = SocketAddr::new(probe.to, probe.port);
        let from = SocketAddr::new(probe.from_addr.unwrap_or(any(probe.to)), 0);
        let stream = match probe.protocol {
            Protocol::Tcp => true,
            Protocol::Udp => false,
            other => return Err(Outcome::Error(format!("{other} has no connections here"))),
        };
        let open = || {
            let kind = if stream { Type::STREAM } else { Type::DGRAM };
            let socket = Socket::new(Domain::for_address(to), kind, None)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), timeout.clamp(Duration::from_millis(1), LONGEST_TIMEOUT))?;
            socket.set_nonblocking(true)?;
            if stream {
                socket.set_tcp_nodelay(true)?;
            }
            Ok(socket)
        };
        let socket = open().map_err(|e: std::io::Error| match e.kind() {
            ErrorKind::TimedOut => Outcome::NotReached,
            _ => judge(&e),
        })?;
        let local = socket.local_addr().ok().and_then(|addr| addr.as_socket()).unwrap_or(from);
        Ok(Connection { socket, stream, got: Vec::new(), local })
    }

    /// The client's address and port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends something new and waits for its echo. [`Outcome::NotReached`] means that the connection is stuck;
    /// [`Outcome::Refused`] that it was reset. After a stuck exchange of TCP the kernel keeps sending again, so a later
    /// exchange may succeed.
    pub fn exchange(&mut self, timeout: Duration) -> Outcome {
        let wanted = nonce().to_be_bytes();
        let deadline = Instant::now() + timeout.min(LONGEST_TIMEOUT);
        if let Err(e) = self.socket.write_all(&wanted) {
            return self.judge(&e);
        }
        loop {
            match self.find(&wanted) {
                Ok(true) => return Outcome::Reached,
                Ok(false) => return Outcome::Refused,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return self.judge(&e),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Outcome::NotReached;
            }
            let wait = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&self.socket), PollFlags::POLLIN)], wait);
        }
    }

    /// Reads until `wanted` appears (true) or the stream ends (false).
    fn find(&mut self, wanted: &[u8]) -> std::io::Result<bool> {
        let mut buffer = [0; 512];
        loop {
            let len = self.socket.read(&mut buffer)?;
            if !self.stream {
                if buffer[..len] == *wanted {
                    return Ok(true);
                }
                continue;
            }
            if len == 0 {
                return Ok(false);
            }
            self.got.extend(&buffer[..len]);
            if self.got.windows(wanted.len()).any(|window| window == wanted) {
                self.got.clear();
                return Ok(true);
            }
            let excess = self.got.len().saturating_sub(KEEP);
            self.got.drain(..excess);
        }
    }

    /// On an open connection a reset is a refusal as well.
    fn judge(&self, error: &std::io::Error) -> Outcome {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Outcome::Refused,
            // A full send buffer: nothing has been acknowledged for long.
            ErrorKind::WouldBlock => Outcome::NotReached,
            _ => judge(error),
        }
    }

    /// The socket as a standard TCP stream, for tests that need more than [`Connection::exchange`]; `None` for UDP.
    pub fn into_tcp_stream(self) -> Option<TcpStream> {
        self.stream.then(|| self.socket.into())
    }

    /// The socket as a standard UDP socket; `None` for TCP.
    pub fn into_udp_socket(self) -> Option<UdpSocket> {
        (!self.stream).then(|| self.socket.into())
    }
}
