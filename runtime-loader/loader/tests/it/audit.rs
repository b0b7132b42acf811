//! Audit mode with real packets, under each backend: what is denied passes and counts, and without `--audit` it is
//! dropped as soon as the daemon answers.

use crate::cluster;
use crate::common::{Dir, Netns};
use crate::daemon::{Daemon, PATIENCE, dir, wait};
use crate::iptables::{self, Variant};
use crate::lan::{inside, meet, meets};
use netpolc_bundle::wire::{self, FromLoader, ToLoader};
use netpolc_bundle::{Artifact, Backend, Bundle};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// How long is waited for what must not come.
pub(crate) const SHORT: Duration = Duration::from_millis(700);

/// Node alpha with its three pods.
pub(crate) struct World {
    pub(crate) node: Netns,
    pub(crate) client: Netns,
    pub(crate) server: Netns,
    pub(crate) open: Netns,
    pub(crate) dir: Dir,
}

/// A pod with the addresses of this number, as the node's CNI plugin makes it.
pub(crate) fn pod(node: &Netns, n: u8) -> Netns {
    let pod = Netns::new();
    let name = &pod.0;
    node.sh(&format!("ip link add v{n} type veth peer name eth0 netns {name} && ip link set v{n} up"));
    pod.sh(&format!(
        "ip link set lo up && ip addr add 10.1.0.{n}/32 dev eth0 && ip addr add fd00:1::{n}/128 dev eth0 nodad \
         && ip link set eth0 up && ip route add 169.254.1.1 dev eth0 && \
         ip route add default via 169.254.1.1 && ip -6 route add default via fe80::1 dev eth0"
    ));
    node.sh(&format!(
        "ip addr add 169.254.1.1/32 dev v{n} && ip addr add fe80::1/64 dev v{n} nodad && \
         ip route add 10.1.0.{n} dev v{n} && ip -6 route add fd00:1::{n} dev v{n}"
    ));
    pod
}

impl World {
    pub(crate) fn new(node: Netns) -> World {
        node.sh("ip link set lo up; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        let (client, server, open) = (pod(&node, 1), pod(&node, 2), pod(&node, 3));
        // An address that is nobody's, to send from.
        open.sh("ip addr add 10.9.9.9/32 dev lo");
        World { node, client, server, open, dir: dir() }
    }

    /// Whether what no policy allows comes through, of each family; what is allowed must.
    fn denied_passes(&self) -> [bool; 2] {
        [("10.1.0.1", "10.1.0.2"), ("fd00:1::1", "fd00:1::2")].map(|(client, server)| {
            // The first also waits until the neighbours know each other.
            meet(&self.server, &self.client, client);
            meets(&self.open, &self.server, server, SHORT).is_some()
        })
    }

    /// A connection that no policy allows, from both ends.
    fn connection(&self) -> [TcpStream; 2] {
        connection(&self.open, &self.server, "10.1.0.2")
    }

    /// Whether the server reaches itself by way of a Service.
    fn server_reaches_itself(&self) -> bool {
        self.node.nft(
            "table ip service {\n\
             \tchain to { type nat hook prerouting priority -100; ip daddr 10.96.0.9 dnat to 10.1.0.2; }\n\
             \tchain from { type nat hook postrouting priority 100; ip saddr 10.1.0.2 ip daddr 10.1.0.2 masquerade; }\n\
             }\n",
        );
        let listener = inside(&self.server, || TcpListener::bind("10.1.0.2:0")).unwrap();
        let service = SocketAddr::from(([10, 96, 0, 9], listener.local_addr().unwrap().port()));
        inside(&self.server, || TcpStream::connect_timeout(&service, SHORT)).is_ok()
    }

    /// Whether a packet with a false source comes through.
    fn spoofed_passes(&self) -> bool {
        let to = inside(&self.client, || UdpSocket::bind("0.0.0.0:0")).unwrap();
        to.set_read_timeout(Some(SHORT)).unwrap();
        let port = to.local_addr().unwrap().port();
        let from = inside(&self.open, || UdpSocket::bind("10.9.9.9:0")).unwrap();
        from.send_to(b"x", ("10.1.0.1", port)).unwrap();
        to.recv(&mut [0; 8]).is_ok()
    }
}

impl Drop for World {
    /// Programs that stay pinned would keep the namespace alive.
    fn drop(&mut self) {
        let _ = self.node.loader().arg("remove").output();
    }
}

/// A connection from both ends; it must come about.
pub(crate) fn connection(from: &Netns, to: &Netns, addr: &str) -> [TcpStream; 2] {
    let listener = inside(to, || TcpListener::bind((addr, 0))).unwrap();
    let addr = listener.local_addr().unwrap();
    let client = inside(from, || TcpStream::connect_timeout(&addr, PATIENCE)).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(SHORT)).unwrap();
    [client, server]
}

/// Whether what one end of a connection says comes to the other.
pub(crate) fn lives([client, server]: &mut [TcpStream; 2]) -> bool {
    client.write_all(b"x").is_ok() && server.read_exact(&mut [0]).is_ok()
}

pub(crate) fn status(daemon: &Daemon) -> Value {
    match daemon.ask(&ToLoader::Status) {
        FromLoader::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

/// The counter of one kind of drops.
fn counted(status: &Value, by: &str) -> u64 {
    status["dataplanes"][0]["dropped_packets"][by].as_u64().unwrap_or(0)
}

/// Whose packets were denied, where the rules tell.
fn denied(status: &Value) -> Vec<(&str, &str, u64)> {
    fn whose(denied: &Value) -> (&str, &str, u64) {
        let [direction, policies] = ["direction", "policies"].map(|field| denied[field].as_str().unwrap());
        (direction, policies, denied["packets"].as_u64().unwrap())
    }
    status["dataplanes"][0]["denied"].as_array().unwrap().iter().map(whose).collect()
}

pub(crate) fn applied(daemon: &Daemon, bundle: &Bundle) {
    let mut stream = daemon.connect();
    wire::send_bundle(&mut stream, bundle).unwrap();
    let answer: FromLoader = wire::receive(&mut stream).unwrap().unwrap();
    assert!(matches!(&answer, FromLoader::Done { .. }), "{answer:?}\n{}", daemon.log());
}

/// `spoofed` is what counts packets with a false source, where something does.
fn check(node: Netns, flag: &str, bundle: &Bundle, backend: Backend, spoofed: Option<&str>) {
    let world = World::new(node);
    let versions: BTreeSet<String> = bundle.manifest.artifacts.values().map(ToString::to_string).collect();
    let start = |world: &World, more: &[&str]| {
        let daemon = Daemon::start(&world.node, &world.dir, &[&[flag], more].concat());
        let status = status(&daemon);
        (daemon, status)
    };
    // Rules of iptables without sets have one chain that drops.
    let tells = bundle.manifest.artifacts.len() > 1;
    let enforces = |status: &Value| versions.contains(status["version"].as_str().unwrap_or_default());

    let (mut daemon, _) = start(&world, &["--audit"]);
    applied(&daemon, bundle);
    let before = status(&daemon);
    assert_eq!((&before["in_force"], &before["daemon"]["audit"]), (&true.into(), &true.into()), "{before}");
    assert_eq!(before["backend"], backend.to_string());
    assert!(!enforces(&before), "{before}");
    assert_eq!(world.denied_passes(), [true, true], "audit");
    let after = status(&daemon);
    // One packet of each family: what follows belongs to a connection.
    assert_eq!(counted(&after, "deny") - counted(&before, "deny"), 2, "{after}");
    let of_server = |packets| if tells { vec![("ingress", "shop/server", packets)] } else { Vec::new() };
    assert_eq!((denied(&before), denied(&after)), (of_server(0), of_server(2)), "{after}");
    let socket = daemon.socket();
    let said = world.node.load(&["status", "--socket", socket.to_str().unwrap()], 0);
    assert!(
        said.contains(" bundles applied, 0 failures, 0 repairs, audit mode: nothing is dropped\n"),
        "{said}"
    );
    assert!(world.spoofed_passes(), "audit");
    if let Some(by) = spoofed {
        assert_eq!(counted(&status(&daemon), by) - counted(&before, by), 1, "{after}");
    }
    let mut connection = world.connection();
    // What another hand takes away comes back as it was.
    world.node.load(&["remove"], 0);
    wait("repair", || status(&daemon)["daemon"]["repairs"].as_u64() >= Some(1));
    let repaired = status(&daemon);
    assert_eq!((&repaired["in_force"], &repaired["version"]), (&true.into(), &before["version"]));
    assert_eq!(world.denied_passes(), [true, true], "audit, repaired");
    assert!(lives(&mut connection), "audit, repaired");

    wait("a bundle on disk", || world.dir.file("state/bundle").exists());
    daemon.signal("TERM");
    let (mut daemon, first) = start(&world, &[]);
    assert!(first["in_force"] == true && enforces(&first), "{first}\n{}", daemon.log());
    assert_eq!(first["daemon"]["audit"], false);
    assert_eq!(world.denied_passes(), [false, false], "enforced");
    assert!(!world.spoofed_passes() && !lives(&mut connection), "enforced");
    let enforced = status(&daemon);
    let packets = counted(&enforced, "deny");
    assert!(packets >= 2);
    assert_eq!(denied(&enforced), of_server(packets), "{enforced}");
    let socket = daemon.socket();
    let said = world.node.load(&["status", "--socket", socket.to_str().unwrap()], 0);
    let whose = format!("{backend}: {packets} packets ingress not allowed by shop/server\n");
    assert_eq!(said.contains(&whose), tells, "{said}");
    assert!(said.contains("\ndaemon: in force since 2") && !said.contains("audit"), "{said}");
    // It goes the way of what is denied, and is not.
    assert!(world.server_reaches_itself());
    assert_eq!(counted(&status(&daemon), "deny"), packets);

    daemon.signal("TERM");
    let (_daemon, first) = start(&world, &["--audit"]);
    assert_eq!((&first["in_force"], &first["version"]), (&true.into(), &before["version"]), "{first}");
    assert_eq!(world.denied_passes(), [true, true], "audit again");
}

fn everything() -> Bundle {
    cluster::compiled_for(&cluster::a(), &Backend::ALL)
}

#[test]
fn under_nftables() {
    check(Netns::new(), "--backend=nftables", &everything(), Backend::Nftables, Some("spoof"));
}

#[test]
fn under_ebpf() {
    check(Netns::new(), "--backend=ebpf", &everything(), Backend::Ebpf, None);
}

#[test]
fn under_what_is_best() {
    check(Netns::new(), "--backend=auto", &everything(), Backend::Ebpf, None);
}

#[test]
fn under_iptables_with_sets() {
    for variant in Variant::ALL {
        let node = iptables::netns(variant);
        check(node, "--backend=iptables", &everything(), Backend::Iptables, Some("podif"));
    }
}

#[test]
fn under_iptables_without_sets() {
    let mut bundle = everything();
    for artifact in [Artifact::Iptables, Artifact::Nftables, Artifact::Ebpf] {
        bundle.manifest.artifacts.remove(&artifact);
        for name in artifact.files() {
            bundle.files.remove(*name);
            bundle.manifest.files.remove(*name);
        }
    }
    check(Netns::new(), "--backend=iptables", &bundle, Backend::Iptables, Some("podif"));
}

#[test]
fn a_bundle_without_what_is_wanted_is_refused_by_name() {
    let (netns, dir) = (Netns::new(), dir());
    let daemon = Daemon::start(&netns, &dir, &["--audit", "--backend=ebpf"]);
    let answer = daemon.apply(&cluster::bundle(&cluster::a()));
    let FromLoader::Failed { message } = &answer else { panic!("{answer:?}") };
    assert_eq!(message, "the bundle is refused: it has no artifacts for ebpf");
}
