//! Everything that is known: what the API server told, and what the CNI plugin told.

use crate::relevant::{BoundPod, Cluster};
use crate::sandboxes::Sandboxes;
use crate::table::Table;
use crate::trim::{NodeData, PodData, PolicyData};
use netpolc_bundle::wire::Sandbox;
use netpolc_frontend::objects::{self, ClusterPolicy, Namespace, Phase, Policy};
use netpolc_frontend::source::{SourceId, Span};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

/// The kinds that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Namespaces.
    Namespaces,
    /// Nodes.
    Nodes,
    /// Pods.
    Pods,
    /// NetworkPolicies.
    Policies,
    /// ClusterNetworkPolicies.
    ClusterPolicies,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] =
        [Kind::Namespaces, Kind::Nodes, Kind::Pods, Kind::Policies, Kind::ClusterPolicies];

    /// Its name in paths of the API.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Namespaces => "namespaces",
            Kind::Nodes => "nodes",
            Kind::Pods => "pods",
            Kind::Policies => "networkpolicies",
            Kind::ClusterPolicies => "clusternetworkpolicies",
        }
    }
}

/// An object that was read.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each variant is the kind of its name")]
pub enum Object {
    Namespace(Box<Namespace>),
    Node(Box<NodeData>),
    Pod(Box<PodData>),
    Policy(Box<PolicyData<Policy>>),
    ClusterPolicy(Box<PolicyData<ClusterPolicy>>),
}

/// What a watch tells.
#[derive(Debug, Clone)]
pub enum Told {
    /// A list begins, or begins anew.
    Begin(Kind),
    /// An object is as given.
    Is(Object),
    /// An object is gone, or cannot be read.
    Gone(Kind, String),
    /// The list is complete.
    Complete(Kind),
}

/// What is known of the pod of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// The API server told of it.
    Yes,
    /// Not yet.
    No,
    /// It has succeeded or failed.
    Finished,
}

/// Everything that is known.
#[derive(Debug)]
pub struct Store {
    node: String,
    namespaces: Table<Namespace>,
    nodes: Table<NodeData>,
    pods: Table<PodData>,
    policies: Table<PolicyData<Policy>>,
    cluster_policies: Table<PolicyData<ClusterPolicy>>,
    /// What the CNI plugin told.
    pub sandboxes: Sandboxes,
}

impl Store {
    /// Nothing is known yet but the sandboxes.
    pub fn new(node: &str, sandboxes: Sandboxes) -> Store {
        Store {
            node: node.to_owned(),
            namespaces: Table::default(),
            nodes: Table::default(),
            pods: Table::default(),
            policies: Table::default(),
            cluster_policies: Table::default(),
            sandboxes,
        }
    }

    /// Takes in what a watch told; says whether anything is different now.
    pub fn take(&mut self, told: Told) -> bool {
        match told {
            Told::Begin(kind) => {
                match kind {
                    Kind::Namespaces => self.namespaces.begin(),
                    Kind::Nodes => self.nodes.begin(),
                    Kind::Pods => self.pods.begin(),
                    Kind::Policies => self.policies.begin(),
                    Kind::ClusterPolicies => self.cluster_policies.begin(),
                }
                false
            }
            Told::Is(object) => self.put(object),
            Told::Gone(kind, key) => self.remove(kind, &key),
            Told::Complete(kind) => self.complete(kind),
        }
    }

    fn put(&mut self, object: Object) -> bool {
        match object {
            Object::Namespace(n) => self.namespaces.put(n.name.clone(), *n),
            Object::Node(n) => self.nodes.put(n.node.name.clone(), *n),
            // Such a pod has the addresses of its node, and no policy is about it.
            Object::Pod(p) if p.pod.host_network => self.pods.remove(&full_name(&p.pod)).is_some(),
            Object::Pod(p) => self.pods.put(full_name(&p.pod), *p),
            Object::Policy(p) => self.policies.put(format!("{}/{}", p.policy.namespace, p.policy.name), *p),
            Object::ClusterPolicy(p) => self.cluster_policies.put(p.policy.name.clone(), *p),
        }
    }

    fn remove(&mut self, kind: Kind, key: &str) -> bool {
        match kind {
            Kind::Namespaces => self.namespaces.remove(key).is_some(),
            Kind::Nodes => self.nodes.remove(key).is_some(),
            Kind::Pods => self.pods.remove(key).is_some(),
            Kind::Policies => self.policies.remove(key).is_some(),
            Kind::ClusterPolicies => self.cluster_policies.remove(key).is_some(),
        }
    }

    fn complete(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::Namespaces => self.namespaces.end(),
            Kind::Nodes => self.nodes.end(),
            Kind::Pods => {
                let news = self.pods.end();
                let (pods, node) = (&self.pods, self.node.as_str());
                self.sandboxes.compare_restored(|s| known(pods, node, s) != Known::No);
                news
            }
            Kind::Policies => self.policies.end(),
            Kind::ClusterPolicies => self.cluster_policies.end(),
        }
    }

    /// Whether every list was complete once. Before, what is known could be too little or too much, so nothing may be
    /// made of it.
    pub fn is_complete(&self) -> bool {
        self.incomplete().is_empty()
    }

    /// The kinds that are still being listed.
    pub fn incomplete(&self) -> Vec<Kind> {
        let complete = |kind: &Kind| match kind {
            Kind::Namespaces => self.namespaces.is_complete(),
            Kind::Nodes => self.nodes.is_complete(),
            Kind::Pods => self.pods.is_complete(),
            Kind::Policies => self.policies.is_complete(),
            Kind::ClusterPolicies => self.cluster_policies.is_complete(),
        };
        Kind::ALL.into_iter().filter(|kind| !complete(kind)).collect()
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeData> {
        self.nodes.values()
    }

    /// How many pods, policies and policies that could not be read there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        let faults = self.policies.values().filter(|p| p.fault.is_some()).count()
            + self.cluster_policies.values().filter(|p| p.fault.is_some()).count();
        (self.pods.len(), self.policies.len() + self.cluster_policies.len(), faults)
    }

    /// What is known of the pod of a sandbox.
    pub fn known(&self, sandbox: &Sandbox) -> Known {
        known(&self.pods, &self.node, sandbox)
    }

    /// A sandbox is about to end; says whether anything is different now.
    pub fn end(&mut self, asked: &Sandbox) -> bool {
        let known = self.sandboxes.remove(&asked.container, &asked.interface);
        let was_known = known.is_some();
        if !was_known && self.sandboxes.of_pod(&asked.pod).next().is_some() {
            // The end of an earlier sandbox, told again: the pod's present one lives on.
            return false;
        }
        self.ended(&known.unwrap_or_else(|| asked.clone())) || was_known
    }

    /// All sandboxes but these have ended; says whether anything is different now.
    pub fn keep(&mut self, valid: &[(String, String)]) -> bool {
        let gone = self.sandboxes.keep(valid);
        gone.iter().for_each(|sandbox| {
            self.ended(sandbox);
        });
        !gone.is_empty()
    }

    /// The pod's object shows its addresses for some time yet.
    fn ended(&mut self, sandbox: &Sandbox) -> bool {
        let Some(pod) = self.pods.get(&sandbox.pod).filter(|p| p.is(sandbox.uid.as_deref())) else {
            return false;
        };
        self.sandboxes.end(&sandbox.pod, &pod.uid, &sandbox.addresses);
        pod.pod.ips.iter().any(|ip| sandbox.addresses.contains(ip))
    }

    /// Writes down the sandboxes.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn save(&mut self) -> std::io::Result<()> {
        if self.pods.is_complete() {
            let pods = &self.pods;
            self.sandboxes.forget_ended(|pod, uid| pods.get(pod).is_none_or(|p| p.uid != uid));
        }
        self.sandboxes.save()
    }

    /// All objects, each where it is kept.
    pub fn cluster(&self) -> Cluster<'_> {
        let mut nodes: Vec<Cow<'_, objects::Node>> =
            self.nodes.values().map(|n| Cow::Borrowed(&n.node)).collect();
        if self.nodes.get(&self.node).is_none() {
            let at = Span { source: SourceId(0), start: 0, end: 0 };
            let (labels, addrs, pod_cidrs) = Default::default();
            nodes.push(Cow::Owned(objects::Node { name: self.node.clone(), labels, addrs, pod_cidrs, at }));
        }
        Cluster {
            namespaces: self.namespaces.values().collect(),
            nodes,
            pods: self.bound_pods(),
            policies: self.policies.values().map(|data| &data.policy).collect(),
            cluster_policies: self.cluster_policies.values().map(|data| &data.policy).collect(),
        }
    }

    /// The pods that count, with the addresses that count, each address once.
    fn bound_pods(&self) -> Vec<BoundPod<'_>> {
        let mut told: BTreeMap<&str, Vec<&Sandbox>> = BTreeMap::new();
        let mut sandboxed: HashSet<IpAddr> = HashSet::new();
        for sandbox in self.sandboxes.iter() {
            told.entry(&sandbox.pod).or_default().push(sandbox);
            sandboxed.extend(&sandbox.addresses);
        }
        let of_nodes: HashSet<IpAddr> = self.nodes.values().flat_map(|n| &n.node.addrs).copied().collect();
        let mut out: Vec<(&PodData, BoundPod<'_>)> = Vec::with_capacity(self.pods.len());
        let mut owners: HashMap<IpAddr, usize> = HashMap::with_capacity(self.pods.len());
        for (key, data) in self.pods.iter().filter(|(_, data)| data.pod.phase != Phase::Finished) {
            let own = self.own_addresses(key, data, told.get(key).map(Vec::as_slice).unwrap_or_default());
            let local = own.is_some();
            let shown = || {
                let ended = |ip: &&IpAddr| self.sandboxes.has_ended(key, &data.uid, ip);
                data.pod.ips.iter().filter(|ip| !sandboxed.contains(*ip) && !ended(ip)).copied().collect()
            };
            let mut ips: Vec<IpAddr> = own.unwrap_or_else(shown);
            ips.retain(|ip| !of_nodes.contains(ip));
            ips.retain(|ip| match owners.get(ip).copied() {
                None => true,
                // The address was given to another pod before the object of the first shows it.
                Some(other) => {
                    let newer = rank(data) > out.get(other).map_or((false, 0), |(other, _)| rank(other));
                    if newer && let Some((_, loser)) = out.get_mut(other) {
                        loser.ips.retain(|i| i != ip);
                    }
                    newer
                }
            });
            if ips.is_empty() {
                continue;
            }
            owners.extend(ips.iter().map(|ip| (*ip, out.len())));
            let node = if local { Some(self.node.as_str()) } else { data.pod.node.as_deref() };
            out.push((data, BoundPod { pod: &data.pod, ips, node }));
        }
        out.into_iter().map(|(_, pod)| pod).collect()
    }

    /// The addresses of a pod of this node, where the CNI plugin told them.
    fn own_addresses(&self, key: &str, data: &PodData, told: &[&Sandbox]) -> Option<Vec<IpAddr>> {
        let mine = told.iter().filter(|s| s.pod == key && is_pod_of(data, &self.node, s));
        let addresses: Vec<IpAddr> = mine.flat_map(|s| &s.addresses).copied().collect();
        (!addresses.is_empty()).then_some(addresses)
    }
}

/// Which of two pods has an address that both show: one that is not being deleted, or else the younger.
fn rank(data: &PodData) -> (bool, i64) {
    (!data.terminating, data.created)
}

fn full_name(pod: &objects::Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// Whether a sandbox of its name is this pod's: not that of an earlier or later pod of the same name, here or elsewhere.
fn is_pod_of(data: &PodData, node: &str, sandbox: &Sandbox) -> bool {
    data.is(sandbox.uid.as_deref()) && data.pod.node.as_deref().is_none_or(|n| n == node)
}

fn known(pods: &Table<PodData>, node: &str, sandbox: &Sandbox) -> Known {
    match pods.get(&sandbox.pod).filter(|data| is_pod_of(data, node, sandbox)) {
        None => Known::No,
        Some(data) if data.pod.phase == Phase::Finished => Known::Finished,
        Some(_) => Known::Yes,
    }
}
