//! The listeners of all hosts, served by one thread.
//!
//! A socket stays in the namespace it was made in, wherever it is polled, so the thread itself lives in none of them.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

use crate::error::Error;
use crate::packet::{self, without_ip_header};
use crate::sctp::{self, Message};
use crate::spec::Protocol;

/// Most TCP connections kept at once over all listeners; the oldest is closed for a new one.
const MAX_STREAMS: usize = 8_192;

/// Most bytes read at once, and so the longest datagram that is echoed whole.
const BUFFER_LEN: usize = 2_048;

/// Datagrams or connections taken from one socket before others have their turn.
const TURN: usize = 64;

/// The token of the pipe whose closing ends the thread.
const STOP: u64 = 0;

/// A listening socket that answers whatever arrives.
pub(crate) enum Listener {
    /// Echoes every stream.
    Tcp(TcpListener),
    /// Echoes every datagram.
    Udp(UdpSocket),
    /// Answers INIT with INIT ACK on the ports listed, with ABORT on others. The socket is raw and bound to one
    /// address; `UdpSocket` stands for it only because its reads give the sender's address.
    Sctp(UdpSocket, Vec<u16>),
}

/// Opens a host's listeners on `addrs`, in the namespace of the calling thread. Every address gets an SCTP answerer even
/// without SCTP ports, since the kernel's own answer to SCTP depends on its modules.
pub(crate) fn open(addrs: &[IpAddr], ports: &[(Protocol, u16)]) -> Result<Vec<Listener>, Error> {
    let mut listeners = Vec::new();
    for &addr in addrs {
        for &(protocol, port) in ports {
            let listener = match protocol {
                Protocol::Tcp => tcp(addr, port).map(Listener::Tcp),
                Protocol::Udp => UdpSocket::bind((addr, port)).map(Listener::Udp),
                Protocol::Sctp | Protocol::Icmp => continue,
            };
            listeners
                .push(listener.map_err(|e| Error::system(format!("listen on {addr} {protocol} {port}"), e))?);
        }
        let ports = ports.iter().filter(|(protocol, _)| *protocol == Protocol::Sctp).map(|&(_, port)| port);
        let socket =
            raw(addr, packet::SCTP).map_err(|e| Error::system(format!("listen on {addr} sctp"), e))?;
        listeners.push(Listener::Sctp(socket, ports.collect()));
    }
    for listener in &listeners {
        let done = match listener {
            Listener::Tcp(socket) => socket.set_nonblocking(true),
            Listener::Udp(socket) | Listener::Sctp(socket, _) => socket.set_nonblocking(true),
        };
        done.map_err(|e| Error::system("set a socket non-blocking", e))?;
    }
    Ok(listeners)
}

fn tcp(addr: IpAddr, port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(addr, port)), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(addr, port).into())?;
    socket.listen(1_024)?;
    Ok(socket.into())
}

/// A raw socket for one IP protocol, bound to `addr`. For raw sockets the port in an address means nothing, and must be
/// 0 for IPv6 (raw(7)).
pub(crate) fn raw(addr: IpAddr, protocol: u8) -> io::Result<UdpSocket> {
    let address = SocketAddr::new(addr, 0);
    let socket = Socket::new(Domain::for_address(address), Type::RAW, Some(i32::from(protocol).into()))?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The thread that serves listeners. Dropping it ends the thread and closes the sockets.
pub(crate) struct Server {
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the thread.
    pub(crate) fn start(listeners: Vec<Listener>) -> Result<Server, Error> {
        let fail = |e: io::Error| Error::system("start the listeners", e);
        let (reader, writer) = io::pipe().map_err(fail)?;
        let mut service = Service {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| fail(e.into()))?,
            listeners: BTreeMap::new(),
            streams: BTreeMap::new(),
            next: STOP + 1,
        };
        service.watch(&reader, STOP).map_err(fail)?;
        for listener in listeners {
            let token = service.token();
            match &listener {
                Listener::Tcp(socket) => service.watch(socket, token),
                Listener::Udp(socket) | Listener::Sctp(socket, _) => service.watch(socket, token),
            }
            .map_err(fail)?;
            service.listeners.insert(token, listener);
        }
        let thread = thread::Builder::new()
            .name("sandbox-listen".into())
            .spawn(move || {
                service.serve();
                drop(reader);
            })
            .map_err(fail)?;
        Ok(Server { stop: Some(writer), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported already, and there is nothing left to clean up.
            let _ = thread.join();
        }
    }
}

struct Service {
    epoll: Epoll,
    listeners: BTreeMap<u64, Listener>,
    /// Accepted connections; tokens grow, so the first one is the oldest.
    streams: BTreeMap<u64, TcpStream>,
    next: u64,
}

impl Service {
    fn token(&mut self) -> u64 {
        let token = self.next;
        self.next += 1;
        token
    }

    fn watch(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Answers until the writing end of the stop pipe is closed.
    fn serve(&mut self) {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => continue,
                Err(_) => return,
            };
            for event in &events[..count] {
                if event.data() == STOP {
                    return;
                }
                self.handle(event.data());
            }
        }
    }

    fn handle(&mut self, token: u64) {
        let mut buffer = [0; BUFFER_LEN];
        if let Some(stream) = self.streams.get_mut(&token) {
            if !echo_stream(stream, &mut buffer) {
                // Closing the descriptor takes it out of the epoll set.
                self.streams.remove(&token);
            }
            return;
        }
        match self.listeners.get(&token) {
            Some(Listener::Udp(socket)) => echo_datagrams(socket, &mut buffer),
            Some(Listener::Sctp(socket, ports)) => answer_sctp(socket, ports, &mut buffer),
            Some(Listener::Tcp(socket)) => {
                let accepted = accept(socket);
                for stream in accepted {
                    self.keep(stream);
                }
            }
            None => {}
        }
    }

    fn keep(&mut self, stream: TcpStream) {
        let token = self.token();
        if stream.set_nonblocking(true).is_err() || self.watch(&stream, token).is_err() {
            return;
        }
        if self.streams.len() >= MAX_STREAMS {
            self.streams.pop_first();
        }
        self.streams.insert(token, stream);
    }
}

fn accept(socket: &TcpListener) -> Vec<TcpStream> {
    let mut accepted = Vec::new();
    while accepted.len() < TURN {
        match socket.accept() {
            Ok((stream, _)) => accepted.push(stream),
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
            Err(_) => {
                // Out of descriptors or memory. The socket stays readable, so without a pause this would spin.
                thread::sleep(Duration::from_millis(5));
                break;
            }
        }
    }
    accepted
}

/// Echoes what has arrived; false when the stream is over. Only as much is read as is written back at once: a peer that
/// sends and never reads loses its connection instead of filling our memory.
fn echo_stream(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    match stream.read(buffer) {
        Ok(0) => false,
        Ok(len) => stream.write_all(&buffer[..len]).is_ok(),
        Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

fn echo_datagrams(socket: &UdpSocket, buffer: &mut [u8]) {
    for _ in 0..TURN {
        match socket.recv_from(buffer) {
            // If an answer cannot be sent, the probe times out, which is the truth.
            Ok((len, peer)) => drop(socket.send_to(&buffer[..len], peer)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(_) => {}
        }
    }
}

fn answer_sctp(socket: &UdpSocket, open: &[u16], buffer: &mut [u8]) {
    for _ in 0..TURN {
        let (len, peer) = match socket.recv_from(buffer) {
            Ok(received) => received,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(_) => continue,
        };
        let segment = without_ip_header(&buffer[..len], peer.is_ipv4());
        let Some((from, to, Message::Init { tag })) = sctp::read(segment) else { continue };
        let answer =
            if open.contains(&to) { sctp::init_ack((to, from), tag) } else { sctp::abort((to, from), tag) };
        let _ = socket.send_to(&answer, SocketAddr::new(peer.ip(), 0));
    }
}
