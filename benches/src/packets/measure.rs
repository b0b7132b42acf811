//! The thread that sends, receives and reads its CPU clock.

use super::Error;
use super::designs::{DROP, Design, FLOOR};
use super::install::{Loaded, NODE, install};
use super::load::{Allowed, FLOWS, Load};
use crate::random::Random;
use netpolc_sandbox::{HostId, NodeSpec, PodSpec, Sandbox, Spec};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

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

/// How long packets get that should not arrive.
const ARRIVAL: Duration = Duration::from_millis(30);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

/// What one process has measured. Designs go by their keys.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Repeat {
    /// Nanoseconds of CPU a packet, a value for each round.
    pub samples: BTreeMap<String, BTreeMap<Kind, Vec<f64>>>,
    /// What loading took.
    pub loaded: BTreeMap<String, Loaded>,
    /// Designs that could not be measured, and why.
    pub left_out: BTreeMap<String, String>,
    /// Packets.
    pub counts: Counts,
}

/// What was seen beside times.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
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
    fn build(design: &Design, loader: &Path) -> Result<(Bed, Loaded), Error> {
        let load = Load::new(design.policies);
        let flows = load.flows();
        let mut clients: Vec<IpAddr> = flows.iter().map(|f| f.from).chain([load.stranger()]).collect();
        clients.sort_unstable();
        clients.dedup();
        let pod = |name: &str, addrs| PodSpec { name: name.to_owned(), node: 0, addrs, listen: Vec::new() };
        let node = NodeSpec { addrs: vec![IpAddr::from([172, 16, 0, 1])], ..NodeSpec::default() };
        let pods = vec![pod("server", load.locals()), pod("client", clients)];
        let sandbox = Sandbox::build(&Spec { nodes: vec![node], pods, outside: Vec::new() })?;
        let loaded = install(&sandbox, design, loader)?;
        sandbox.in_namespace(NODE, || {
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
        bed.settle()?;
        Ok((bed, loaded))
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
    fn settle(&self) -> Result<(), Error> {
        let mut buffer = [0; 64];
        for (i, socket) in self.established.iter().enumerate() {
            socket.send(&PAYLOAD)?;
            let mut counts = Counts::default();
            let (_, peer): (usize, SocketAddr) =
                patiently(&mut counts, || self.server(i).recv_from(&mut buffer))
                    .map_err(|e| Error::Wrong(format!("flow {:?} did not pass: {e}", self.flows[i])))?;
            self.server(i).send_to(&PAYLOAD, peer)?;
            patiently(&mut counts, || socket.recv(&mut buffer))?;
        }
        self.denied.iter().try_for_each(|socket| socket.send(&PAYLOAD).map(drop))?;
        // Packets are delivered while they are sent, or soon after.
        std::thread::sleep(ARRIVAL);
        let mut got = vec![0; self.flows.len()];
        for (i, got) in got.iter_mut().enumerate() {
            while self.server(i).recv(&mut buffer).is_ok() {
                *got += 1;
            }
        }
        // Flows may share a server, whose packets are then all counted for the first of them.
        let (passed, sent) = (got.iter().sum::<usize>(), self.denied.len());
        if passed != if self.open { sent } else { 0 } {
            return Err(Error::Wrong(format!("{passed} of {sent} packets of the stranger passed")));
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

/// Builds all designs and measures them, round after round. For a process of its own: this thread changes its namespaces
/// and its CPUs.
///
/// # Errors
/// If a sandbox cannot be built. That rules cannot be loaded is none.
pub fn repeat(designs: &[Design], loader: &Path, rounds: usize, seed: u64) -> Result<Repeat, Error> {
    tables_of_their_own()?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut random = Random::new(seed);
    let mut order: Vec<&Design> = designs.iter().collect();
    random.shuffle(&mut order);
    let mut out = Repeat::default();
    let mut beds: Vec<(&Design, Bed)> = Vec::new();
    for design in order {
        match Bed::build(design, loader) {
            Ok((bed, loaded)) => {
                out.loaded.insert(design.key(), loaded);
                beds.push((design, bed));
            }
            Err(Error::Refused(reason) | Error::Wrong(reason)) => {
                out.left_out.insert(design.key(), reason);
            }
            Err(error) => return Err(error),
        }
    }
    // Threads that come later inherit it, so only now.
    set_cpus(0..1)?;
    let of_interest = |design: &Design, kind| match design.name.as_str() {
        FLOOR => kind != Kind::Denied,
        DROP => kind == Kind::Denied,
        _ => true,
    };
    let mut slices: Vec<(usize, Kind)> = (0..beds.len())
        .flat_map(|bed| Kind::ALL.map(|kind| (bed, kind)))
        .filter(|&(bed, kind)| of_interest(beds[bed].0, kind))
        .collect();
    for round in 0..=rounds {
        random.shuffle(&mut slices);
        for &(bed, kind) in &slices {
            let (design, bed) = &mut beds[bed];
            let took = bed.slice(kind, &mut random, &mut out.counts)?;
            // The first round warms up.
            if round > 0 {
                out.samples.entry(design.key()).or_default().entry(kind).or_default().push(took);
            }
        }
    }
    Ok(out)
}

/// Where this thread, and those that it starts, may run. CPUs that are not there do not matter.
fn set_cpus(allowed: std::ops::Range<usize>) -> Result<(), Error> {
    let mut cpus = CpuSet::new();
    allowed.into_iter().try_for_each(|cpu| cpus.set(cpu))?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// Moves this thread to a network namespace whose children each have a table of UDP sockets of their own
/// (`net.ipv4.udp_child_hash_entries`). Else sockets of one design make those of another slower, by chance. Kernels
/// before 6.3 do not have it; then repeats even it out.
fn tables_of_their_own() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let _ = fs::write("/proc/sys/net/ipv4/udp_child_hash_entries", "4096");
    Ok(())
}
