//! The cluster that packets are measured in: N policies that isolate pods of one node, each with 16 peer pods elsewhere.

use crate::cluster::{self, File, Format, Pod};
use crate::random::Random;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};

/// Pods that one policy lets in.
pub const PEERS: usize = 16;
/// Most pods on the measured node.
const LOCAL: usize = 100;
/// Most workloads whose pods are peers.
const APPS: usize = 1_000;
/// How many flows of each kind there are.
pub const FLOWS: usize = 64;
/// The first port that a policy opens; the next policies of the same pod open the next.
const FIRST_PORT: u16 = 10_000;
/// The node that is measured.
pub const NODE: &str = "node-0000";

/// One flow that the policies allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// The peer.
    pub from: IpAddr,
    /// The isolated pod.
    pub to: IpAddr,
    /// The UDP port.
    pub port: u16,
}

/// A number of policies, and all that follows from it.
#[derive(Debug, Clone)]
pub struct Load {
    /// How many policies.
    pub policies: usize,
    local: usize,
    apps: usize,
    changed: bool,
}

impl Load {
    /// A cluster with so many policies.
    pub fn new(policies: usize) -> Load {
        Load { policies, local: policies.clamp(1, LOCAL), apps: policies.clamp(1, APPS), changed: false }
    }

    /// The same cluster after the first policy opens another port.
    pub fn changed(&self) -> Load {
        Load { changed: true, ..self.clone() }
    }

    fn peer_name(&self, app: usize, i: usize) -> (String, String) {
        (format!("app-{app:04}"), cluster::pod_address(1_000 + app * PEERS + i))
    }

    /// The subject, the port and the peers' workload of a policy.
    fn policy(&self, i: usize) -> (usize, u16, usize) {
        let port = if self.changed && i == 0 { FIRST_PORT - 1 } else { FIRST_PORT + (i / self.local) as u16 };
        (i % self.local, port, i % self.apps)
    }

    /// A pod that no policy lets in.
    pub fn stranger(&self) -> IpAddr {
        addr(cluster::pod_address(900))
    }

    /// The addresses of the isolated pods.
    pub fn locals(&self) -> Vec<IpAddr> {
        (0..self.local).map(|i| addr(cluster::pod_address(i))).collect()
    }

    /// The addresses that a policy lets in.
    pub fn peers(&self, policy: usize) -> Vec<IpAddr> {
        let app = self.policy(policy).2;
        (0..PEERS).map(|i| addr(self.peer_name(app, i).1)).collect()
    }

    /// The pod and the port that a policy is about.
    pub fn service(&self, policy: usize) -> (IpAddr, u16) {
        let (pod, port, _) = self.policy(policy);
        (addr(cluster::pod_address(pod)), port)
    }

    /// Random flows, spread over policies and peers.
    pub fn flows(&self) -> Vec<Allowed> {
        let mut random = Random::new(self.policies as u64);
        let mut flow = || {
            let policy = random.below(self.policies);
            let (to, port) = self.service(policy);
            Allowed { from: self.peers(policy)[random.below(PEERS)], to, port }
        };
        (0..FLOWS).map(|_| flow()).collect()
    }

    /// The cluster as YAML.
    pub fn files(&self) -> Vec<File> {
        let local = (0..self.local).map(|i| {
            let name = format!("local-{i:03}");
            self.pod(&name, cluster::pod_address(i), 0, json!({ "pod": name }))
        });
        let peers = (0..self.apps).flat_map(|app| (0..PEERS).map(move |i| (app, i))).map(|(app, i)| {
            let (name, address) = self.peer_name(app, i);
            self.pod(&format!("{name}-{i:02}"), address, 1 + app % 10, json!({ "app": name }))
        });
        let stranger = self.pod("stranger", self.stranger().to_string(), 1, json!({ "app": "stranger" }));
        let policies = (0..self.policies).map(|i| {
            let (pod, port, app) = self.policy(i);
            let from = cluster::labelled("app", &self.peer_name(app, 0).0);
            let rule = json!([{ "from": [{ "podSelector": from }], "ports": [{ "protocol": "UDP", "port": port }] }]);
            let subject = cluster::labelled("pod", &format!("local-{pod:03}"));
            cluster::policy(&format!("p{i:05}"), "ns", subject, rule, Value::Null, &["Ingress"])
        });
        vec![
            cluster::write("namespaces", vec![cluster::namespace("ns", &[])], Format::Yaml),
            cluster::write("nodes", (0..11).map(cluster::node).collect(), Format::Yaml),
            cluster::write("pods", local.chain(peers).chain([stranger]).collect(), Format::Yaml),
            cluster::write("networkpolicies", policies.collect(), Format::Yaml),
        ]
    }

    fn pod(&self, name: &str, address: String, node: usize, labels: Value) -> Value {
        let name = name.to_owned();
        cluster::pod(Pod { name, namespace: "ns", labels, address, node, owner: None, ports: &[] })
    }
}

/// An address that this crate printed.
fn addr(text: String) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}
