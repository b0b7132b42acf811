//! What the front end keeps of the objects that it read: validated, defaulted, free of YAML.
//!
//! The reader (`read`) makes these from `k8s-openapi` types after validating them as the API server does, so nothing
//! here can be malformed: a selector has only known operators, a port range is not inverted, an `except` is inside its
//! block. The meaning of the fields is the Kubernetes API's (`networking.k8s.io/v1`, `policy.networking.k8s.io`).

use crate::source::Span;
use netpolc_ir::addr::{Block, Cidr};
use netpolc_ir::ports::Transport;
use netpolc_ir::unit::{Action, Tier};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The label that the API server puts on every namespace, with the namespace's name as value.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Most addresses of a pod or a node: as many as a bundle may say of one.
pub const MAX_ADDRESSES: usize = 256;

/// One requirement of a selector on one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The label is present and its value is one of these (never empty).
    In(String, BTreeSet<String>),
    /// The label is absent or its value is none of these (never empty).
    NotIn(String, BTreeSet<String>),
    /// The label is present.
    Exists(String),
    /// The label is absent.
    DoesNotExist(String),
}

impl Requirement {
    /// Whether labels fulfil the requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

/// A label selector: all requirements must hold, so the empty selector matches everything. Requirements are sorted and
/// unique, so selectors that are written differently but demand the same compare equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Selector {
    requirements: BTreeSet<Requirement>,
}

impl Selector {
    /// A selector of these requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Selector {
        Selector { requirements: requirements.into_iter().collect() }
    }

    /// Whether labels fulfil every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }

    /// The requirements, sorted.
    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.requirements.iter()
    }

    /// Whether the selector demands nothing and so matches everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }
}

/// A Namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels; [`NAMESPACE_NAME_LABEL`] is always there.
    pub labels: Labels,
    /// Where it stands.
    pub at: Span,
}

/// A Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses of type InternalIP and ExternalIP.
    pub addrs: Vec<IpAddr>,
    /// Its pod ranges (`spec.podCIDRs`).
    pub pod_cidrs: Vec<Cidr>,
    /// Where it stands.
    pub at: Span,
}

/// A port that a container declares.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPort {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its protocol; TCP where none is written.
    pub transport: Transport,
    /// Its number, 1 to 65535.
    pub port: u16,
}

/// The phase of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The object has no status at all, as in a repository: it stands for the pod to come.
    Planned,
    /// Pending, Running or Unknown.
    Live,
    /// Succeeded or Failed: its address can be given to another pod.
    Finished,
}

/// A Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// The node it runs on, if it is scheduled.
    pub node: Option<String>,
    /// Whether it shares its node's network namespace.
    pub host_network: bool,
    /// Its phase.
    pub phase: Phase,
    /// Its addresses (`status.podIPs`, or `status.podIP`), at most one for each family is usual but not demanded.
    pub ips: Vec<IpAddr>,
    /// The ports of its containers and of its sidecars (init containers with `restartPolicy: Always`), in order.
    pub ports: Vec<ContainerPort>,
    /// Kind and name of its controllers.
    pub owners: Vec<(String, String)>,
    /// Where it stands.
    pub at: Span,
}

/// A Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its kind.
    pub kind: String,
    /// Its pod selector, where it has one.
    pub selector: Option<Selector>,
    /// Kind and name of its controllers.
    pub owners: Vec<(String, String)>,
    /// The pod of its template, with the workload's namespace and name, phase `Planned` and no addresses.
    pub template: Pod,
}

/// A NetworkPolicy of `networking.k8s.io/v1`, defaults applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where the object stands.
    pub at: Span,
    /// Which pods of its namespace it selects.
    pub subject: Selector,
    /// Its ingress rules, if `policyTypes` (defaulted) lists Ingress: then it isolates, however few rules it has.
    pub ingress: Option<Vec<PolicyRule>>,
    /// Its egress rules, if `policyTypes` (defaulted) lists Egress.
    pub egress: Option<Vec<PolicyRule>>,
}

/// A rule of a [`Policy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// Where it stands.
    pub at: Span,
    /// Its field path, as `spec.ingress[0]`.
    pub path: String,
    /// `from` or `to`; `None` where missing or empty: everyone, outside of the cluster too.
    pub peers: Option<Vec<PolicyPeer>>,
    /// `None` where missing or empty: every port and protocol.
    pub ports: Option<Vec<PolicyPort>>,
}

/// A peer of a [`PolicyRule`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyPeer {
    /// Where it stands.
    pub at: Span,
    /// What it matches.
    pub kind: PeerKind,
}

/// What a peer matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKind {
    /// Pods by labels.
    Pods {
        /// Labels of the pod's namespace; `None` = the policy's own namespace.
        namespaces: Option<Selector>,
        /// Labels of the pod (the empty selector where the field is missing).
        pods: Selector,
    },
    /// Addresses.
    Block(Block),
}

/// An entry of `ports`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyPort {
    /// Destination ports `lo..=hi`; `0..=65535` where only the protocol is given.
    Range {
        /// The protocol.
        transport: Transport,
        /// First port.
        lo: u16,
        /// Last port, inclusive.
        hi: u16,
    },
    /// The container port of this name on each destination pod.
    Named {
        /// The protocol; `None` (only from AdminNetworkPolicy `namedPort`) = that of the container port.
        transport: Option<Transport>,
        /// The name.
        name: String,
    },
}

/// A ClusterNetworkPolicy (`v1alpha2`), or what an AdminNetworkPolicy or BaselineAdminNetworkPolicy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// Its kind as written.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub at: Span,
    /// `Admin` or `Baseline`, never `NetworkPolicy`.
    pub tier: Tier,
    /// Lower numbers are asked first. 0 for a BaselineAdminNetworkPolicy.
    pub priority: u32,
    /// Which pods it is about: labels of the namespace and of the pod.
    pub subject: (Selector, Selector),
    /// Ingress rules, in order.
    pub ingress: Vec<ClusterRule>,
    /// Egress rules, in order.
    pub egress: Vec<ClusterRule>,
}

/// A rule of a [`ClusterPolicy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRule {
    /// Where it stands.
    pub at: Span,
    /// Its field path, as `spec.ingress[0]`.
    pub path: String,
    /// Allow is `Accept`.
    pub action: Action,
    /// Never empty.
    pub peers: Vec<ClusterPeer>,
    /// `None` = every port and protocol.
    pub ports: Option<Vec<PolicyPort>>,
}

/// A peer of a [`ClusterRule`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterPeer {
    /// Pods by labels of their namespace and their own.
    Pods(Selector, Selector),
    /// Nodes by labels: matches the node's own addresses.
    Nodes(Selector),
    /// Blocks of addresses (pods inside included).
    Networks(Vec<Cidr>),
    /// A form that this version does not know: matches nothing for Accept, everyone for Deny and Pass.
    Unknown,
}

/// Everything that was read, in the order of reading. Namespaces that are only mentioned are not here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Objects {
    /// Namespaces.
    pub namespaces: Vec<Namespace>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Workloads.
    pub workloads: Vec<Workload>,
    /// NetworkPolicies.
    pub policies: Vec<Policy>,
    /// ClusterNetworkPolicies and their forerunners.
    pub cluster_policies: Vec<ClusterPolicy>,
}
