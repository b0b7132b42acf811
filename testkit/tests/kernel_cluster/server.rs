//! What listens in pods, on nodes and outside, and what asks there.

use crate::netns::Netns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A port that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Port {
    Tcp(u16),
    Udp(u16),
}

/// The ports that everything answers on.
pub(crate) const PORTS: [Port; 3] = [Port::Tcp(80), Port::Tcp(81), Port::Udp(53)];

/// Answers everyone on [`PORTS`] with its name and the address it saw: `name address`.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(netns: &Netns, name: &str) -> Server {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (stop.clone(), name.to_owned());
        let mut tcp = Vec::new();
        let mut udp = Vec::new();
        netns.inside(|| {
            for port in PORTS {
                match port {
                    Port::Tcp(port) => tcp.push(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()),
                    Port::Udp(port) => udp.push(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()),
                }
            }
        });
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                answer(&name, &tcp, &udp);
            }
        });
        Server { stop, thread: Some(thread) }
    }
}

fn answer(name: &str, tcp: &[TcpListener], udp: &[UdpSocket]) {
    let fds = tcp.iter().map(|l| l.as_fd()).chain(udp.iter().map(|s| s.as_fd()));
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    poll(&mut fds, PollTimeout::from(100u8)).unwrap();
    let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
    for (listener, _) in tcp.iter().zip(&ready).filter(|(_, ready)| **ready) {
        // Whoever asked may be gone again.
        if let Ok((mut stream, from)) = listener.accept() {
            let _ = write!(stream, "{name} {}", from.ip().to_canonical());
        }
    }
    for (socket, _) in udp.iter().zip(&ready[tcp.len()..]).filter(|(_, ready)| **ready) {
        if let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(format!("{name} {}", from.ip().to_canonical()).as_bytes(), from);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What an address and port answer within the time, or why nothing came. For a thread that is in the network namespace that
/// asks.
pub(crate) fn ask(addr: IpAddr, port: Port, patience: Duration) -> Result<String, String> {
    let end = Instant::now() + patience;
    match port {
        Port::Tcp(port) => {
            let to = SocketAddr::new(addr, port);
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None);
            let socket = socket.map_err(|error| error.to_string())?;
            let from = || socket.local_addr().ok().and_then(|from| from.as_socket()).map(|from| from.port());
            let connected = socket.connect_timeout(&to.into(), patience);
            connected.map_err(|error| format!("connect, from port {}: {error}", from().unwrap_or(0)))?;
            let mut stream = TcpStream::from(socket);
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let from = stream.local_addr();
            let mut answer = String::new();
            let read = stream.set_read_timeout(Some(left)).and_then(|()| stream.read_to_string(&mut answer));
            read.map(|_| answer).map_err(|error| format!("read, from {from:?}: {error}"))
        }
        Port::Udp(port) => {
            let any = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).map_err(|error| error.to_string())?;
            socket.set_read_timeout(Some(Duration::from_millis(100))).map_err(|error| error.to_string())?;
            while Instant::now() < end {
                // A packet may get lost for another reason than a rule: the way to a neighbour was not known yet, say.
                let _ = socket.send_to(b"?", (addr, port));
                let mut buffer = [0; 256];
                // A node has several addresses, and may answer from another one.
                if let Ok((length, _)) = socket.recv_from(&mut buffer) {
                    return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned());
                }
            }
            Err("silence".to_owned())
        }
    }
}
