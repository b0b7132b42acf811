//! Namespaces, nodes and pods.

use super::Options;
use super::selector::labels;
use crate::random::Random;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Names that ports of containers have, and that policies ask for (`absent` is never declared).
pub(super) const PORT_NAMES: [&str; 5] = ["http", "dns", "peer-sctp", "http", "absent"];
/// Ports that containers declare and policies name: neighbours, both ends of the range, ends of ranges.
pub(super) const PORTS: [u16; 10] = [1, 53, 79, 80, 81, 443, 8080, 8085, 8090, 65535];

/// Addresses outside of the cluster.
const OUTSIDE: [&str; 6] =
    ["203.0.113.7", "198.51.100.1", "8.8.8.8", "2001:db8::7", "2001:db8:1::1", "2606:4700::1"];
/// Addresses that are hard on arithmetic; no host of a sandbox can have them.
const EXTREME: [&str; 6] =
    ["0.0.0.0", "255.255.255.255", "127.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1"];

/// What policies are generated about.
pub(super) struct World {
    /// The objects.
    pub(super) documents: Vec<Value>,
    /// Namespaces with pods.
    pub(super) namespaces: Vec<String>,
    /// Addresses of pods and nodes.
    pub(super) addresses: Vec<IpAddr>,
    nodes: usize,
    taken: BTreeSet<IpAddr>,
    options: Options,
}

impl World {
    pub(super) fn new(random: &mut Random, options: Options) -> World {
        let nodes = random.between(1, 3);
        let namespaces =
            ["x", "y", "kube-system", "z9"].iter().take(random.between(1, 4)).map(|n| (*n).to_owned());
        let mut world = World {
            documents: Vec::new(),
            namespaces: namespaces.collect(),
            addresses: Vec::new(),
            nodes,
            taken: BTreeSet::new(),
            options,
        };
        world.namespaces(random);
        (0..nodes).for_each(|i| world.node(random, i));
        let pods = random.between(2, if options.buildable { 9 } else { 12 });
        (0..pods).for_each(|i| world.pod(random, i));
        world
    }

    /// An address that exists, or one outside.
    pub(super) fn address(&self, random: &mut Random) -> IpAddr {
        let list: &[&str] = if random.percent(90) { &OUTSIDE } else { &EXTREME };
        match random.pick(&self.addresses) {
            Some(addr) if random.percent(70) => *addr,
            _ => parse(random.pick(list).copied().unwrap_or_default()),
        }
    }

    /// Some namespaces are given with labels, others are only mentioned by their pods.
    fn namespaces(&mut self, random: &mut Random) {
        for name in &self.namespaces {
            if random.percent(70) {
                self.documents.push(json!({
                    "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels(random)},
                }));
            }
        }
    }

    fn node(&mut self, random: &mut Random, i: usize) {
        let (v4, v6) = (format!("192.168.10.{}", i + 1), format!("fd99::{}", i + 1));
        let families = if self.options.buildable { 0 } else { random.below(5) };
        let mut addresses: Vec<Value> = vec![json!({"type": "Hostname", "address": format!("node-{i}")})];
        let mut add = |kind: &str, addr: &str| {
            addresses.push(json!({"type": kind, "address": addr}));
            self.addresses.push(parse(addr));
            self.taken.insert(parse(addr));
        };
        if families != 1 {
            add("InternalIP", &v4);
        }
        if families != 2 {
            add("InternalIP", &v6);
        }
        if random.percent(25) {
            add("ExternalIP", &format!("198.18.0.{}", i + 1));
        }
        self.documents.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{i}"), "labels": labels(random)},
            "spec": {"podCIDRs": [format!("10.244.{i}.0/24"), format!("fd00:10:244:{i}::/64")]},
            "status": {"addresses": addresses},
        }));
    }

    /// An address that is free.
    fn fresh(&mut self, random: &mut Random, node: usize, v4: bool) -> IpAddr {
        for _ in 0..100 {
            let last = random.between(1, 14);
            let text = match (v4, random.below(12)) {
                (true, 0) => format!("10.0.{}.{}", random.below(2), random.between(254, 255)),
                (true, 1) => format!("172.16.{}.1", random.below(256)),
                (true, _) => format!("10.244.{node}.{last}"),
                (false, 0) => format!("2001:db8::{last:x}00"),
                (false, _) => format!("fd00:10:244:{node}::{last:x}"),
            };
            let extreme = !self.options.buildable && random.percent(4);
            let addr = parse(if extreme { random.word(&EXTREME) } else { &text });
            if addr.is_ipv4() == v4 && self.taken.insert(addr) {
                return addr;
            }
        }
        // Cannot be reached with so few pods; still an address of its own.
        let addr = parse(&format!("10.99.0.{}", self.taken.len() % 256));
        self.taken.insert(addr);
        addr
    }

    fn pod(&mut self, random: &mut Random, i: usize) {
        let (namespace, node) =
            (random.pick(&self.namespaces).cloned().unwrap_or_default(), random.below(self.nodes));
        let mut spec =
            json!({"nodeName": format!("node-{node}"), "containers": [container(random), container(random)]});
        if random.percent(20) {
            let mut inits = vec![container(random), container(random)];
            inits[0]["restartPolicy"] = json!("Always");
            spec["initContainers"] = json!(inits);
        }
        let kind = random.below(20);
        if kind == 0 && !self.options.buildable {
            // Without a node, or with one that is not there.
            spec["nodeName"] = if random.percent(50) { json!("") } else { json!("elsewhere") };
        }
        let mut status = json!({"phase": random.word(&["Running", "Running", "Pending", "Unknown"])});
        let ips = self.pod_addresses(random, kind, node, &mut spec, &mut status);
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod-{i}"), "namespace": namespace, "labels": labels(random)},
            "spec": spec,
        });
        if let Some(first) = ips.first() {
            let list: Vec<Value> = ips.iter().map(|a| json!({"ip": a.to_string()})).collect();
            status["podIP"] = json!(first.to_string());
            if random.percent(90) || list.len() > 1 {
                status["podIPs"] = json!(list);
            }
        }
        // Kind 4 comes from a repository and has no status.
        if kind != 4 || self.options.buildable {
            pod["status"] = status;
        }
        self.documents.push(pod);
    }

    fn pod_addresses(
        &mut self,
        random: &mut Random,
        kind: usize,
        node: usize,
        spec: &mut Value,
        status: &mut Value,
    ) -> Vec<IpAddr> {
        match kind {
            1 => {
                spec["hostNetwork"] = json!(true);
                return vec![parse(&format!("192.168.10.{}", node + 1))];
            }
            2 => {
                // Finished: its address may be another pod's by now.
                status["phase"] = json!(random.word(&["Succeeded", "Failed"]));
                let taken: Vec<IpAddr> = self.addresses.clone();
                return random.pick(&taken).copied().into_iter().collect();
            }
            3 => {
                status["phase"] = json!("Pending");
                return Vec::new();
            }
            4 if !self.options.buildable => return Vec::new(),
            _ => {}
        }
        let families: &[bool] = match random.below(6) {
            0 => &[true],
            1 => &[false],
            2 => &[false, true],
            3 if !self.options.buildable => &[true, true, false],
            _ => &[true, false],
        };
        let addrs: Vec<IpAddr> = families.iter().map(|v4| self.fresh(random, node, *v4)).collect();
        self.addresses.extend(&addrs);
        addrs
    }
}

fn container(random: &mut Random) -> Value {
    let mut ports = Vec::new();
    let mut names = BTreeSet::new();
    for _ in 0..random.between(0, 2) {
        let mut port = Map::new();
        port.insert("containerPort".to_owned(), json!(random.pick(&PORTS)));
        let name = random.word(&PORT_NAMES);
        if random.percent(80) && name != "absent" && names.insert(name) {
            port.insert("name".to_owned(), json!(name));
        }
        if random.percent(60) {
            port.insert("protocol".to_owned(), json!(random.word(&["TCP", "UDP", "SCTP"])));
        }
        ports.push(Value::Object(port));
    }
    json!({"name": "c", "image": "i", "ports": ports})
}

/// The addresses here are constants and numbers below their limits.
fn parse(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}
