//! Generated clusters of given sizes: namespaces, nodes, pods with addresses, and policies of ten kinds in turn.

use crate::random::Random;
use crate::yaml;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// Pods of one workload.
const REPLICAS: usize = 5;
/// Pods on one node, about.
const PER_NODE: usize = 100;
/// The tiers that pods are labelled with.
const TIERS: [&str; 3] = ["front", "mid", "back"];

/// How large a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Namespaces, without `kube-system`.
    pub namespaces: usize,
    /// Pods, without the two of the DNS service.
    pub pods: usize,
    /// NetworkPolicies.
    pub policies: usize,
    /// Whether one policy has another port: the smallest change that there is.
    pub changed: bool,
}

/// How objects are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A stream of documents.
    Yaml,
    /// A `List` for each kind, indented as `kubectl -o json` does.
    Json,
}

/// A file: its name and text.
pub type File = (String, String);

/// The shape behind a set's name: `xs`, `s`, `sm`, `m`, `ml`, `l`, `xl`, `xxl`, or `pN`: 1,000 pods with N policies.
/// With `-port` at the end, one policy's port is changed.
pub fn shape(set: &str) -> Option<Shape> {
    let (base, changed) = set.strip_suffix("-port").map_or((set, false), |base| (base, true));
    let (namespaces, pods, policies) = match base {
        "xs" => (5, 50, 5),
        "s" => (5, 100, 10),
        "sm" => (10, 300, 30),
        "m" => (20, 1_000, 100),
        "ml" => (50, 3_000, 300),
        "l" => (100, 10_000, 1_000),
        "xl" => (500, 50_000, 5_000),
        "xxl" => (1_000, 100_000, 10_000),
        _ => (10, 1_000, base.strip_prefix('p')?.parse().ok()?),
    };
    Some(Shape { namespaces, pods, policies, changed })
}

/// The files of a cluster.
pub fn files(shape: Shape, format: Format) -> Vec<File> {
    let generator = Generator::new(shape);
    let kinds = [
        ("namespaces", generator.namespaces()),
        ("nodes", (0..generator.nodes).map(node).collect()),
        ("pods", generator.pods()),
        ("networkpolicies", generator.policies()),
    ];
    kinds.into_iter().map(|(name, objects)| write(name, objects, format)).collect()
}

/// One file of objects.
pub(crate) fn write(name: &str, objects: Vec<Value>, format: Format) -> File {
    match format {
        Format::Yaml => {
            let mut text = String::new();
            objects.iter().for_each(|object| yaml::document(&mut text, object));
            (format!("{name}.yaml"), text)
        }
        Format::Json => {
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
            (format!("{name}.json"), format!("{list:#}\n"))
        }
    }
}

/// The `i`th address from a base, without those that end in 0 or 255.
fn address(base: [u8; 4], i: usize) -> String {
    Ipv4Addr::from(u32::from_be_bytes(base) + (i + 1 + (i / 254) * 2) as u32).to_string()
}

pub(crate) fn pod_address(i: usize) -> String {
    address([10, 0, 0, 0], i)
}

fn node_address(i: usize) -> String {
    address([172, 16, 0, 0], i)
}

pub(crate) fn node(i: usize) -> Value {
    let name = format!("node-{i:04}");
    let addresses = [("InternalIP", node_address(i)), ("Hostname", name.clone())]
        .map(|(kind, address)| json!({ "type": kind, "address": address }));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": { "addresses": addresses },
    })
}

pub(crate) fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    let mut all = json!({ "kubernetes.io/metadata.name": name });
    labels.iter().for_each(|(key, value)| all[*key] = json!(value));
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": all } })
}

/// What a pod is made from.
pub(crate) struct Pod<'a> {
    pub(crate) name: String,
    pub(crate) namespace: &'a str,
    pub(crate) labels: Value,
    pub(crate) address: String,
    pub(crate) node: usize,
    pub(crate) owner: Option<String>,
    pub(crate) ports: &'a [(&'a str, u16, &'a str)],
}

pub(crate) fn pod(pod: Pod<'_>) -> Value {
    let mut metadata = json!({ "name": pod.name, "namespace": pod.namespace, "labels": pod.labels });
    if let Some(owner) = pod.owner {
        let reference = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "controller": true,
            "uid": format!("00000000-0000-0000-0000-{:0>12}", owner.trim_start_matches(|c: char| !c.is_ascii_digit())),
        });
        metadata["ownerReferences"] = json!([reference]);
    }
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .map(|(name, port, protocol)| json!({ "name": name, "containerPort": port, "protocol": protocol }))
        .collect();
    let host = node_address(pod.node);
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "nodeName": format!("node-{:04}", pod.node),
            "containers": [{ "name": "c", "image": "registry.example/app:1", "ports": ports }],
        },
        "status": {
            "phase": "Running", "hostIP": host, "hostIPs": [{ "ip": host }],
            "podIP": pod.address, "podIPs": [{ "ip": pod.address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// A NetworkPolicy; rules that are `null` are absent.
pub(crate) fn policy(
    name: &str,
    namespace: &str,
    subject: Value,
    ingress: Value,
    egress: Value,
    types: &[&str],
) -> Value {
    let mut spec = json!({ "podSelector": subject, "policyTypes": types });
    for (key, rules) in [("ingress", ingress), ("egress", egress)] {
        if !rules.is_null() {
            spec[key] = rules;
        }
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": namespace }, "spec": spec,
    })
}

/// A selector of one label.
pub(crate) fn labelled(key: &str, value: &str) -> Value {
    json!({ "matchLabels": { key: value } })
}

fn tcp(port: impl Into<Value>) -> Value {
    json!({ "protocol": "TCP", "port": port.into() })
}

struct Generator {
    shape: Shape,
    names: Vec<String>,
    teams: Vec<String>,
    nodes: usize,
    /// Workloads. Workload `k` lives in namespace `k % namespaces`.
    apps: usize,
}

impl Generator {
    fn new(shape: Shape) -> Generator {
        let teams = (shape.namespaces / 5).clamp(2, 20);
        Generator {
            shape,
            names: (0..shape.namespaces).map(|i| format!("ns-{i:04}")).collect(),
            teams: (0..teams).map(|i| format!("team-{i}")).collect(),
            nodes: shape.pods.div_ceil(PER_NODE).max(1),
            apps: (shape.pods / REPLICAS).max(1),
        }
    }

    fn namespaces(&self) -> Vec<Value> {
        let team = |i: usize| self.teams[i % self.teams.len()].as_str();
        let env = |i: usize| if i.is_multiple_of(2) { "prod" } else { "dev" };
        let own = self
            .names
            .iter()
            .enumerate()
            .map(|(i, name)| namespace(name, &[("team", team(i)), ("env", env(i))]));
        own.chain([namespace("kube-system", &[])]).collect()
    }

    fn pods(&self) -> Vec<Value> {
        let mut pods = Vec::with_capacity(self.shape.pods + 2);
        for i in 0..self.shape.pods {
            // The last workload takes what is left over.
            let app = (i / REPLICAS).min(self.apps - 1);
            let owner = format!("app-{app:05}");
            let version = if app.is_multiple_of(3) { "v2" } else { "v1" };
            pods.push(pod(Pod {
                name: format!("{owner}-{:02}", i - app * REPLICAS),
                namespace: &self.names[app % self.names.len()],
                labels: json!({ "app": owner, "tier": TIERS[app % 3], "ver": version }),
                address: pod_address(i),
                node: (i * 7919) % self.nodes,
                owner: Some(owner),
                ports: &[("http", 8080, "TCP"), ("metrics", 9090, "TCP")],
            }));
        }
        for i in 0..2 {
            pods.push(pod(Pod {
                name: format!("kube-dns-{i}"),
                namespace: "kube-system",
                labels: json!({ "k8s-app": "kube-dns" }),
                address: pod_address(self.shape.pods + i),
                node: i % self.nodes,
                owner: Some("kube-dns".to_owned()),
                ports: &[("dns", 53, "UDP"), ("dns-tcp", 53, "TCP")],
            }));
        }
        pods
    }

    fn policies(&self) -> Vec<Value> {
        (0..self.shape.policies).map(|i| self.policy(i)).collect()
    }

    /// Policy `i`, of kind `i % 10`.
    fn policy(&self, i: usize) -> Value {
        let spaces = self.names.len();
        let space = if self.shape.policies >= 2 * spaces { (i / 2) % spaces } else { i % spaces };
        let mut random = Random::new(1 + i as u64 * 1_000_003);
        let here = |random: &mut Random| {
            let count = self.apps.saturating_sub(space).div_ceil(spaces);
            format!("app-{:05}", (space + random.below(count) * spaces) % self.apps)
        };
        let (a, b) = (here(&mut random), here(&mut random));
        let elsewhere = random.below(self.apps);
        let draw = Draw {
            app: labelled("app", &a),
            other: labelled("app", &b),
            three: [a, b, format!("app-{:05}", random.below(self.apps))],
            far: labelled("app", &format!("app-{elsewhere:05}")),
            far_namespace: named(&self.names[elsewhere % spaces]),
            namespace: named(&self.names[random.below(spaces)]),
            team: labelled("team", &self.teams[random.below(self.teams.len())]),
            tier: labelled("tier", TIERS[random.below(3)]),
            port: if self.shape.changed && i == 31 % self.shape.policies.max(1) { 8081 } else { 8080 },
        };
        let kind = i % 10;
        let [subject, ingress, egress] = draw.rules(kind, &mut random);
        let types: &[&str] = match kind {
            3 | 5 | 9 => &["Egress"],
            7 => &["Ingress", "Egress"],
            _ => &["Ingress"],
        };
        policy(&format!("p{i:05}-k{kind}"), &self.names[space], subject, ingress, egress, types)
    }
}

/// Selects a namespace by its name.
fn named(namespace: &str) -> Value {
    labelled("kubernetes.io/metadata.name", namespace)
}

/// The random choices of one policy, most of them selectors.
struct Draw {
    app: Value,
    other: Value,
    three: [String; 3],
    far: Value,
    far_namespace: Value,
    namespace: Value,
    team: Value,
    tier: Value,
    port: u16,
}

impl Draw {
    /// Subject, ingress rules and egress rules of a kind.
    fn rules(self, kind: usize, random: &mut Random) -> [Value; 3] {
        let all = || json!({});
        let port = tcp(self.port);
        match kind {
            // Nothing comes in.
            0 => [all(), Value::Null, Value::Null],
            // From a workload of the namespace.
            1 => {
                [self.app, json!([{ "from": [{ "podSelector": self.other }], "ports": [port] }]), Value::Null]
            }
            // Across namespaces, to a port with a name.
            2 => {
                let peer = json!({ "namespaceSelector": self.team, "podSelector": self.tier });
                [self.app, json!([{ "from": [peer], "ports": [tcp("http")] }]), Value::Null]
            }
            // To the DNS service only.
            3 => {
                let dns = json!({ "namespaceSelector": named("kube-system"), "podSelector": labelled("k8s-app", "kube-dns") });
                let ports = json!([{ "protocol": "UDP", "port": 53 }, tcp(53)]);
                [all(), Value::Null, json!([{ "to": [dns], "ports": ports }])]
            }
            // From a namespace, to all ports.
            4 => [self.tier, json!([{ "from": [{ "namespaceSelector": self.namespace }] }]), Value::Null],
            // To a block with exceptions.
            5 => {
                let (x, y, z, w) =
                    (1 + random.below(199), random.below(256), random.below(256), random.below(256));
                let except = [format!("{x}.{y}.0.0/16"), format!("{x}.{z}.{w}.0/24")];
                let block = json!({ "ipBlock": { "cidr": format!("{x}.0.0.0/8"), "except": except } });
                [self.app, Value::Null, json!([{ "to": [block], "ports": [tcp(443)] }])]
            }
            // A range of ports.
            6 => {
                let ports = json!([{ "protocol": "TCP", "port": 9000, "endPort": 9100 }, port]);
                [self.app, json!([{ "from": [{ "podSelector": self.tier }], "ports": ports }]), Value::Null]
            }
            // Expressions, in both directions.
            7 => {
                let expressions = json!([
                    { "key": "app", "operator": "In", "values": self.three },
                    { "key": "ver", "operator": "NotIn", "values": ["v2"] },
                ]);
                let from =
                    json!({ "podSelector": { "matchExpressions": expressions }, "namespaceSelector": {} });
                let expressions = json!([{ "key": "team", "operator": "Exists" }, { "key": "env", "operator": "In", "values": ["prod"] }]);
                let to = json!({ "namespaceSelector": { "matchExpressions": expressions }, "podSelector": self.tier });
                let egress = json!([{ "to": [to], "ports": [{ "protocol": "TCP" }] }]);
                [self.tier, json!([{ "from": [from], "ports": [port] }]), egress]
            }
            // From blocks.
            8 => {
                let block = |_| json!({ "ipBlock": { "cidr": format!("192.{}.{}.0/24", random.below(256), random.below(256)) } });
                let from: Vec<Value> = (0..4).map(block).collect();
                let ports = [80, 443, 8443].map(tcp);
                [self.app, json!([{ "from": from, "ports": ports }]), Value::Null]
            }
            // To a workload of another namespace.
            _ => {
                let peer = json!({ "namespaceSelector": self.far_namespace, "podSelector": self.far });
                [self.app, Value::Null, json!([{ "to": [peer], "ports": [port] }])]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Front;

    #[test]
    fn a_set_is_read_without_errors_and_means_the_same_in_both_formats() {
        let shape = shape("sm").unwrap();
        let [yaml, json] = [Format::Yaml, Format::Json].map(|f| Front::read(files(shape, f)).unwrap());
        assert_eq!((yaml.model.pods.len(), yaml.model.policies.len(), yaml.model.nodes.len()), (302, 30, 3));
        assert_eq!(yaml.script("node-0001").unwrap(), json.script("node-0001").unwrap());
    }

    #[test]
    fn the_smallest_change_changes_one_line() {
        let texts = ["s", "s-port"].map(|set| files(shape(set).unwrap(), Format::Yaml));
        let differ = |i: usize| {
            let [a, b] = [&texts[0][i].1, &texts[1][i].1];
            a.lines().zip(b.lines()).filter(|(a, b)| a != b).count()
        };
        assert_eq!((0..4).map(differ).sum::<usize>(), 1);
    }
}
