//! From YAML to the artifacts of all nodes.

use netpolc_ebpf::contents::{Contents, Established};
use netpolc_ebpf::emit::emit;
use netpolc_ebpf::machine::{Machine, load};
use netpolc_ebpf::select::{Origins, plan};
use netpolc_ir::proof::{Artifact, Packet};
use netpolc_ir::unit::{Flow, Origin, Verdict};
use netpolc_testkit::pipeline::{Compiled, compile, model};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(crate) struct Names<'m>(pub(crate) &'m Compiled);

impl Origins for Names<'_> {
    fn label(&self, origin: Origin) -> String {
        self.0.model.origin(origin).map(|o| o.policy.clone()).unwrap_or_default()
    }
}

/// The artifact of a node.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) established: Established,
    pub(crate) contents: Contents,
    pub(crate) object: Vec<u8>,
    pub(crate) machine: Machine,
    local: BTreeSet<IpAddr>,
    own: Vec<IpAddr>,
}

pub(crate) fn compiled(yaml: &str) -> Compiled {
    compile(model(&[("cluster.yaml", yaml.to_owned())]).unwrap()).unwrap()
}

pub(crate) fn nodes(compiled: &Compiled, established: Established) -> Vec<Node> {
    let matrix = &compiled.matrix;
    let node = |host| {
        let contents = plan(matrix, host, &Names(compiled)).unwrap().contents;
        let object = emit(&contents, established).unwrap();
        let machine = load(&object, &contents.text()).unwrap();
        let local = matrix.endpoints.values().filter(|e| e.host == host);
        let local = local.flat_map(|e| e.addrs.iter().map(|a| a.0)).collect();
        let (name, own) = (matrix.hosts[host].name.clone(), matrix.hosts[host].addrs.clone());
        Node { name, established, contents, object, machine, local, own }
    };
    matrix.hosts.keys().map(node).collect()
}

impl Node {
    /// Packets between a pod and its node do not cross the hook.
    pub(crate) fn is_own(&self, flow: &Flow) -> bool {
        let own = |pod: &IpAddr, other: &IpAddr| self.local.contains(pod) && self.own.contains(other);
        own(&flow.src, &flow.dst) || own(&flow.dst, &flow.src)
    }

    pub(crate) fn touches(&self, flow: &Flow) -> bool {
        self.local.contains(&flow.src) || self.local.contains(&flow.dst)
    }

    pub(crate) fn decide(&self, flow: &Flow) -> Verdict {
        match self.is_own(flow) {
            true => Verdict::Allow,
            false => self.machine.decide(&Packet::opening(*flow)),
        }
    }
}

/// Holds the two executors of a machine against each other: results, faults, counters.
pub(crate) fn same_on_both<'p>(
    compiled: &Machine,
    interpreted: &Machine,
    packets: impl IntoIterator<Item = &'p Packet>,
    what: &str,
) {
    assert!(!interpreted.is_compiled());
    for packet in packets {
        assert_eq!(compiled.outcomes(packet), interpreted.outcomes(packet), "{what}: {packet}");
    }
}

/// A small cluster of both families with two nodes, with ranges, blocks and named ports.
pub(crate) fn shop() -> String {
    let node = |n: u8, name: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{{type: InternalIP, address: \
             192.168.9.{n}}}, {{type: InternalIP, address: \"fd99::{n}\"}}]}}\n---\n"
        )
    };
    let pod = |i: u8, n: u8, name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: {}, containers: [{{name: main, image: example/main, ports: []}}]}}\n\
             status: {{phase: Running, podIPs: [{{ip: 10.1.{n}.{i}}}, {{ip: \"fd00:1:{n}::{i}\"}}]}}\n---\n",
            ["alpha", "beta"][usize::from(n)]
        )
    };
    let policy = |name: &str, app: &str, spec: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec:\n  podSelector: {{matchLabels: {{app: {app}}}}}\n{spec}---\n"
        )
    };
    [
        node(1, "alpha"),
        node(2, "beta"),
        pod(1, 0, "web"),
        pod(2, 0, "db"),
        pod(3, 0, "free"),
        pod(4, 1, "far"),
        policy(
            "db",
            "db",
            "  policyTypes: [Ingress, Egress]\n  ingress:\n  - from: [{podSelector: {matchLabels: {app: web}}}]\n    \
             ports: [{port: 80}, {port: 8000, endPort: 8010}, {port: 53, protocol: UDP}]\n  - from: [{ipBlock: {cidr: \
             203.0.113.0/24, except: [203.0.113.8/32]}}, {ipBlock: {cidr: \"2001:db8::/64\", except: \
             [\"2001:db8::8/128\"]}}]\n    ports: [{port: 8080}]\n  egress: []\n",
        ),
        policy("web", "web", "  policyTypes: [Egress]\n  egress:\n  - to: [{podSelector: {}}]\n"),
        policy("far", "far", "  policyTypes: [Ingress]\n  ingress: [{}]\n"),
    ]
    .concat()
}
