//! What of a cluster's objects the rules of one node depend on: the rest need not be compiled.
//!
//! A node judges the traffic of its own pods. So a policy matters only if it selects one of them; a pod of another node
//! only if a peer of such a policy matches it, for otherwise it is an address like any outside of the cluster; a namespace
//! only if a pod of it matters; another node only if a peer of such a policy is a node; a label
//! only if a selector of such a policy asks for it; a port's name only if such a policy has it.
//!
//! Why it is sound: nothing that is left out could be told apart by a selector, a block or a named port of a policy that
//! stays. The tests prove rules that were compiled this way against all objects. What it costs: a look at each policy, at each
//! pod of a namespace that a peer's selector lets through, and for pods that are alike one at each such selector. Most
//! namespaces matter to no policy of a node, so their pods are not looked at, and only what stays is copied.

use crate::alike::{Seen, owned};
use netpolc_frontend::model::DEFAULT_NODE;
use netpolc_frontend::objects::{
    ClusterPeer, ClusterPolicy, ContainerPort, Labels, NAMESPACE_NAME_LABEL, Namespace, Node, Objects,
    PeerKind, Phase, Pod, Policy, PolicyPort, Selector,
};
use netpolc_frontend::source::Sources;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// A pod that counts.
#[derive(Debug)]
pub struct BoundPod<'a> {
    /// Its object.
    pub pod: &'a Pod,
    /// The addresses that count, whatever the object shows.
    pub ips: Cow<'a, [IpAddr]>,
    /// Its node, whatever the object says.
    pub node: Option<&'a str>,
}

impl BoundPod<'_> {
    /// Whether it is a pod of this node.
    pub fn is_on(&self, node: &str) -> bool {
        self.node.unwrap_or(DEFAULT_NODE) == node
    }
}

/// The pods that count, each address once, where they are kept. In the order of `namespace/name`.
pub trait Pods: std::fmt::Debug {
    /// The namespaces that have any.
    fn namespaces(&self) -> Vec<&str>;
    /// Those of a namespace.
    fn of_namespace(&self, namespace: &str) -> Vec<BoundPod<'_>>;
    /// Those of the node that the rules are for.
    fn local(&self) -> Vec<BoundPod<'_>>;
}

/// All objects of a cluster, each where it is kept.
#[derive(Debug)]
pub struct Cluster<'a> {
    /// The node that the rules are for.
    pub node: &'a str,
    /// Namespaces.
    pub namespaces: Vec<&'a Namespace>,
    /// Nodes.
    pub nodes: Vec<Cow<'a, Node>>,
    /// Pods.
    pub pods: &'a dyn Pods,
    /// NetworkPolicies.
    pub policies: Vec<&'a Policy>,
    /// ClusterNetworkPolicies.
    pub cluster_policies: Vec<&'a ClusterPolicy>,
}

/// What the rules of a node depend on, and the names of the policies' sources.
#[derive(Debug, Clone)]
pub struct Slice {
    /// The objects.
    pub objects: Objects,
    /// Objects of the API have no texts; the policies' sources bear their names.
    pub sources: Sources,
    /// What rules can see of pods.
    pub seen: Seen,
}

/// Whom a peer matches: its namespaces by labels or by name, and its pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Namespaces {
    Of(String),
    Matching(Selector),
}

/// What the policies that stay ask for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    peers: BTreeSet<(Namespaces, Selector)>,
    keys: BTreeSet<String>,
    port_names: BTreeSet<String>,
    /// A named port is looked up on whatever pod has an address.
    pub(crate) every_pod: bool,
    /// A peer is a node.
    nodes: bool,
}

impl Asked {
    fn selector(&mut self, selector: &Selector) {
        use netpolc_frontend::objects::Requirement::{DoesNotExist, Exists, In, NotIn};
        self.keys.extend(selector.requirements().map(|r| match r {
            In(key, _) | NotIn(key, _) | Exists(key) | DoesNotExist(key) => key.clone(),
        }));
    }

    fn peer(&mut self, namespaces: Namespaces, pods: &Selector) {
        self.selector(pods);
        self.peers.insert((namespaces, pods.clone()));
    }

    fn policy(&mut self, policy: &Policy) {
        self.selector(&policy.subject);
        for rule in policy.ingress.iter().flatten().chain(policy.egress.iter().flatten()) {
            let mut by_address = rule.peers.is_none();
            for peer in rule.peers.iter().flatten() {
                match &peer.kind {
                    PeerKind::Pods { namespaces: None, pods } => {
                        self.peer(Namespaces::Of(policy.namespace.clone()), pods);
                    }
                    PeerKind::Pods { namespaces: Some(selector), pods } => {
                        self.peer(Namespaces::Matching(selector.clone()), pods);
                    }
                    PeerKind::Block(_) => by_address = true,
                }
            }
            self.ports(rule.ports.as_deref(), by_address);
        }
    }

    fn cluster_policy(&mut self, policy: &ClusterPolicy) {
        self.selector(&policy.subject.1);
        for rule in policy.ingress.iter().chain(&policy.egress) {
            let mut by_address = false;
            for peer in &rule.peers {
                match peer {
                    ClusterPeer::Pods(of, pods) => self.peer(Namespaces::Matching(of.clone()), pods),
                    ClusterPeer::Nodes(_) => (self.nodes, by_address) = (true, true),
                    ClusterPeer::Networks(_) | ClusterPeer::Unknown => by_address = true,
                }
            }
            self.ports(rule.ports.as_deref(), by_address);
        }
    }

    /// The labels and ports of a pod that the policies can see.
    pub(crate) fn seen(&self, pod: &Pod) -> (Labels, Vec<ContainerPort>) {
        let labels = pod.labels.iter().filter(|(key, _)| self.keys.contains(*key));
        let named = |p: &&ContainerPort| p.name.as_ref().is_some_and(|name| self.port_names.contains(name));
        let labels = labels.map(|(key, value)| (key.clone(), value.clone())).collect();
        (labels, pod.ports.iter().filter(named).cloned().collect())
    }

    /// `by_address`: whether the rule has peers that are no pods by labels.
    fn ports(&mut self, ports: Option<&[PolicyPort]>, by_address: bool) {
        for port in ports.into_iter().flatten() {
            if let PolicyPort::Named { name, .. } = port {
                self.port_names.insert(name.clone());
                self.every_pod |= by_address;
            }
        }
    }
}

/// What the rules of the cluster's node depend on.
pub fn slice(cluster: &Cluster<'_>) -> Slice {
    let namespaces = namespaces(cluster);
    let of_namespace =
        |name: &str, selector: &Selector| namespaces.get(name).is_some_and(|labels| selector.matches(labels));
    let mut local: BTreeMap<&str, Vec<BoundPod<'_>>> = BTreeMap::new();
    for bound in cluster.pods.local() {
        local.entry(&bound.pod.namespace).or_default().push(bound);
    }
    let any = |pods: &[BoundPod<'_>], selector: &Selector| {
        pods.iter().any(|bound| selector.matches(&bound.pod.labels))
    };
    let selects = |p: &&&Policy| local.get(p.namespace.as_str()).is_some_and(|pods| any(pods, &p.subject));
    let policies: Vec<&Policy> = cluster.policies.iter().filter(selects).copied().collect();
    let selects = |p: &&&ClusterPolicy| {
        let (of, selector) = &p.subject;
        local.iter().any(|(namespace, pods)| of_namespace(namespace, of) && any(pods, selector))
    };
    let cluster_policies: Vec<&ClusterPolicy> =
        cluster.cluster_policies.iter().filter(selects).copied().collect();
    let mut asked = Asked::default();
    policies.iter().for_each(|policy| asked.policy(policy));
    cluster_policies.iter().for_each(|policy| asked.cluster_policy(policy));

    let mut selectors: HashMap<&str, Vec<&Selector>> = HashMap::new();
    for namespace in namespaces.keys() {
        let lets = |of: &Namespaces| match of {
            Namespaces::Of(name) => name == namespace,
            Namespaces::Matching(selector) => of_namespace(namespace, selector),
        };
        let through = asked.peers.iter().filter(|(of, _)| lets(of)).map(|(_, pods)| pods);
        selectors.insert(namespace, through.collect());
    }
    let mut pods: Vec<Pod> = Vec::new();
    for namespace in cluster.pods.namespaces() {
        let selectors = selectors.get(namespace).map(Vec::as_slice).unwrap_or_default();
        if selectors.is_empty() && !asked.every_pod {
            pods.extend(local.get(namespace).into_iter().flatten().map(|bound| seen_by(&asked, bound)));
            continue;
        }
        let mut alike: HashMap<Vec<Label<'_>>, bool> = HashMap::new();
        let mut matches = |labels| {
            let seen = Labels::iter(labels).filter(|(key, _)| asked.keys.contains(*key)).collect();
            let any = || selectors.iter().any(|selector| selector.matches(labels));
            *alike.entry(seen).or_insert_with(any)
        };
        for bound in cluster.pods.of_namespace(namespace) {
            if asked.every_pod || bound.is_on(cluster.node) || matches(&bound.pod.labels) {
                pods.push(seen_by(&asked, &bound));
            }
        }
    }
    let mut sources = Sources::default();
    sources.add("API server", Vec::new());
    let with_pods: BTreeSet<&str> = pods.iter().map(|pod| pod.namespace.as_str()).collect();
    let namespaces = cluster.namespaces.iter().filter(|n| with_pods.contains(n.name.as_str()));
    let nodes = cluster.nodes.iter().filter(|node| asked.nodes || node.name == cluster.node);
    let objects = Objects {
        namespaces: namespaces.copied().cloned().collect(),
        nodes: nodes.map(|node| node.clone().into_owned()).collect(),
        pods,
        workloads: Vec::new(),
        policies: policies.into_iter().map(|policy| named(policy, &mut sources)).collect(),
        cluster_policies: (cluster_policies.into_iter())
            .map(|policy| cluster_named(policy, &mut sources))
            .collect(),
    };
    let selectors = owned(&selectors);
    let seen = Seen { node: cluster.node.to_owned(), asked, selectors };
    Slice { objects, sources, seen }
}

/// Key and value.
type Label<'a> = (&'a String, &'a String);

/// A pod with no more than the policies that stay can see of it.
fn seen_by(asked: &Asked, bound: &BoundPod<'_>) -> Pod {
    let BoundPod { pod, ips, node } = bound;
    let (labels, ports) = asked.seen(pod);
    Pod {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        labels,
        node: node.map(str::to_owned),
        host_network: pod.host_network,
        // One that counts is live, even if its object says otherwise: its sandbox is there.
        phase: Phase::Live,
        ips: ips.to_vec(),
        ports,
        owners: pod.owners.clone(),
        at: pod.at,
    }
}

/// A policy whose places are in a source of its name.
fn named(policy: &Policy, sources: &mut Sources) -> Policy {
    let mut policy = policy.clone();
    let id = sources.add(format!("NetworkPolicy {}/{}", policy.namespace, policy.name), Vec::new());
    policy.at.source = id;
    policy.ingress.iter_mut().chain(&mut policy.egress).flatten().for_each(|r| r.at.source = id);
    policy
}

fn cluster_named(policy: &ClusterPolicy, sources: &mut Sources) -> ClusterPolicy {
    let mut policy = policy.clone();
    let id = sources.add(format!("ClusterNetworkPolicy {}", policy.name), Vec::new());
    policy.at.source = id;
    policy.ingress.iter_mut().chain(&mut policy.egress).for_each(|r| r.at.source = id);
    policy
}

/// The labels of all namespaces, those too that only a pod mentions.
fn namespaces<'a>(cluster: &Cluster<'a>) -> BTreeMap<&'a str, Cow<'a, Labels>> {
    let told = cluster.namespaces.iter().map(|n| (n.name.as_str(), Cow::Borrowed(&n.labels)));
    let mut namespaces: BTreeMap<&str, Cow<'_, Labels>> = told.collect();
    for name in cluster.pods.namespaces() {
        namespaces.entry(name).or_insert_with(|| Cow::Owned(Labels::new()));
    }
    for (name, labels) in &mut namespaces {
        if !labels.contains_key(NAMESPACE_NAME_LABEL) {
            labels.to_mut().insert(NAMESPACE_NAME_LABEL.to_owned(), (*name).to_owned());
        }
    }
    namespaces
}

#[cfg(test)]
mod tests;
