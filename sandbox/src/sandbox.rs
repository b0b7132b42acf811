//! The sandbox itself: building it, and everything a caller can do in it.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::command::{COMMAND_TIMEOUT, find_program, run, run_checked};
use crate::connection::Connection;
use crate::engine;
use crate::error::Error;
use crate::listen::{self, Listener, Server};
use crate::namespace::Namespace;
use crate::network::{Batches, Sysctl, batches, sysctls};
use crate::observe::{RawPacket, Watch};
use crate::privilege::{allow_open_files, own_bpf_file_system};
use crate::probe::{Outcome, Probe};
use crate::spec::{HostId, MAX_LISTENERS, Protocol, Spec};

/// A timeout for probes that suits an idle machine. Silence within it on a loaded machine may be worth a second,
/// longer look.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(400);

/// Longest time for a new network to carry packets. Milliseconds suffice unless the whole machine's network
/// configuration is busy.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Files that the process may have open beside those of a sandbox.
const OTHER_FILES: u64 = 512;

/// Most threads that configure namespaces at once.
const MAX_BUILDERS: usize = 8;

/// A running network of nodes, pods and outside hosts. Dropping it removes it.
pub struct Sandbox {
    spec: Spec,
    hosts: BTreeMap<HostId, Namespace>,
    /// The router between nodes and outside hosts. Held for its life, which is the network's.
    fabric: Namespace,
    owners: BTreeMap<IpAddr, HostId>,
    /// Stops before the namespaces go.
    _server: Server,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Builds the network and starts the listeners. On return every host can reach every other.
    ///
    /// # Errors
    ///
    /// [`Error::Spec`] for a spec that makes no sense, [`Error::MissingProgram`] without `ip`, [`Error::Privilege`] for
    /// a caller that is not root, and whatever else the kernel refuses. Nothing stays behind.
    pub fn build(spec: &Spec) -> Result<Sandbox, Error> {
        spec.check()?;
        let ip = find_program("ip", "iproute2")?;
        let hosts: Vec<HostId> = spec.hosts().collect();
        let endpoints = hosts.iter().map(|&host| spec.addrs(host).len() * (spec.listen(host).len() + 1));
        let files = (endpoints.sum::<usize>().min(MAX_LISTENERS) + hosts.len()) as u64;
        // Twice the probes: each may stand against an accepted connection.
        allow_open_files(files + 2 * engine::OPEN_FILES + OTHER_FILES)?;
        own_bpf_file_system();
        let ipv6 = Path::new("/proc/sys/net/ipv6").exists();
        if !ipv6 && hosts.iter().any(|&host| spec.addrs(host).iter().any(IpAddr::is_ipv6)) {
            return Err(Error::Spec("there are IPv6 addresses, and this kernel has no IPv6".into()));
        }
        let made = parallel(&hosts, |&host| {
            let router = matches!(host, HostId::Node(_));
            new_namespace(router, ipv6).map(|namespace| (host, namespace))
        });
        let namespaces: BTreeMap<HostId, Namespace> = made.into_iter().collect::<Result<_, _>>()?;
        let fabric = new_namespace(true, ipv6)?;
        let path = |host| namespaces.get(&host).map(Namespace::path).unwrap_or_default();
        configure(&ip, &fabric, &namespaces, &batches(spec, path, ipv6))?;
        let listeners = parallel(&hosts, |host| open_listeners(spec, *host, &namespaces));
        let listeners: Vec<Vec<Listener>> = listeners.into_iter().collect::<Result<_, _>>()?;
        let server = Server::start(listeners.into_iter().flatten().collect())?;
        settle(spec, &namespaces)?;
        let owners =
            hosts.iter().flat_map(|&host| spec.addrs(host).iter().map(move |&addr| (addr, host))).collect();
        Ok(Sandbox { spec: spec.clone(), hosts: namespaces, fabric, owners, _server: server })
    }

    /// What the sandbox was built from.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The host that has an address.
    pub fn owner(&self, addr: IpAddr) -> Option<HostId> {
        self.owners.get(&addr).copied()
    }

    /// Runs a program to its end in a node's network namespace, with `stdin` as its input: `nft -f -`, for instance.
    /// A status other than success is the caller's to judge. Standard streams set on `command` are replaced.
    ///
    /// # Errors
    ///
    /// If there is no such node, the program does not start, or it takes longer than [`COMMAND_TIMEOUT`].
    pub fn run_in_node(&self, node: usize, command: Command, stdin: &[u8]) -> Result<Output, Error> {
        self.in_namespace(HostId::Node(node), || run(command, stdin, COMMAND_TIMEOUT))?
    }

    /// Runs `f` on a thread inside a host's network namespace. Sockets that `f` opens and programs that it starts belong
    /// to that namespace.
    ///
    /// # Errors
    ///
    /// If there is no such host, or `f` panics.
    pub fn in_namespace<R: Send>(&self, host: HostId, f: impl FnOnce() -> R + Send) -> Result<R, Error> {
        self.namespace(host)?.run(f)
    }

    /// Runs `f` on a thread inside the namespace of the router that joins nodes and outside hosts. Its device to node
    /// `i` is `n<i>`, to outside host `i` is `x<i>`.
    ///
    /// # Errors
    ///
    /// If `f` panics.
    pub fn in_fabric<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R, Error> {
        self.fabric.run(f)
    }

    /// Runs probes, many at a time; the outcomes are in their order. `timeout` is per probe, [`DEFAULT_TIMEOUT`] for
    /// instance.
    pub fn probe_all(&self, probes: &[Probe], timeout: Duration) -> Vec<Outcome> {
        engine::run(probes, timeout, |probe| self.hosts.get(&probe.from))
    }

    /// Opens a TCP connection, or a UDP flow, that the caller holds.
    ///
    /// # Errors
    ///
    /// The outcome, if the connection cannot be opened: never [`Outcome::Reached`].
    pub fn connect(&self, probe: &Probe, timeout: Duration) -> Result<Connection, Outcome> {
        let fail = |e: Error| Outcome::Error(e.to_string());
        self.in_namespace(probe.from, || Connection::open(probe, timeout)).map_err(fail)?
    }

    /// Sends a packet made by hand and waits for its arrival. Gives the source address it arrived with, which differs
    /// from the one sent where rules translate addresses; `None` if it did not arrive in time.
    ///
    /// # Errors
    ///
    /// If a host does not exist, families differ, or a socket cannot be made.
    pub fn observe(&self, packet: &RawPacket, timeout: Duration) -> Result<Option<IpAddr>, Error> {
        if packet.source.is_ipv4() != packet.to.is_ipv4() {
            return Err(Error::Spec("source and destination are of different families".into()));
        }
        let watch = self.in_namespace(packet.at, || Watch::open(packet))??;
        if !self.in_namespace(packet.from, || watch.send(packet))?? {
            return Ok(None);
        }
        watch.wait(timeout)
    }

    fn namespace(&self, host: HostId) -> Result<&Namespace, Error> {
        self.hosts.get(&host).ok_or_else(|| Error::Spec(format!("{host} is not in the sandbox")))
    }
}

/// Makes a namespace and writes its settings, before it has devices that would take the old ones.
fn new_namespace(router: bool, ipv6: bool) -> Result<Namespace, Error> {
    let namespace = Namespace::create()?;
    namespace.run(|| sysctls(router, ipv6).into_iter().try_for_each(set))??;
    Ok(namespace)
}

/// Writes a setting of the calling thread's namespace: the files below `/proc/sys/net` are those of the namespace of the
/// thread that opens them. Where they cannot be written, as in some containers, a right value will do.
fn set(sysctl: &Sysctl) -> Result<(), Error> {
    let path = Path::new("/proc/sys/net").join(sysctl.path);
    let is_set = || fs::read_to_string(&path).is_ok_and(|text| text.trim() == sysctl.value);
    match fs::write(&path, sysctl.value) {
        Err(e) if sysctl.required && !is_set() => {
            Err(Error::system(format!("write {} to {}", sysctl.value, path.display()), e))
        }
        _ => Ok(()),
    }
}

/// Runs the batches: the fabric first, since it makes the nodes' uplinks, then the nodes, since they make the pods' links.
fn configure(
    ip: &PathBuf,
    fabric: &Namespace,
    hosts: &BTreeMap<HostId, Namespace>,
    batches: &Batches,
) -> Result<(), Error> {
    let batch = |namespace: &Namespace, text: &str| {
        let mut command = Command::new(ip);
        command.args(["-batch", "-"]).env("LC_ALL", "C");
        namespace.run(|| run_checked(command, text.as_bytes()))?.map(drop)
    };
    let all = |texts: Vec<(HostId, &String)>| {
        let results = parallel(&texts, |(host, text)| hosts.get(host).map_or(Ok(()), |ns| batch(ns, text)));
        results.into_iter().collect::<Result<(), Error>>()
    };
    batch(fabric, &batches.fabric)?;
    all(batches.nodes.iter().enumerate().map(|(i, text)| (HostId::Node(i), text)).collect())?;
    let pods = batches.pods.iter().enumerate().map(|(i, text)| (HostId::Pod(i), text));
    let outside = batches.outside.iter().enumerate().map(|(i, text)| (HostId::Outside(i), text));
    all(pods.chain(outside).collect())
}

fn open_listeners(
    spec: &Spec,
    host: HostId,
    namespaces: &BTreeMap<HostId, Namespace>,
) -> Result<Vec<Listener>, Error> {
    match namespaces.get(&host) {
        Some(namespace) => namespace.run(|| listen::open(spec.addrs(host), spec.listen(host)))?,
        None => Ok(vec![]),
    }
}

/// Waits until packets pass. The kernel finishes in the background what the batches began: it attaches the queue of a
/// new link (`linkwatch_event`) and inserts the route of a new IPv6 address (`addrconf_dad_work`) when the machine lets
/// it. Echo requests around a ring of all addresses of a family cross every link in both directions.
fn settle(spec: &Spec, namespaces: &BTreeMap<HostId, Namespace>) -> Result<(), Error> {
    let mut pending = ring(spec, true);
    pending.extend(ring(spec, false));
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    let mut timeout = Duration::from_millis(20);
    loop {
        let outcomes = engine::run(&pending, timeout, |probe| namespaces.get(&probe.from));
        let failed = pending.into_iter().zip(outcomes).filter(|(_, outcome)| *outcome != Outcome::Reached);
        let failed: Vec<_> = failed.collect();
        let Some((probe, outcome)) = failed.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            let what = format!("echo request from {} to {}: {outcome}", probe.from, probe.to);
            return Err(Error::Unsettled { what, limit: SETTLE_TIMEOUT });
        }
        // An outcome may be known at once, so a pause keeps this from spinning.
        thread::sleep(Duration::from_millis(2));
        pending = failed.into_iter().map(|(probe, _)| probe).collect();
        timeout = (timeout * 2).min(DEFAULT_TIMEOUT);
    }
}

/// An echo request from every address of a family to the next one, and from the last to the first.
fn ring(spec: &Spec, v4: bool) -> Vec<Probe> {
    let addrs = spec.hosts().flat_map(|host| spec.addrs(host).iter().map(move |&addr| (host, addr)));
    let addrs: Vec<(HostId, IpAddr)> = addrs.filter(|(_, addr)| addr.is_ipv4() == v4).collect();
    let next = addrs.iter().cycle().skip(1);
    let probe = |(&(from, own), &(_, to)): (&(HostId, IpAddr), &(HostId, IpAddr))| Probe {
        from,
        from_addr: Some(own),
        to,
        protocol: Protocol::Icmp,
        port: 0,
    };
    addrs.iter().zip(next).map(probe).collect()
}

/// `f` of every item, by a few threads; results are in the order of the items.
fn parallel<T: Sync, R: Send>(
    items: &[T],
    f: impl Fn(&T) -> Result<R, Error> + Sync,
) -> Vec<Result<R, Error>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return done };
            done.push((index, f(item)));
        }
    };
    let threads =
        thread::available_parallelism().map_or(2, |n| n.get() * 2).min(MAX_BUILDERS).min(items.len());
    let mut results = BTreeMap::new();
    thread::scope(|scope| {
        let handles: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        results.extend(work());
        for handle in handles {
            results.extend(handle.join().unwrap_or_default());
        }
    });
    (0..items.len()).map(|index| results.remove(&index).unwrap_or(Err(Error::Panicked))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{NodeSpec, OutsideSpec};

    #[test]
    fn the_ring_has_every_address_once_on_each_side() {
        let addrs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let spec = Spec {
            nodes: vec![
                NodeSpec { addrs: addrs(&["10.0.0.1", "fd00::1"]), ..NodeSpec::default() },
                NodeSpec { addrs: addrs(&["10.0.0.2", "10.0.0.3"]), ..NodeSpec::default() },
            ],
            pods: vec![],
            outside: vec![OutsideSpec { addr: addrs(&["203.0.113.1"])[0], listen: vec![] }],
        };
        let sorted = |mut list: Vec<IpAddr>| {
            list.sort();
            list
        };
        for v4 in [true, false] {
            let ring = ring(&spec, v4);
            let all = spec.hosts().flat_map(|host| spec.addrs(host)).filter(|addr| addr.is_ipv4() == v4);
            let all = sorted(all.copied().collect());
            assert_eq!(sorted(ring.iter().filter_map(|probe| probe.from_addr).collect()), all);
            assert_eq!(sorted(ring.iter().map(|probe| probe.to).collect()), all);
            assert!(ring.iter().all(|probe| spec.addrs(probe.from).contains(&probe.from_addr.unwrap())));
        }
    }
}
