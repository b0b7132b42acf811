//! Whose packets may have which source, where pods share a bridge, and behind an interface that nobody knows; under each
//! backend, with real packets.

use crate::audit::{SHORT, pod};
use crate::cluster;
use crate::common::{Dir, Netns};
use crate::daemon::{dir, wait};
use crate::lan::inside;
use netpolc_bundle::{Backend, store};
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// The addresses of the pods are 1 to 6: client and server are behind the bridge, open has an interface of its own, far is
/// on another node, the stranger is in no bundle. 9 is nobody, in the network of the bridge.
fn addresses(n: u8) -> [IpAddr; 2] {
    [format!("10.1.0.{n}"), format!("fd00:1::{n}")].map(|text| text.parse().unwrap())
}

struct World {
    node: Netns,
    client: Netns,
    server: Netns,
    open: Netns,
    stranger: Netns,
}

/// A pod behind the bridge, which sends everything to the node.
fn bridged(node: &Netns, n: u8) -> Netns {
    let pod = Netns::new();
    node.sh(&format!(
        "ip link add b{n} type veth peer name eth0 netns {} && ip link set b{n} master cni0 up",
        pod.0
    ));
    pod.sh(&format!(
        "ip link set lo up && ip addr add 10.1.0.{n}/32 dev eth0 && ip addr add fd00:1::{n}/128 dev eth0 nodad \
         && ip link set eth0 up && ip route add 10.1.0.254 dev eth0 && ip route add default via 10.1.0.254 && \
         ip -6 route add fd00:1::fe dev eth0 && ip -6 route add default via fd00:1::fe"
    ));
    pod
}

impl World {
    fn new() -> World {
        let node = Netns::new();
        node.sh("ip link set lo up && sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
             net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0 && \
             ip link add cni0 type bridge && ip link set cni0 up && ip addr add 10.1.0.254/24 dev cni0 && \
             ip addr add fd00:1::fe/64 dev cni0 nodad && \
             ip link add up0 type veth peer name up1 && ip link set up0 up && ip link set up1 up && \
             ip addr add 192.168.9.1/24 dev up0 && ip addr add fd99::1/64 dev up0 nodad && \
             ip route add 10.1.0.4 via 192.168.9.2 && ip -6 route add fd00:1::4 via fd99::2");
        let [client, server] = [1, 2].map(|n| bridged(&node, n));
        let [open, stranger] = [3, 6].map(|n| pod(&node, n));
        World { node, client, server, open, stranger }
    }

    /// Whether a datagram with this source comes from one pod to the other, by each family.
    fn passes(&self, (from, own): (&Netns, u8), source: u8, (to, n): (&Netns, u8)) -> [bool; 2] {
        let lies = |verb: &str| {
            if source != own {
                from.sh(&format!("ip addr {verb} 10.1.0.{source}/32 dev lo"));
                from.sh(&format!("ip addr {verb} fd00:1::{source}/128 dev lo nodad"));
            }
        };
        lies("add");
        let passed = [0, 1].map(|family| {
            let [source, to_addr] = [source, n].map(|n| addresses(n)[family]);
            let socket = inside(to, || UdpSocket::bind(SocketAddr::new(to_addr, 0))).unwrap();
            socket.set_read_timeout(Some(SHORT)).unwrap();
            let sender = inside(from, || UdpSocket::bind(SocketAddr::new(source, 0))).unwrap();
            sender.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            let seen = socket.recv_from(&mut [0; 8]).ok();
            seen.inspect(|(_, by)| assert_eq!(by.ip(), source)).is_some()
        });
        lies("del");
        passed
    }

    /// What passes, row by row.
    fn seen(&self) -> Vec<(&'static str, bool)> {
        let [client, server] = [(&self.client, 1), (&self.server, 2)];
        let [open, stranger] = [(&self.open, 3), (&self.stranger, 6)];
        let rows = [
            ("client to open", client, 1, open),
            ("client to server", client, 1, server),
            ("client as server, behind the same bridge", client, 2, open),
            ("client as open, behind another interface", client, 3, server),
            ("client as a pod of another node", client, 4, open),
            ("client as nobody", client, 9, open),
            ("stranger to open", stranger, 6, open),
            ("stranger to server", stranger, 6, server),
            ("stranger as client to server", stranger, 1, server),
            ("open to server", open, 3, server),
        ];
        rows.map(|(name, from, source, to)| {
            let [v4, v6] = self.passes(from, source, to);
            assert_eq!(v4, v6, "{name}");
            (name, v4)
        })
        .into()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.node.loader().arg("remove").output();
    }
}

fn check(backend: Backend) {
    let world = World::new();
    // Neighbours must find each other first.
    for (from, to) in [((&world.client, 1), (&world.open, 3)), ((&world.stranger, 6), (&world.server, 2))] {
        wait("a first packet", || world.passes(from, from.1, to) == [true; 2]);
    }
    let open = world.seen();
    assert!(open.iter().all(|(_, passes)| *passes), "without rules: {open:?}");

    let policy = cluster::server("[{from: [{podSelector: {matchLabels: {app: client}}}]}]");
    let bundle: Dir = dir();
    store::write(&bundle.0, &cluster::compiled_for(&policy, &[backend])).unwrap();
    world.node.load(&["apply", "--backend", &backend.to_string(), bundle.path()], 0);
    // The routes know no better.
    let nobody = backend == Backend::Iptables;
    let wanted = [true, true, true, false, false, nobody, true, false, false, false];
    let seen = world.seen();
    let wanted: Vec<_> = open.iter().zip(wanted).map(|((name, _), passes)| (*name, passes)).collect();
    assert_eq!(seen, wanted);
}

#[test]
fn under_nftables() {
    check(Backend::Nftables);
}

#[test]
fn under_ebpf() {
    check(Backend::Ebpf);
}

#[test]
fn under_iptables() {
    check(Backend::Iptables);
}
