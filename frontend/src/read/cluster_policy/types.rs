//! The fields of the three kinds, and what they have in common.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;

/// A value that is known but does not matter, and so may have any form.
#[derive(Debug, Default)]
pub(super) struct Anything;

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Anything, D::Error> {
        // Not `IgnoredAny`, which stands for a field that is not known.
        serde_json::Value::deserialize(deserializer).map(|_| Anything)
    }
}

macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $spec:ident) => {
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub(super) struct $name {
            #[serde(rename = "apiVersion")]
            _api_version: Anything,
            #[serde(rename = "kind")]
            _kind: Anything,
            metadata: ObjectMeta,
            spec: $spec,
            #[serde(rename = "status")]
            _status: Anything,
        }

        impl From<$name> for Written {
            fn from(object: $name) -> Written {
                Written { metadata: object.metadata, spec: object.spec.into() }
            }
        }
    };
}

object!(
    /// ClusterNetworkPolicy.
    Cluster, ClusterSpec);
object!(
    /// AdminNetworkPolicy.
    Admin, AdminSpec);
object!(
    /// BaselineAdminNetworkPolicy.
    Baseline, BaselineSpec);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClusterSpec {
    tier: Option<String>,
    priority: Option<i32>,
    subject: Option<Subject>,
    ingress: Vec<ClusterIngress>,
    egress: Vec<ClusterEgress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AdminSpec {
    priority: Option<i32>,
    subject: Option<Subject>,
    ingress: Vec<AdminIngress>,
    egress: Vec<AdminEgress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BaselineSpec {
    subject: Option<Subject>,
    ingress: Vec<AdminIngress>,
    egress: Vec<AdminEgress>,
}

/// Which pods a policy is about.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Subject {
    pub(super) namespaces: Option<LabelSelector>,
    pub(super) pods: Option<Namespaced>,
}

/// Pods by labels of their namespace and their own.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Namespaced {
    pub(super) namespace_selector: Option<LabelSelector>,
    pub(super) pod_selector: Option<LabelSelector>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClusterIngress {
    name: String,
    action: Option<String>,
    from: Option<Vec<IngressPeer>>,
    protocols: Option<Vec<Protocol>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClusterEgress {
    name: String,
    action: Option<String>,
    to: Option<Vec<Peer>>,
    protocols: Option<Vec<Protocol>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AdminIngress {
    name: String,
    action: Option<String>,
    from: Option<Vec<IngressPeer>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AdminEgress {
    name: String,
    action: Option<String>,
    to: Option<Vec<Peer>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IngressPeer {
    namespaces: Option<LabelSelector>,
    pods: Option<Namespaced>,
}

/// A peer; ingress peers have only the first two fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Peer {
    pub(super) namespaces: Option<LabelSelector>,
    pub(super) pods: Option<Namespaced>,
    pub(super) nodes: Option<LabelSelector>,
    pub(super) networks: Option<Vec<String>>,
    pub(super) domain_names: Option<Vec<String>>,
}

impl Peer {
    /// Whether it stands for something that has no named ports.
    pub(super) fn is_without_named_ports(&self) -> bool {
        self.nodes.is_some() || self.networks.is_some() || self.domain_names.is_some()
    }
}

/// An entry of `protocols` (v1alpha2).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Protocol {
    pub(super) tcp: Option<Destination>,
    pub(super) udp: Option<Destination>,
    pub(super) sctp: Option<Destination>,
    pub(super) destination_named_port: Option<String>,
}

/// What is matched of a protocol.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Destination {
    pub(super) destination_port: Option<DestinationPort>,
}

/// A port or a range.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DestinationPort {
    pub(super) number: Option<i32>,
    pub(super) range: Option<Range>,
}

/// An inclusive range.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Range {
    pub(super) start: Option<i32>,
    pub(super) end: Option<i32>,
}

/// An entry of `ports` (v1alpha1).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Port {
    pub(super) port_number: Option<PortNumber>,
    pub(super) port_range: Option<PortRange>,
    pub(super) named_port: Option<String>,
}

/// A port of a protocol.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PortNumber {
    pub(super) protocol: Option<String>,
    pub(super) port: Option<i32>,
}

/// An inclusive range of ports of a protocol.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PortRange {
    pub(super) protocol: Option<String>,
    pub(super) start: Option<i32>,
    pub(super) end: Option<i32>,
}

/// An object of any of the three kinds; what a kind does not have is absent.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: Spec,
}

/// What it says.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) tier: Option<String>,
    pub(super) priority: Option<i32>,
    pub(super) subject: Option<Subject>,
    pub(super) ingress: Vec<Rule>,
    pub(super) egress: Vec<Rule>,
}

/// A rule of any direction.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) action: Option<String>,
    pub(super) peers: Option<Vec<Peer>>,
    pub(super) protocols: Option<Vec<Protocol>>,
    pub(super) ports: Option<Vec<Port>>,
}

impl From<ClusterSpec> for Spec {
    fn from(s: ClusterSpec) -> Spec {
        let ClusterSpec { tier, priority, subject, ingress, egress } = s;
        Spec { tier, priority, subject, ingress: convert(ingress), egress: convert(egress) }
    }
}

impl From<AdminSpec> for Spec {
    fn from(s: AdminSpec) -> Spec {
        let AdminSpec { priority, subject, ingress, egress } = s;
        Spec { tier: None, priority, subject, ingress: convert(ingress), egress: convert(egress) }
    }
}

impl From<BaselineSpec> for Spec {
    fn from(s: BaselineSpec) -> Spec {
        let BaselineSpec { subject, ingress, egress } = s;
        Spec { tier: None, priority: None, subject, ingress: convert(ingress), egress: convert(egress) }
    }
}

fn convert<T: Into<U>, U>(list: Vec<T>) -> Vec<U> {
    list.into_iter().map(T::into).collect()
}

impl From<IngressPeer> for Peer {
    fn from(p: IngressPeer) -> Peer {
        Peer { namespaces: p.namespaces, pods: p.pods, ..Peer::default() }
    }
}

impl From<ClusterIngress> for Rule {
    fn from(r: ClusterIngress) -> Rule {
        let peers = r.from.map(convert);
        Rule { name: r.name, action: r.action, peers, protocols: r.protocols, ports: None }
    }
}

impl From<ClusterEgress> for Rule {
    fn from(r: ClusterEgress) -> Rule {
        Rule { name: r.name, action: r.action, peers: r.to, protocols: r.protocols, ports: None }
    }
}

impl From<AdminIngress> for Rule {
    fn from(r: AdminIngress) -> Rule {
        Rule { name: r.name, action: r.action, peers: r.from.map(convert), protocols: None, ports: r.ports }
    }
}

impl From<AdminEgress> for Rule {
    fn from(r: AdminEgress) -> Rule {
        Rule { name: r.name, action: r.action, peers: r.to, protocols: None, ports: r.ports }
    }
}
