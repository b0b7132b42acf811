//! Rules that change while packets flow.

use super::world::{PATIENCE, World, backend, cluster, loader, policy};
use netpolc_bundle::wire::{self, FromLoader};
use netpolc_bundle::{Backend, Bundle};
use netpolc_sandbox::{HostId, Outcome};
use socket2::{Domain, Socket, Type};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// How often the rules are replaced.
const APPLIES: u64 = 60;

/// A port that none of the sandbox's own listeners has.
const COUNTED: u16 = 5555;

/// How many denied connections are under way at once.
const PENDING: usize = 64;

fn shop() -> String {
    cluster(&[
        ("client", 0, "app: client", ""),
        ("near", 0, "app: near", ""),
        ("server", 1, "app: server", ""),
        ("other", 0, "app: other", ""),
    ])
}

/// Two versions that agree on what is sent: the client may use 53 and 80, of 5555 there is only talk, and another pod
/// may do nothing.
fn versions(egress: bool) -> [Vec<String>; 2] {
    let rules = |more: &str| match egress {
        false => policy(
            "server",
            "app: server",
            &format!(
                "  policyTypes: [Ingress]\n  ingress:\n\
                 \x20 - {{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}], ports: [{{port: 80}}, {{port: 53, protocol: UDP}}{more}]}}\n\
                 \x20 - {{from: [{{podSelector: {{matchLabels: {{app: near}}}}}}], ports: [{{port: 5555, protocol: UDP}}]}}\n"
            ),
        ),
        true => {
            policy(
                "client",
                "app: client",
                &format!(
                    "  policyTypes: [Egress]\n  egress:\n\
                     \x20 - {{to: [{{podSelector: {{matchLabels: {{app: server}}}}}}], ports: [{{port: 80}}, {{port: 53, protocol: UDP}}{more}]}}\n\
                     \x20 - {{to: [{{podSelector: {{matchLabels: {{app: near}}}}}}], ports: [{{port: 5555, protocol: UDP}}]}}\n"
                ),
            ) + &policy(
                "other",
                "app: other",
                &format!("  policyTypes: [Egress]\n  egress: [{{ports: [{{port: 9090}}{more}]}}]\n"),
            )
        }
    };
    let deny = policy("near", "app: near", "  policyTypes: [Ingress, Egress]\n");
    [vec![rules("")], vec![rules(", {port: 8000, endPort: 8010}, {port: 9999, protocol: SCTP}"), deny]]
}

/// What has been counted.
#[derive(Default)]
struct Counts {
    allowed: AtomicU64,
    lost: AtomicU64,
    denied: AtomicU64,
    leaked: AtomicU64,
    stop: AtomicBool,
    /// What the kernels have to say about segments that were lost.
    why: OnceLock<String>,
}

impl Counts {
    fn more(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn going(&self) -> bool {
        thread::sleep(Duration::from_micros(200));
        !self.stop.load(Ordering::Relaxed)
    }
}

fn any(to: SocketAddr) -> SocketAddr {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    SocketAddr::new(any, 0)
}

/// New flows that must all be answered.
fn allowed_udp(to: SocketAddr, counts: &Counts) {
    let mut number = 0u64;
    while counts.going() {
        number += 1;
        let socket = UdpSocket::bind(any(to)).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send(&number.to_be_bytes()).unwrap();
        let mut back = [0; 16];
        let answered = socket.recv(&mut back).is_ok_and(|len| back[..len] == number.to_be_bytes());
        Counts::more(if answered { &counts.allowed } else { &counts.lost });
    }
}

/// Connections that must all come about; how many segments were lost on the way follows from what the kernels count.
fn allowed_tcp(to: SocketAddr, counts: &Counts) {
    while counts.going() {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        let opened = socket.connect_timeout(&to.into(), PATIENCE).is_ok();
        Counts::more(if opened { &counts.allowed } else { &counts.lost });
        thread::sleep(Duration::from_millis(1));
    }
}

/// Datagrams from new ports that nobody may see.
fn denied_udp(to: SocketAddr, counts: &Counts) {
    while counts.going() {
        let socket = UdpSocket::bind(any(to)).unwrap();
        socket.send_to(b"denied", to).unwrap();
        Counts::more(&counts.denied);
    }
}

/// Connections that must not come about.
fn denied_tcp(to: SocketAddr, counts: &Counts) {
    let mut pending: VecDeque<Socket> = VecDeque::new();
    let open = |socket: &Socket| socket.peer_addr().is_ok();
    while counts.going() {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&to.into());
        Counts::more(&counts.denied);
        pending.push_back(socket);
        if pending.len() > PENDING && pending.pop_front().is_some_and(|socket| open(&socket)) {
            Counts::more(&counts.leaked);
        }
    }
    thread::sleep(Duration::from_millis(100));
    counts.leaked.fetch_add(pending.iter().filter(|socket| open(socket)).count() as u64, Ordering::Relaxed);
}

/// A connection older than the rules: every byte comes back once and in order.
fn stream(world: &World, to: IpAddr, counts: &Counts) {
    let probe = world.probe("client", to, "tcp", 80);
    let mut stream = world.sandbox.connect(&probe, PATIENCE).unwrap().into_tcp_stream().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut number = 0u64;
    while counts.going() {
        let sent: Vec<u8> = (number..number + 64).flat_map(u64::to_be_bytes).collect();
        number += 64;
        let mut back = vec![0; sent.len()];
        let done = stream.write_all(&sent).and_then(|()| stream.read_exact(&mut back));
        assert!(done.is_ok() && back == sent, "{to}: byte {number}: {done:?}");
    }
    assert!(number > 64);
}

/// What this host's kernel has counted about TCP (`/proc/net/snmp` and `/proc/net/netstat`).
fn tcp_counters(world: &World, host: &str) -> BTreeMap<String, i64> {
    let mut counters = BTreeMap::new();
    for (file, group) in [("snmp", "Tcp:"), ("netstat", "TcpExt:")] {
        let path = format!("/proc/thread-self/net/{file}");
        let read = || fs::read_to_string(path).unwrap();
        let text = world.sandbox.in_namespace(world.host(host), read).unwrap();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
        let [names, values] = [(); 2].map(|()| lines.next().unwrap().split_whitespace());
        counters.extend(names.map(str::to_owned).zip(values.map(|value| value.parse().unwrap())));
    }
    counters
}

/// What the kernel of both nodes has counted about connections (`/proc/net/stat/nf_conntrack`, hexadecimal, a line for each
/// processor), and how many there are.
fn connection_counters(world: &World) -> BTreeMap<String, i64> {
    let mut counters = BTreeMap::new();
    for node in [0, 1] {
        let read = || fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack").unwrap();
        let text = world.sandbox.in_namespace(HostId::Node(node), read).unwrap();
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        for (processor, line) in lines.enumerate() {
            for (name, value) in names.iter().zip(line.split_whitespace()) {
                // The number of entries is the namespace's, and stands in each line.
                if *name != "entries" || processor == 0 {
                    let value = i64::from_str_radix(value, 16).unwrap();
                    *counters.entry(format!("{name} of node {node}")).or_insert(0) += value;
                }
            }
        }
    }
    counters
}

/// By how much each has grown that has.
fn growth(before: &BTreeMap<String, i64>, after: &BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let grown = after.iter().map(|(name, value)| (name.clone(), value - before[name]));
    grown.filter(|(_, by)| *by != 0).collect()
}

/// How many segments one end has sent and the other has not seen, from what each has counted. Whether one was sent again says
/// nothing: where a processor is slow to answer, the kernel does so needlessly.
fn missing(from: &BTreeMap<String, i64>, to: &BTreeMap<String, i64>) -> i64 {
    let of = |counters: &BTreeMap<String, i64>, name: &str| counters.get(name).copied().unwrap_or(0);
    of(from, "OutSegs") + of(from, "RetransSegs") - of(to, "InSegs")
}

/// Traffic of all kinds while `during` runs; what was counted.
fn under_traffic(world: &World, during: impl FnOnce()) -> Counts {
    let counts = Counts::default();
    let hosts = ["client", "server"];
    let before = hosts.map(|host| tcp_counters(world, host));
    let connections = connection_counters(world);
    let families = [true, false].map(|v4| world.addr("server", v4));
    let sinks = families.map(|addr| {
        let bind = || UdpSocket::bind((addr, COUNTED)).unwrap();
        world.sandbox.in_namespace(world.host("server"), bind).unwrap()
    });
    thread::scope(|scope| {
        let counts = &counts;
        let run = |host: &'static str, to: SocketAddr, work: fn(SocketAddr, &Counts)| {
            scope.spawn(move || world.sandbox.in_namespace(world.host(host), || work(to, counts)).unwrap());
        };
        for addr in families {
            let to = |port| SocketAddr::new(addr, port);
            run("client", to(53), allowed_udp);
            run("client", to(80), allowed_tcp);
            run("client", to(COUNTED), denied_udp);
            run("other", to(COUNTED), denied_udp);
            run("other", to(80), denied_tcp);
            scope.spawn(move || stream(world, addr, counts));
        }
        for sink in &sinks {
            scope.spawn(|| {
                sink.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                let mut idle = false;
                while !idle || !counts.stop.load(Ordering::Relaxed) {
                    idle = sink.recv(&mut [0; 16]).is_err();
                    if !idle {
                        Counts::more(&counts.leaked);
                    }
                }
            });
        }
        during();
        thread::sleep(Duration::from_millis(300));
        counts.stop.store(true, Ordering::Relaxed);
    });
    let count = || {
        let [client, server] = [0, 1].map(|i| growth(&before[i], &tcp_counters(world, hosts[i])));
        let lost = [missing(&client, &server), missing(&server, &client)];
        (client, server, lost)
    };
    // What is on its way yet is not lost. Where others reach the server too, it cannot be told whose segments it has seen.
    let mut counted = count();
    for _ in 0..100 {
        if counted.2 == [0; 2] || counts.leaked.load(Ordering::Relaxed) > 0 {
            break;
        }
        thread::sleep(PATIENCE / 100);
        counted = count();
    }
    let (client, server, lost) = counted;
    if lost != [0; 2] {
        let connections = growth(&connections, &connection_counters(world));
        let why = format!(
            "{lost:?} segments lost; client: {client:?}; server: {server:?}; connections: {connections:?}"
        );
        counts.why.set(why).unwrap();
    }
    let lost = lost.iter().map(|lost| lost.unsigned_abs()).sum::<u64>();
    counts.lost.fetch_add(lost, Ordering::Relaxed);
    counts
}

/// Who replaces rules.
enum By<'a> {
    /// `netpol-loader apply`, with these backends in turn.
    Loader(&'a [&'a str]),
    /// `netpol-loader run`.
    Daemon,
}

/// A daemon in a node; killed in the end.
struct Daemon {
    child: Child,
    dir: TempDir,
}

impl Daemon {
    fn start(world: &World, node: usize) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(loader());
        command.arg("run").arg("--socket").arg(dir.path().join("socket"));
        command.arg("--state").arg(dir.path().join("state")).args(["--backend", &backend().to_string()]);
        command.stdin(Stdio::null()).stderr(log);
        let child = world.sandbox.in_namespace(HostId::Node(node), || command.spawn()).unwrap().unwrap();
        let daemon = Daemon { child, dir };
        for _ in 0..1_000 {
            if UnixStream::connect(daemon.dir.path().join("socket")).is_ok() {
                return daemon;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{}", daemon.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn apply(&self, bundle: &Bundle) {
        let mut stream = UnixStream::connect(self.dir.path().join("socket")).unwrap();
        wire::send_bundle(&mut stream, bundle).unwrap();
        let answer = wire::receive::<FromLoader>(&mut stream).unwrap();
        assert!(
            matches!(&answer, Some(FromLoader::Done { report, .. }) if report.contains("applied: ")),
            "{answer:?}"
        );
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Rules that are replaced again and again.
fn replaced_under_traffic(egress: bool, prepare: &str, by: &By<'_>) {
    // In a cluster of its own: what ends between two pods afterwards would be counted too.
    let open = under_traffic(&World::new(&shop()), || {});
    assert!(open.leaked.into_inner() > 50, "without rules what is denied must arrive");
    let world = World::new(&shop());
    let bundles = versions(egress).map(|version| world.compile(&version));
    let applies = std::env::var("NETPOLC_APPLIES").ok().and_then(|n| n.parse().ok()).unwrap_or(APPLIES);
    // The node that decides.
    let node = usize::from(!egress);
    world.sh(node, prepare);
    let daemon = matches!(by, By::Daemon).then(|| Daemon::start(&world, node));
    let load = |round: usize| {
        let path = bundles[round % 2][node].path();
        match (by, &daemon) {
            (By::Loader(backends), _) => {
                let backend = backends[round % backends.len()];
                let said = world.load_with(node, path, &["--backend", backend]);
                assert!(said.contains("applied: "), "{said}");
            }
            (By::Daemon, daemon) => {
                daemon.iter().for_each(|daemon| daemon.apply(&Bundle::open(path).unwrap()));
                thread::sleep(Duration::from_millis(20));
            }
        }
    };
    load(0);
    let counts = under_traffic(&world, || (1..=applies as usize).for_each(load));
    if let Some(daemon) = &daemon {
        assert!(!daemon.log().contains("repaired"), "{}", daemon.log());
    }
    let [allowed, lost, denied, leaked] =
        [counts.allowed, counts.lost, counts.denied, counts.leaked].map(AtomicU64::into_inner);
    assert!(allowed > 500 && denied > 500, "{allowed} {denied}");
    let why = counts.why.get().map_or("", String::as_str);
    assert_eq!((lost, leaked), (0, 0), "lost of {allowed}, leaked of {denied} {why}");
}

#[test]
fn ingress_rules_replaced_under_traffic() {
    replaced_under_traffic(false, "", &By::Loader(&[&backend().to_string()]));
}

#[test]
fn rules_replaced_by_the_daemon_under_traffic() {
    replaced_under_traffic(false, "", &By::Daemon);
    replaced_under_traffic(true, "", &By::Daemon);
}

#[test]
fn egress_rules_replaced_under_traffic() {
    replaced_under_traffic(true, "", &By::Loader(&[&backend().to_string()]));
}

/// With this, the loader uses the legacy variant of iptables: so does the kubelet, as it seems.
const LEGACY: &str = "iptables-legacy -w -t mangle -N KUBE-IPTABLES-HINT";

/// The other variant of iptables, by the program that is about iptables.
#[test]
fn rules_of_iptables_legacy_replaced_under_traffic() {
    if backend() == Backend::Iptables {
        replaced_under_traffic(true, LEGACY, &By::Loader(&["iptables"]));
    }
}

/// From each backend to this one and back.
#[test]
fn backends_replaced_under_traffic() {
    let this = backend().to_string();
    let others = Backend::ALL.into_iter().filter(|other| *other != backend());
    for (i, other) in others.enumerate() {
        let prepare = if i == 0 { LEGACY } else { "" };
        replaced_under_traffic(i == 0, prepare, &By::Loader(&[&this, &other.to_string()]));
    }
}

/// Connections that were opened under other rules, which allow them too, go on.
#[test]
fn allowed_connections_outlive_their_rules() {
    let world = World::new(&shop());
    let versions = versions(false);
    world.apply(&versions[0]);
    let mut connections = Vec::new();
    for v4 in [true, false] {
        for (protocol, port) in [("tcp", 80), ("udp", 53)] {
            let probe = world.probe("client", world.addr("server", v4), protocol, port);
            connections.push(world.sandbox.connect(&probe, PATIENCE).unwrap());
        }
        let denied = world.probe("other", world.addr("server", v4), "tcp", 80);
        assert_eq!(
            world.sandbox.connect(&denied, Duration::from_millis(400)).unwrap_err(),
            Outcome::NotReached
        );
    }
    for round in 0..4 {
        for connection in &mut connections {
            assert_eq!(connection.exchange(PATIENCE), Outcome::Reached, "{connection} in round {round}");
        }
        world.apply(&versions[round % 2]);
    }
}
