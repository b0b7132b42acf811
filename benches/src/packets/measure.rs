//! The thread that sends, receives and reads its CPU clock.

use super::Error;
use super::designs::Design;
use super::load::{Allowed, FLOWS, Load};
use crate::random::Random;
use netpolc_sandbox::{HostId, NodeSpec, PodSpec, Sandbox, Spec, find_program};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;

/// The pods of a sandbox.
const SERVER: HostId = HostId::Pod(0);
const CLIENT: HostId = HostId::Pod(1);
/// What a packet carries.
const PAYLOAD: [u8; 18] = [7; 18];
/// Packets in a slice of flows that exist.
const SLICE: usize = 192;
/// Seconds that the kernel remembers a connection of UDP without packets: longer than a measurement, so that what is
/// established remains so while other designs are being set up.
const REMEMBER: &str = "900";
/// How often an empty socket is asked again, in case another CPU or thread delivers the packet.
const PATIENCE: usize = 100_000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Packets of connections that have seen a reply.
    Established,
    /// Packets of connections without a reply: each is judged, the connection's entry exists.
    New,
    /// First packets of connections: each is judged, and an entry is made for it.
    First,
    /// Packets that no policy allows.
    Denied,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 4] = [Kind::Established, Kind::New, Kind::First, Kind::Denied];
}

/// Nanoseconds of CPU a packet, for each design and kind, a value for each round.
pub type Samples = BTreeMap<(usize, Kind), Vec<f64>>;

/// What was seen beside times.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Packets sent.
    pub sent: u64,
    /// Packets that were not there when the send had returned.
    pub late: u64,
}

/// A design in force, with its sockets.
struct Bed {
    sandbox: Sandbox,
    flows: Vec<Allowed>,
    open: bool,
    servers: BTreeMap<(IpAddr, u16), UdpSocket>,
    established: Vec<UdpSocket>,
    new: Vec<UdpSocket>,
    denied: Vec<UdpSocket>,
    /// The next source port for first packets.
    port: u16,
}

impl Bed {
    fn build(design: &Design, load: &Load) -> Result<Bed, Error> {
        let flows = load.flows();
        let mut clients: Vec<IpAddr> = flows.iter().map(|f| f.from).chain([load.stranger()]).collect();
        clients.sort_unstable();
        clients.dedup();
        let pod = |name: &str, addrs| PodSpec { name: name.to_owned(), node: 0, addrs, listen: Vec::new() };
        let node = NodeSpec { addrs: vec![IpAddr::from([172, 16, 0, 1])], ..NodeSpec::default() };
        let pods = vec![pod("server", load.locals()), pod("client", clients)];
        let sandbox = Sandbox::build(&Spec { nodes: vec![node], pods, outside: Vec::new() })?;
        let mut nft = Command::new(find_program("nft", "nftables")?);
        nft.args(["-f", "-"]);
        let output = sandbox.run_in_node(0, nft, design.script.as_bytes())?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr).chars().take(500).collect::<String>();
            return Err(Error::Wrong(format!("{}: {complaint}", design.name)));
        }
        sandbox.in_namespace(HostId::Node(0), || {
            let set = |name| fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_udp_{name}"), REMEMBER);
            set("timeout").and_then(|()| set("timeout_stream"))
        })??;
        let servers = sandbox.in_namespace(SERVER, || {
            let bind = |flow: &Allowed| -> io::Result<_> {
                let socket = UdpSocket::bind((flow.to, flow.port))?;
                socket.set_nonblocking(true)?;
                Ok(((flow.to, flow.port), socket))
            };
            let mut all = BTreeMap::new();
            for flow in &flows {
                if !all.contains_key(&(flow.to, flow.port)) {
                    all.extend([bind(flow)?]);
                }
            }
            io::Result::Ok(all)
        })??;
        let stranger = load.stranger();
        let mut bed = Bed {
            sandbox,
            flows,
            open: design.open,
            servers,
            established: vec![],
            new: vec![],
            denied: vec![],
            port: 20_000,
        };
        bed.established = bed.clients(|flow| flow.from)?;
        bed.new = bed.clients(|flow| flow.from)?;
        bed.denied = bed.clients(|_| stranger)?;
        Ok(bed)
    }

    /// A socket for each flow, connected, from a port that was not used before.
    fn clients(&mut self, from: impl Fn(&Allowed) -> IpAddr + Sync) -> Result<Vec<UdpSocket>, Error> {
        let flows = &self.flows;
        let first = self.port;
        // 600 rounds use each port once.
        self.port = if first > 60_000 { 20_000 } else { first + FLOWS as u16 };
        let open = |(i, flow): (usize, &Allowed)| {
            let socket = UdpSocket::bind((from(flow), first + i as u16))?;
            socket.connect((flow.to, flow.port))?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        };
        let sockets = self
            .sandbox
            .in_namespace(CLIENT, || flows.iter().enumerate().map(open).collect::<io::Result<Vec<_>>>())?;
        Ok(sockets?)
    }

    fn server(&self, flow: usize) -> &UdpSocket {
        let flow = &self.flows[flow];
        &self.servers[&(flow.to, flow.port)]
    }

    /// Replies on the flows that are to be established, and checks that the rules do what they should.
    fn settle(&self, name: &str) -> Result<(), Error> {
        let mut buffer = [0; 64];
        for (i, socket) in self.established.iter().enumerate() {
            socket.send(&PAYLOAD)?;
            let mut counts = Counts::default();
            let (_, peer): (usize, SocketAddr) = patiently(&mut counts, || {
                self.server(i).recv_from(&mut buffer)
            })
            .map_err(|e| Error::Wrong(format!("{name}: flow {:?} did not pass: {e}", self.flows[i])))?;
            self.server(i).send_to(&PAYLOAD, peer)?;
            patiently(&mut counts, || socket.recv(&mut buffer))?;
        }
        for (i, socket) in self.denied.iter().enumerate() {
            socket.send(&PAYLOAD)?;
            let got = patiently(&mut Counts::default(), || self.server(i).recv(&mut buffer)).is_ok();
            if got != self.open {
                return Err(Error::Wrong(format!(
                    "{name}: the stranger's packet to {:?}: {got}",
                    self.flows[i]
                )));
            }
        }
        Ok(())
    }

    /// Measures one slice: nanoseconds a packet.
    fn slice(&mut self, kind: Kind, random: &mut Random, counts: &mut Counts) -> Result<f64, Error> {
        let fresh;
        let mut order: Vec<usize> = Vec::new();
        let sockets = match kind {
            Kind::Established => &self.established,
            Kind::New => &self.new,
            Kind::Denied => &self.denied,
            Kind::First => {
                fresh = self.clients(|flow| flow.from)?;
                &fresh
            }
        };
        let packets = if kind == Kind::First { FLOWS } else { SLICE };
        while order.len() < packets {
            let mut all: Vec<usize> = (0..FLOWS).collect();
            random.shuffle(&mut all);
            order.extend(all);
        }
        let arrives = kind != Kind::Denied || self.open;
        let mut buffer = [0; 64];
        let start = clock()?;
        for &i in &order {
            sockets[i].send(&PAYLOAD)?;
            if arrives {
                patiently(counts, || self.server(i).recv(&mut buffer))?;
            }
        }
        let took = clock()? - start;
        counts.sent += order.len() as u64;
        Ok(took / order.len() as f64)
    }
}

/// Asks again while there is nothing.
fn patiently<T>(counts: &mut Counts, mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut last = receive();
    for attempt in 0..PATIENCE {
        match &last {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                counts.late += u64::from(attempt == 0);
                if attempt > 100 && attempt % 100 == 0 {
                    std::thread::yield_now();
                }
                last = receive();
            }
            _ => break,
        }
    }
    last
}

/// CPU time of this thread, in nanoseconds.
fn clock() -> Result<f64, Error> {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(now.tv_sec() as f64 * 1e9 + now.tv_nsec() as f64)
}

/// Builds all designs and measures them, round after round.
///
/// # Errors
/// If a sandbox cannot be built, a script is refused, or rules do not do what they should.
pub fn measure(
    designs: &[Design],
    loads: &[Load],
    rounds: usize,
    samples: &mut Samples,
    counts: &mut Counts,
) -> Result<(), Error> {
    set_cpus(0..CpuSet::count())?;
    let mut beds = designs
        .iter()
        .map(|design| Bed::build(design, &loads[design.load]))
        .collect::<Result<Vec<Bed>, Error>>()?;
    designs.iter().zip(&beds).try_for_each(|(design, bed)| bed.settle(&design.name))?;
    // Threads that come later inherit it, so only now.
    set_cpus(0..1)?;
    let mut random = Random::new(1);
    let mut slices: Vec<(usize, Kind)> =
        (0..beds.len()).flat_map(|bed| Kind::ALL.map(|kind| (bed, kind))).collect();
    for round in 0..=rounds {
        random.shuffle(&mut slices);
        for &(bed, kind) in &slices {
            let took = beds[bed].slice(kind, &mut random, counts)?;
            // The first round warms up.
            if round > 0 {
                samples.entry((bed, kind)).or_default().push(took);
            }
        }
    }
    Ok(())
}

/// Where this thread, and those that it starts, may run. CPUs that are not there do not matter.
fn set_cpus(allowed: std::ops::Range<usize>) -> Result<(), Error> {
    let mut cpus = CpuSet::new();
    allowed.into_iter().try_for_each(|cpu| cpus.set(cpu))?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// Moves this process to a network namespace whose children each have a table of UDP sockets of their own
/// (`net.ipv4.udp_child_hash_entries`). Else sockets of one design make those of another slower, by chance. Kernels
/// before 6.3 do not have it; then repeats even it out.
///
/// # Errors
/// If the kernel does not allow it.
pub fn tables_of_their_own() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let _ = fs::write("/proc/sys/net/ipv4/udp_child_hash_entries", "4096");
    Ok(())
}
