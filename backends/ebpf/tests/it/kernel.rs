//! The artifact in a real kernel: real packets against what the executed instructions predict. Needs root.

use super::bpf;
use super::common::{Node, compiled, nodes, shop};
use netpolc_ebpf::btf::Btf;
use netpolc_ebpf::contents::Established;
use netpolc_ebpf::decode::decode;
use netpolc_ebpf::layout::Map;
use netpolc_ir::unit::{Flow, Verdict};
use netpolc_sandbox::{
    Content, DEFAULT_TIMEOUT, HostId, NodeSpec, Outcome, OutsideSpec, PodSpec, Probe, Protocol, RawPacket,
    Sandbox, Spec, find_program, tcp_flags,
};
use netpolc_testkit::pipeline::Compiled;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

const LISTEN: [(Protocol, u16); 9] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 81),
    (Protocol::Tcp, 7999),
    (Protocol::Tcp, 8000),
    (Protocol::Tcp, 8010),
    (Protocol::Tcp, 8011),
    (Protocol::Tcp, 8080),
    (Protocol::Udp, 53),
    (Protocol::Sctp, 7777),
];

const OUTSIDE: [&str; 4] = ["203.0.113.7", "2001:db8::7", "203.0.113.8", "2001:db8::8"];

/// A network like a cluster.
struct World {
    sandbox: Sandbox,
    pods: Vec<(String, Vec<IpAddr>)>,
}

/// Programs in force; dropping them takes them out of the kernel.
struct Loaded {
    _links: Vec<OwnedFd>,
    /// The maps of each node.
    maps: Vec<BTreeMap<Map, OwnedFd>>,
}

fn world(compiled: &Compiled) -> World {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root");
    let mut spec = Spec::default();
    for (name, node) in &compiled.model.nodes {
        spec.nodes.push(NodeSpec { name: name.clone(), addrs: node.addrs.clone(), listen: LISTEN.to_vec() });
    }
    let mut pods = Vec::new();
    for pod in &compiled.model.pods {
        let node = spec.nodes.iter().position(|n| n.name == pod.node).unwrap();
        pods.push((pod.name.clone(), pod.addrs.clone()));
        spec.pods.push(PodSpec {
            name: pod.name.clone(),
            node,
            addrs: pod.addrs.clone(),
            listen: LISTEN.to_vec(),
        });
    }
    for addr in OUTSIDE {
        spec.outside.push(OutsideSpec { addr: addr.parse().unwrap(), listen: LISTEN.to_vec() });
    }
    World { sandbox: Sandbox::build(&spec).unwrap(), pods }
}

impl World {
    fn sh(&self, node: usize, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let output = self.sandbox.run_in_node(node, command, b"").unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Switches conntrack on: the rule is never reached.
    fn track(&self) {
        for node in 0..self.sandbox.spec().nodes.len() {
            let mut nft = Command::new(find_program("nft", "nftables").unwrap());
            nft.args(["-f", "-"]);
            let script = b"table inet netpolc_conntrack {\n chain inert {\n  ct state new\n }\n}\n";
            assert!(self.sandbox.run_in_node(node, nft, script).unwrap().status.success());
        }
    }

    /// Which interface of a node leads to which of its pods.
    fn interfaces(&self, node: usize, contents: &netpolc_ebpf::contents::Contents) -> BTreeMap<u32, u32> {
        let mut found = BTreeMap::new();
        for (addr, pod) in contents.pods.iter().filter(|(_, p)| p.pod != 0) {
            let route = self.sh(node, &format!("ip -o route get {addr}"));
            let device = route.split(" dev ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
            let link = self.sh(node, &format!("ip -o link show dev {device}"));
            found.insert(link.split(':').next().unwrap().trim().parse().unwrap(), pod.pod);
        }
        found
    }

    /// Puts the artifacts of all nodes into force at a priority.
    fn load(&self, artifacts: &[Node], priority: i32) -> Loaded {
        let kernel = Btf::parse(&std::fs::read("/sys/kernel/btf/vmlinux").unwrap()).unwrap();
        let (mut links, mut all) = (Vec::new(), Vec::new());
        for (i, node) in artifacts.iter().enumerate() {
            let artifact = decode(&node.object, &node.contents.text()).unwrap();
            let maps: BTreeMap<Map, OwnedFd> =
                artifact.shapes.iter().map(|s| (s.map, bpf::create_map(s).unwrap())).collect();
            for entry in artifact.contents.entries() {
                bpf::update(&maps[&entry.map], &entry.key, &entry.value).unwrap();
            }
            for (index, pod) in self.interfaces(i, &artifact.contents) {
                bpf::update(&maps[&Map::Interfaces], &index.to_le_bytes(), &pod.to_le_bytes()).unwrap();
            }
            let code = artifact.program.link_for_kernel(&kernel, |map| maps[&map].as_raw_fd()).unwrap();
            let program = bpf::load(&code, &artifact.information).unwrap_or_else(|log| panic!("{log}"));
            for family in [2, 10] {
                let attach = || bpf::attach(&program, family, priority);
                links.push(self.sandbox.in_namespace(HostId::Node(i), attach).unwrap().unwrap());
            }
            all.push(maps);
        }
        Loaded { _links: links, maps: all }
    }

    fn addr(&self, name: &str, v4: bool) -> IpAddr {
        let pod = self.pods.iter().find(|p| p.0 == name).unwrap();
        *pod.1.iter().find(|a| a.is_ipv4() == v4).unwrap()
    }

    fn host(&self, name: &str) -> HostId {
        HostId::Pod(self.pods.iter().position(|p| p.0 == name).unwrap())
    }
}

/// Every pair of pods and outside hosts, on every port that somebody listens on.
fn probes(world: &World) -> Vec<Probe> {
    let pods = (0..world.pods.len()).flat_map(|i| world.pods[i].1.iter().map(move |a| (HostId::Pod(i), *a)));
    let outside = OUTSIDE.iter().enumerate().map(|(i, a)| (HostId::Outside(i), a.parse().unwrap()));
    let ends: Vec<(HostId, IpAddr)> = pods.chain(outside).collect();
    let services: Vec<(Protocol, u16)> = LISTEN.into_iter().chain([(Protocol::Icmp, 0)]).collect();
    let mut probes = Vec::new();
    for &(from, own) in &ends {
        for &(host, to) in &ends {
            let inside = matches!(from, HostId::Pod(_)) || matches!(host, HostId::Pod(_));
            if from != host && own.is_ipv4() == to.is_ipv4() && inside {
                let probe = |(protocol, port)| Probe { from, from_addr: Some(own), to, protocol, port };
                probes.extend(services.iter().copied().map(probe));
            }
        }
    }
    probes
}

fn flow(probe: &Probe) -> Flow {
    use netpolc_ir::ports::Protocol as P;
    let protocol = match (probe.protocol, probe.to.is_ipv4()) {
        (Protocol::Tcp, _) => P::TCP,
        (Protocol::Udp, _) => P::UDP,
        (Protocol::Sctp, _) => P::SCTP,
        (Protocol::Icmp, true) => P::ICMP,
        (Protocol::Icmp, false) => P::ICMPV6,
    };
    Flow { src: probe.from_addr.unwrap(), dst: probe.to, protocol, port: probe.port }
}

/// Sends all probes; which of them did not do as predicted.
fn disagreements(world: &World, probes: &[Probe], predicted: impl Fn(&Probe) -> bool) -> Vec<String> {
    let mut outcomes = world.sandbox.probe_all(probes, DEFAULT_TIMEOUT);
    for (probe, outcome) in probes.iter().zip(&mut outcomes) {
        // Silence on a busy machine is worth a second look.
        if predicted(probe) && outcome.arrived() != Some(true) {
            *outcome = world.sandbox.probe_all(std::slice::from_ref(probe), PATIENCE).remove(0);
        }
    }
    let wrong = probes.iter().zip(outcomes).filter(|(p, o)| o.arrived() != Some(predicted(p)));
    wrong.map(|(p, o)| format!("{}: {o}, predicted {}", flow(p), predicted(p))).collect()
}

#[test]
fn packets_do_as_predicted() {
    let compiled = compiled(&shop());
    let world = world(&compiled);
    let probes = probes(&world);
    let control = disagreements(&world, &probes, |_| true);
    assert!(control.is_empty(), "without a program: {}", control.join("\n"));
    world.track();
    for established in Established::ALL {
        let nodes = nodes(&compiled, established);
        let _loaded = world.load(&nodes, -7);
        let predicted = |probe: &Probe| {
            let flow = flow(probe);
            let all = nodes.iter().all(|n| n.decide(&flow) == Verdict::Allow);
            assert_eq!(all, compiled.model.decide(&flow).verdict == Verdict::Allow, "{flow}");
            all
        };
        let denied = probes.iter().filter(|p| !predicted(p)).count();
        assert!(denied > 100 && probes.len() - denied > 100, "{denied} of {}", probes.len());
        let wrong = disagreements(&world, &probes, predicted);
        assert!(wrong.is_empty(), "{established:?}: {}", wrong.join("\n"));
    }
    let after = disagreements(&world, &probes[..40], |_| true);
    assert!(after.is_empty(), "after the links are closed: {}", after.join("\n"));
}

/// Without the inert rule nothing is tracked, and what touches an isolated pod is dropped: closed, not open.
#[test]
fn without_conntrack_isolated_pods_are_closed() {
    let compiled = compiled(&shop());
    let world = world(&compiled);
    let _loaded = world.load(&nodes(&compiled, Established::Keep), -7);
    let probe = |from: &str, to: &str| Probe {
        from: world.host(from),
        from_addr: None,
        to: world.addr(to, true),
        protocol: Protocol::Tcp,
        port: 80,
    };
    let outcome = |p: Probe| world.sandbox.probe_all(&[p], DEFAULT_TIMEOUT).remove(0);
    assert_eq!(outcome(probe("web", "db")), Outcome::NotReached);
    assert_eq!(outcome(Probe { from: HostId::Outside(0), ..probe("web", "free") }), Outcome::Reached);
}

/// A denied connection ends with `cut`, in both directions, and lives on with `keep`. One that stays allowed lives on.
#[test]
fn established_connections() {
    let open = compiled(&shop());
    let world = world(&open);
    world.track();
    let closed = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: free, namespace: shop}\n\
                  spec: {podSelector: {matchLabels: {app: free}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: \
                  {cidr: 203.0.113.0/24}}]}]}\n---\n";
    let denied = compiled(&format!("{}{closed}", shop()));
    for (established, lives) in [(Established::Cut, false), (Established::Keep, true)] {
        let before = world.load(&nodes(&open, established), -7);
        let probe = |from: HostId| Probe {
            from,
            from_addr: None,
            to: world.addr("free", true),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let mut cut = world.sandbox.connect(&probe(world.host("web")), PATIENCE).unwrap();
        let mut far = world.sandbox.connect(&probe(world.host("far")), PATIENCE).unwrap();
        let mut stays = world.sandbox.connect(&probe(HostId::Outside(0)), PATIENCE).unwrap();
        for connection in [&mut cut, &mut far, &mut stays] {
            assert_eq!(connection.exchange(PATIENCE), Outcome::Reached);
        }
        let after = world.load(&nodes(&denied, established), -8);
        drop(before);
        for connection in [&mut cut, &mut far] {
            let outcome = connection.exchange(if lives { PATIENCE } else { DEFAULT_TIMEOUT });
            assert_eq!(outcome == Outcome::Reached, lives, "{established:?}: {outcome}");
        }
        assert_eq!(stays.exchange(PATIENCE), Outcome::Reached, "{established:?}");
        drop(after);
    }
}

/// Segments that open nothing, and sources that are not the sender's.
#[test]
fn strange_packets() {
    let compiled = compiled(&shop());
    let world = world(&compiled);
    world.track();
    let arrives = |from: &str, source: IpAddr, to: &str, content: Content, wanted: bool| {
        let outside = OUTSIDE.iter().position(|a| *a == from).map(HostId::Outside);
        let (host, at) = (outside.unwrap_or_else(|| world.host(from)), world.host(to));
        let packet =
            RawPacket { from: host, source, to: world.addr(to, source.is_ipv4()), port: 80, content, at };
        let patience = if wanted { PATIENCE } else { DEFAULT_TIMEOUT };
        let seen = world.sandbox.observe(&packet, patience).unwrap().is_some();
        assert_eq!(seen, wanted, "{from} as {source} to {to}: {content:?}");
    };
    let check = |ruled: bool| {
        for v4 in [true, false] {
            let own = |name: &str| world.addr(name, v4);
            let outside = OUTSIDE[usize::from(!v4)];
            for flags in [tcp_flags::ACK, tcp_flags::RST, tcp_flags::SYN | tcp_flags::ACK, tcp_flags::FIN] {
                arrives("web", own("web"), "db", Content::Tcp(flags), !ruled);
                arrives("far", own("far"), "free", Content::Tcp(flags), !ruled);
                arrives(outside, outside.parse().unwrap(), "free", Content::Tcp(flags), true);
            }
            arrives("web", own("web"), "db", Content::Tcp(tcp_flags::SYN), true);
            let stranger: IpAddr = if v4 { "203.0.113.99" } else { "2001:db8::99" }.parse().unwrap();
            for content in [Content::Udp, Content::Tcp(tcp_flags::SYN)] {
                arrives("free", own("free"), "far", content, true);
                // As a pod of the same node, as one of another node, as nobody's.
                for source in [own("web"), own("far"), stranger] {
                    let to = if source == own("far") { "web" } else { "far" };
                    arrives("free", source, to, content, !ruled);
                }
            }
        }
    };
    check(false);
    let _loaded = world.load(&nodes(&compiled, Established::Cut), -7);
    check(true);
}

/// What the counters of a node that are not zero say, by row and column.
fn counters(loaded: &Loaded, artifacts: &[Node], node: usize) -> BTreeMap<(u32, u32), u64> {
    let contents = &artifacts[node].contents;
    let read = |key: u32| {
        let value = bpf::look_up(&loaded.maps[node][&Map::Denied], &key.to_le_bytes(), 8).unwrap();
        u64::from_le_bytes(value.try_into().unwrap())
    };
    let keys = 0..contents.room(Map::Denied);
    let pair = |key: u32| (key / contents.columns + 1, key % contents.columns);
    keys.map(|key| (pair(key), read(key))).filter(|(_, count)| *count > 0).collect()
}

/// What a row denies is counted with the pair, in the map of the node whose row it is; nothing else is.
#[test]
fn what_is_denied_is_counted() {
    let compiled = compiled(&shop());
    let world = world(&compiled);
    world.track();
    let nodes = nodes(&compiled, Established::Cut);
    let loaded = world.load(&nodes, -7);
    let probe = |from: &str, to: &str, port| Probe {
        from: world.host(from),
        from_addr: None,
        to: world.addr(to, true),
        protocol: Protocol::Tcp,
        port,
    };
    let send = |probe: Probe, wanted: Outcome| {
        let patience = if wanted == Outcome::Reached { PATIENCE } else { DEFAULT_TIMEOUT };
        assert_eq!(world.sandbox.probe_all(&[probe], patience).remove(0), wanted);
    };
    send(probe("web", "db", 80), Outcome::Reached);
    send(probe("free", "far", 80), Outcome::Reached);
    for node in 0..nodes.len() {
        assert_eq!(counters(&loaded, &nodes, node), BTreeMap::new());
    }
    // By the ingress row of db: a pod of another node, then one of this node on another port; by its egress row: all.
    let pod = |name: &str| nodes[0].contents.pods[&world.addr(name, true)];
    let (db, far, web) = (pod("db"), pod("far"), pod("web"));
    let mut expected = BTreeSet::new();
    for (from, to, pair) in [
        ("far", "db", (db.ingress, far.column)),
        ("web", "db", (db.ingress, web.column)),
        ("db", "far", (db.egress, far.column)),
    ] {
        let before = counters(&loaded, &nodes, 0);
        send(probe(from, to, 81), Outcome::NotReached);
        let after = counters(&loaded, &nodes, 0);
        expected.insert(pair);
        assert!(after[&pair] > before.get(&pair).copied().unwrap_or(0), "{from} to {to}: {after:?}");
        assert_eq!(after.keys().copied().collect::<BTreeSet<_>>(), expected, "{from} to {to}");
    }
    assert_eq!(counters(&loaded, &nodes, 1), BTreeMap::new(), "the other node denied nothing");
}
