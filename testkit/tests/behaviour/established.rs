//! Connections that are older than the rules: those that the rules deny end, the others do not notice.

use super::around;
use super::world::{NOTHING, PATIENCE, World, backend, cluster, ip, policy};
use netpolc_bundle::Backend;
use netpolc_sandbox::{Connection, Outcome};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A port where only these tests listen, so that both ends are in their hands.
const PORT: u16 = 5555;

/// How soon after the switch the last packet of a denied connection may arrive.
const SOON: Duration = Duration::from_secs(1);

/// How long is waited for a connection to come back. TCP has sent again several times by then.
const LATER: Duration = Duration::from_millis(2500);

/// For a datagram or segment that must not arrive.
const SHORT: Duration = Duration::from_millis(400);

fn shop() -> String {
    cluster(&[
        ("client", 0, "app: client", ""),
        ("other", 0, "app: other", ""),
        ("server", 1, "app: server", ""),
        ("neighbour", 1, "app: other", ""),
    ])
}

/// Who may open connections to the server, which may open none itself.
fn from(peers: &[&str]) -> Vec<String> {
    let peers: Vec<String> =
        peers.iter().map(|app| format!("{{podSelector: {{matchLabels: {{app: {app}}}}}}}")).collect();
    let spec = format!(
        "  policyTypes: [Ingress, Egress]\n  ingress: [{{from: [{}], ports: [{{port: {PORT}}}, {{port: 53, protocol: UDP}}]}}]\n",
        peers.join(", ")
    );
    vec![policy("server", "app: server", &spec)]
}

/// A TCP connection of which both ends send all the time.
struct Pair {
    name: String,
    ends: [TcpStream; 2],
}

impl Pair {
    fn open(world: &World, client: &str, v4: bool) -> Pair {
        let addr = world.addr("server", v4);
        let bind = || TcpListener::bind((addr, PORT)).unwrap();
        let listener = world.sandbox.in_namespace(world.host("server"), bind).unwrap();
        let connect = || TcpStream::connect_timeout(&(addr, PORT).into(), PATIENCE).unwrap();
        let near = world.sandbox.in_namespace(world.host(client), connect).unwrap();
        let far = listener.accept().unwrap().0;
        let ends = [near, far];
        for end in &ends {
            end.set_nodelay(true).unwrap();
            end.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            end.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        }
        Pair { name: format!("{client} {addr}"), ends }
    }
}

/// Sends numbered words until it is told to stop; how many.
fn send(mut stream: &TcpStream, stop: &AtomicBool) -> u64 {
    let mut sent = 0u64;
    while !stop.load(Ordering::Relaxed) {
        match stream.write(&sent.to_be_bytes()) {
            Ok(8) => sent += 1,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            other => panic!("{other:?}"),
        }
        thread::sleep(Duration::from_millis(2));
    }
    sent
}

/// Reads numbered words, of which none may be missing; how many, and when the last one came.
fn receive(mut stream: &TcpStream, stop: &AtomicBool) -> (u64, Instant) {
    let (mut got, mut last, mut word, mut filled) = (0u64, Instant::now(), [0; 8], 0);
    let mut idle = false;
    while !(idle && stop.load(Ordering::Relaxed)) {
        match stream.read(&mut word[filled..]) {
            Ok(0) => panic!("the stream ended"),
            Ok(length) => {
                (last, idle) = (Instant::now(), false);
                filled += length;
                if filled == word.len() {
                    assert_eq!(u64::from_be_bytes(word), got);
                    (got, filled) = (got + 1, 0);
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => idle = true,
            Err(e) => panic!("{e}"),
        }
    }
    (got, last)
}

/// Both ends of all pairs send while `during` runs and [`LATER`] after it. The answer has a row for each pair: whether
/// both ends still heard each other after [`SOON`].
fn alive(pairs: &[Pair], during: impl FnOnce()) -> Vec<(String, bool)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let running: Vec<_> = pairs
            .iter()
            .map(|pair| {
                let [near, far] = &pair.ends;
                [(near, far), (far, near)].map(|(from, to)| {
                    (scope.spawn(move || send(from, stop)), scope.spawn(move || receive(to, stop)))
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(100));
        during();
        let switched = Instant::now();
        thread::sleep(LATER);
        stop.store(true, Ordering::Relaxed);
        let rows = pairs.iter().zip(running).map(|(pair, directions)| {
            let alive = directions.map(|(sender, receiver)| {
                let (sent, (got, last)) = (sender.join().unwrap(), receiver.join().unwrap());
                let alive = last > switched + SOON;
                assert!(got > 0 && (!alive || got == sent), "{}: {got} of {sent} arrived", pair.name);
                alive
            });
            assert_eq!(alive[0], alive[1], "{}: one direction only", pair.name);
            (pair.name.clone(), alive[0])
        });
        rows.collect()
    })
}

/// Connections of both families under rules that allow them, and a bundle that allows only the client's.
fn opened() -> (World, Vec<Pair>, tempfile::TempDir) {
    let world = World::new(&shop());
    let [both, client] =
        [&["client", "other"][..], &["client"]].map(|peers| world.compile(&from(peers)).remove(1));
    world.load(1, both.path());
    let clients = [("client", true), ("other", true), ("client", false), ("other", false)];
    let pairs = clients.map(|(client, v4)| Pair::open(&world, client, v4));
    (world, pairs.into(), client)
}

/// Whether the client's connections and the others' are alive.
fn check(rows: &[(String, bool)], client: bool, other: bool, said: &str) {
    let alive: Vec<bool> = rows.iter().map(|(_, alive)| *alive).collect();
    assert_eq!(alive, [client, other, client, other], "{rows:?} {said}");
}

/// Whether the loader says that it cut so many connections.
fn says_cut(said: &str, connections: u64) -> bool {
    said.contains(&format!(", cut {connections} of "))
}

/// Both ends of the denied ones go on sending, and cannot bring them back.
#[test]
fn denied_connections_end() {
    let (world, pairs, bundle) = opened();
    let mut said = String::new();
    let rows = alive(&pairs, || said = world.load(1, bundle.path()));
    check(&rows, true, false, &said);
    assert!(said.starts_with("applied: ") && says_cut(&said, 2), "{said}");
}

/// Until the same bundle is applied without the option.
#[test]
fn kept_connections_live_on() {
    let (world, pairs, bundle) = opened();
    let mut said = String::new();
    let rows = alive(&pairs, || said = world.load_with(1, bundle.path(), &["--established", "keep"]));
    check(&rows, true, true, &said);
    assert!(said.starts_with("applied: ") && !said.contains("cut"), "{said}");
    let rows = alive(&pairs, || said = world.load(1, bundle.path()));
    check(&rows, true, false, &said);
    // With eBPF it is another program.
    let again = if backend() == Backend::Ebpf { "applied: " } else { "unchanged: " };
    assert!(said.starts_with(again) && says_cut(&said, 2), "{said}");
}

fn open(world: &World, client: &str, to: IpAddr, protocol: &str, port: u16) -> Connection {
    let mut connection = world.sandbox.connect(&world.probe(client, to, protocol, port), PATIENCE).unwrap();
    assert_eq!(connection.exchange(PATIENCE), Outcome::Reached, "{client} {to} {protocol}");
    connection
}

#[test]
fn denied_datagrams_end() {
    let world = World::new(&shop());
    let bundles = [&["client", "other"][..], &["client"]].map(|peers| world.compile(&from(peers)));
    world.load(1, bundles[0][1].path());
    let mut flows = Vec::new();
    for v4 in [true, false] {
        let to = world.addr("server", v4);
        flows.push(["client", "other"].map(|client| open(&world, client, to, "udp", 53)));
    }
    let mut check = |when: &str, wanted: Outcome| {
        for [allowed, denied] in &mut flows {
            assert_eq!(allowed.exchange(PATIENCE), Outcome::Reached, "{when}: {allowed}");
            let patience = if wanted == Outcome::Reached { PATIENCE } else { SHORT };
            assert_eq!(denied.exchange(patience), wanted, "{when}: {denied}");
        }
    };
    check("before", Outcome::Reached);
    let said = world.load_with(1, bundles[1][1].path(), &["--established", "keep"]);
    check(&said, Outcome::Reached);
    let said = world.load(1, bundles[1][1].path());
    assert!(says_cut(&said, 2), "{said}");
    check(&said, Outcome::NotReached);
}

/// What was opened through a Service is judged on the pod's address and port.
#[test]
fn connections_through_a_service_are_judged_behind_it() {
    let world = World::new(&around::pods());
    around::services(&world, 0);
    let to = |rule: &str| {
        policy("client", "app: client", &format!("  policyTypes: [Egress]\n  egress: [{{{rule}}}]\n"))
    };
    let pods = to("to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 8080}]");
    let service = to(
        "to: [{ipBlock: {cidr: 10.96.0.0/16}}, {ipBlock: {cidr: \"fd96::/16\"}}, {podSelector: {}}], ports: [{port: 80}]",
    );
    let services = ["10.96.0.1", "fd96::1", "10.96.0.3", "fd96::3"];
    let mut connections = services.map(|addr| open(&world, "client", ip(addr), "tcp", 80));
    let said = world.load(0, world.compile(&[pods])[0].path());
    assert!(says_cut(&said, 0), "{said}");
    for connection in &mut connections {
        assert_eq!(connection.exchange(PATIENCE), Outcome::Reached, "{connection}: {said}");
    }
    let said = world.load(0, world.compile(&[service])[0].path());
    assert!(says_cut(&said, 4), "{said}");
    for connection in &mut connections {
        assert_eq!(connection.exchange(SHORT), Outcome::NotReached, "{connection}: {said}");
    }
}

/// Probes of the own node, and what a pod sends to itself through a Service, are no policy's business.
#[test]
fn the_own_node_and_the_pod_itself_keep_their_connections() {
    let world = World::new(&around::pods());
    around::services(&world, 0);
    let mut connections = Vec::new();
    for v4 in [true, false] {
        let [server, node] = ["server", "alpha"].map(|host| world.addr(host, v4));
        connections.push(open(&world, "alpha", server, "tcp", 80));
        connections.push(open(&world, "server", node, "tcp", 80));
        connections.push(open(&world, "server", ip(if v4 { "10.96.0.1" } else { "fd96::1" }), "tcp", 80));
        connections.push(open(&world, "alpha", server, "udp", 53));
    }
    let mut denied = open(&world, "client", world.addr("server", true), "tcp", 80);
    let said = world.load(0, world.compile(&[policy("deny", "app: server", NOTHING)])[0].path());
    assert!(says_cut(&said, 1), "{said}");
    assert_eq!(denied.exchange(SHORT), Outcome::NotReached);
    for connection in &mut connections {
        assert_eq!(connection.exchange(PATIENCE), Outcome::Reached, "{connection}: {said}");
    }
}
