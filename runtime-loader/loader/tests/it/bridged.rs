//! Pods on one bridge, which reach each other without the node's routes: the kernel must be told to pass their packets to the
//! rules. Under each backend, with real packets.

use crate::audit::SHORT;
use crate::cluster;
use crate::common::{Dir, Netns};
use crate::daemon::{Daemon, dir, wait};
use crate::lan::{meet, meets};
use netpolc_bundle::{Backend, store};

/// Client, server and open, with numbers 1 to 3.
struct World {
    node: Netns,
    pods: [Netns; 3],
    dir: Dir,
}

/// What the kernel passes to the rules, for each family.
const KEYS: [&str; 2] = ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"];

impl World {
    fn new() -> World {
        let node = Netns::new();
        node.sh("ip link set lo up && sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 && \
             ip link add cni0 type bridge && ip link set cni0 up && ip addr add 10.1.0.254/24 dev cni0 && \
             ip addr add fd00:1::fe/64 dev cni0 nodad");
        let pods = [1, 2, 3].map(|n| {
            let pod = Netns::new();
            let name = &pod.0;
            node.sh(&format!(
                "ip link add b{n} type veth peer name eth0 netns {name} && ip link set b{n} master cni0 up"
            ));
            pod.sh(&format!(
                "ip link set lo up && ip link set eth0 up && ip addr add 10.1.0.{n}/24 dev eth0 && \
                 ip addr add fd00:1::{n}/64 dev eth0 nodad"
            ));
            pod
        });
        let world = World { node, pods, dir: dir() };
        world.pass(true);
        world
    }

    /// Tells the kernel whether to pass what crosses bridges to the rules.
    fn pass(&self, whether: bool) {
        KEYS.iter().for_each(|key| drop(self.node.sh(&format!("sysctl -w {key}={}", u8::from(whether)))));
    }

    /// Whether the pod with this place comes through to the server, by each family, after the neighbours have been forgotten.
    fn reaches(&self, from: usize) -> [bool; 2] {
        self.pods.iter().for_each(|pod| drop(pod.sh("ip neigh flush all; ip -6 neigh flush all")));
        ["10.1.0.2", "fd00:1::2"].map(|addr| meets(&self.pods[from], &self.pods[1], addr, SHORT).is_some())
    }

    /// Whether the client, whom the policy lets through, comes to somebody by their addresses of the link, and whether it knows where
    /// that is afterwards.
    fn reaches_by_link(&self, to: &Netns, interface: &str) -> (bool, bool) {
        let client = &self.pods[0];
        let shown = to.sh(&format!("ip -6 -o addr show dev {interface} scope link"));
        let addr = shown.split_whitespace().skip_while(|word| *word != "inet6").nth(1).unwrap();
        let addr = addr.split('/').next().unwrap();
        let index = client.sh("ip -o link show eth0");
        client.sh("ip -6 neigh flush all");
        let found = meets(client, to, &format!("{addr}%{}", index.split(':').next().unwrap()), SHORT);
        (found.is_some(), client.sh(&format!("ip -6 neigh show {addr} dev eth0")).contains("lladdr"))
    }

    fn status(&self, code: i32) -> String {
        let socket = self.dir.file("none");
        self.node.load(&["status", "--socket", socket.to_str().unwrap()], code)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.node.loader().arg("remove").output();
    }
}

fn check(backend: Backend) {
    let world = World::new();
    for addr in ["10.1.0.2", "fd00:1::2"] {
        meet(&world.pods[2], &world.pods[1], addr);
    }
    wait("addresses of the link can be used", || {
        world.reaches_by_link(&world.pods[1], "eth0").0 && world.reaches_by_link(&world.node, "cni0").0
    });
    let bundle: Dir = dir();
    let policy =
        cluster::server("[{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{protocol: TCP}]}]");
    store::write(&bundle.0, &cluster::compiled_for(&policy, &[backend])).unwrap();
    let apply = || world.node.load(&["apply", "--backend", &backend.to_string(), bundle.path()], 0);
    let said = apply();
    assert!(!said.contains("no rule sees"), "{said}");
    // The neighbours find each other anew, by packets that cross the rules.
    assert_eq!([world.reaches(0), world.reaches(2)], [[true; 2], [false; 2]], "{}", world.status(0));
    assert!(!world.status(0).contains("bypassed"));
    // Which pod has such an address nobody knows, so they are for neither; but who is where they find out.
    assert_eq!(world.reaches_by_link(&world.pods[1], "eth0"), (false, true));
    // The node is no pod.
    assert_eq!(world.reaches_by_link(&world.node, "cni0"), (true, true));

    world.pass(false);
    assert_eq!([world.reaches(0), world.reaches(2)], [[true; 2]; 2], "nothing sees them");
    assert!(world.reaches_by_link(&world.pods[1], "eth0").0);
    let said = world.status(1);
    let wanted = format!(
        "bypassed: no rule sees packets (ip, ip6) between pods behind the bridge cni0; sysctl {}=1",
        KEYS[0]
    );
    assert!(said.starts_with("in force: ") && said.contains(&wanted), "{said}");
    let said = apply();
    assert!(said.contains("note: no rule sees packets"), "{said}");

    world.node.sh(&format!("sysctl -w {}=1", KEYS[0]));
    assert_eq!(world.reaches(2), [false, true]);
    let said = world.status(1);
    assert!(said.contains("no rule sees packets (ip6)") && !said.contains(KEYS[0]), "{said}");
    // One bridge can be told, too.
    world.node.sh("echo 1 > /sys/class/net/cni0/bridge/nf_call_ip6tables");
    assert_eq!(world.reaches(2), [false; 2]);
    world.status(0);
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

/// The daemon says so when it begins, and when it is over.
#[test]
fn the_daemon_says_what_it_cannot_see() {
    let world = World::new();
    world.pass(false);
    let daemon = Daemon::start(&world.node, &world.dir, &["--backend=nftables"]);
    let policy = cluster::server("[{from: [{podSelector: {matchLabels: {app: client}}}]}]");
    crate::audit::applied(&daemon, &cluster::compiled_for(&policy, &[Backend::Nftables]));
    wait("it says so", || daemon.log().contains("event=fault part=bypassed"));
    let status = crate::audit::status(&daemon);
    assert_eq!(
        (&status["in_force"], status["bypassed"].as_array().map(Vec::len)),
        (&true.into(), Some(1)),
        "{status}"
    );
    world.pass(true);
    wait("it is over", || daemon.log().contains("event=mended part=bypassed"));
}
