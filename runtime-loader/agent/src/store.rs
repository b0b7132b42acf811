//! Everything that is known: what the API server told, and what the CNI plugin told.

mod bound;
mod left;
mod view;

use crate::log;
use crate::sandboxes::Sandboxes;
use crate::table::Table;
use crate::trim::{NodeData, PodData, PolicyData};
use bound::Counts;
use netpolc_bundle::wire::Sandbox;
use netpolc_frontend::objects::{self, ClusterPolicy, NAMESPACE_NAME_LABEL, Namespace, Phase, Policy};
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    /// Pods of this node whose object is gone, or another one's by now, though their sandbox is not: as they were.
    left: BTreeMap<String, PodData>,
    /// Which pods' objects show an address.
    showing: HashMap<IpAddr, Vec<String>>,
    /// The pods that count, as of when it was asked last what may have changed.
    that_count: Counts,
    touched: Touched,
    /// What the CNI plugin told.
    sandboxes: Sandboxes,
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
            left: BTreeMap::new(),
            showing: HashMap::new(),
            that_count: Counts::default(),
            touched: Touched { every_pod: true, others: true, ..Touched::default() },
            sandboxes,
        }
    }

    /// Takes in what a watch told; says whether anything is different now.
    pub fn take(&mut self, told: Told) -> bool {
        let one_pod = matches!(&told, Told::Is(Object::Pod(_)) | Told::Gone(Kind::Pods, _));
        // A pod may not have the address of a node, nor count before its namespace is known.
        let every_pod = matches!(
            &told,
            Told::Is(Object::Node(_))
                | Told::Gone(Kind::Nodes | Kind::Namespaces, _)
                | Told::Complete(Kind::Pods | Kind::Nodes | Kind::Namespaces)
        );
        let news = match told {
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
        };
        self.touched.others |= news && !one_pod;
        self.touched.every_pod |= news && every_pod;
        news
    }

    fn put_pod(&mut self, data: PodData) -> bool {
        let key = full_name(&data.pod);
        // Such a pod has the addresses of its node, and no policy is about it.
        if data.pod.host_network {
            return self.remove_pod(&key);
        }
        if self.pods.get(&key).is_some_and(|other| other.uid != data.uid) {
            self.leave(&key);
        }
        self.come_back(&key, &data.uid);
        let addrs = |data: &PodData| data.pod.ips.clone();
        let (before, after) = (self.pods.get(&key).map(addrs).unwrap_or_default(), addrs(&data));
        let news = self.pods.put(key.clone(), data);
        if news {
            self.shows(&key, &before, &after);
        }
        news
    }

    fn remove_pod(&mut self, key: &str) -> bool {
        self.leave(key);
        let gone = self.pods.remove(key);
        if let Some(data) = &gone {
            self.shows(key, &data.pod.ips, &[]);
        }
        gone.is_some()
    }

    /// The object of a pod shows other addresses than before, or is otherwise different.
    fn shows(&mut self, key: &str, before: &[IpAddr], after: &[IpAddr]) {
        for addr in before.iter().filter(|addr| !after.contains(addr)) {
            if let Some(pods) = self.showing.get_mut(addr) {
                pods.retain(|pod| pod != key);
                if pods.is_empty() {
                    self.showing.remove(addr);
                }
            }
        }
        for addr in after.iter().filter(|addr| !before.contains(addr)) {
            let pods = self.showing.entry(*addr).or_default();
            if !pods.iter().any(|pod| pod == key) {
                pods.push(key.to_owned());
            }
        }
        self.touch([key.to_owned()], &[before, after].concat());
    }

    /// Pods of other nodes count once their namespace is known.
    fn put_namespace(&mut self, namespace: Namespace) -> bool {
        let name = namespace.name.clone();
        if self.namespaces.get(&name).is_none() {
            let keys: Vec<String> = self.pods.of_namespace(&name).map(|(key, _)| key.to_owned()).collect();
            self.touch(keys, &[]);
        }
        self.namespaces.put(name, namespace)
    }

    fn put_node(&mut self, node: NodeData) -> bool {
        let objects::Node { name, addrs, .. } = node.node.clone();
        let news = self.nodes.put(name.clone(), node);
        let has_one = |s: &&Sandbox| s.addresses.iter().any(|addr| addrs.contains(addr));
        for sandbox in self.sandboxes.iter().filter(|_| news).filter(has_one) {
            let fields: [(&str, &dyn std::fmt::Display); 2] = [("node", &name), ("pod", &sandbox.pod)];
            log::warn("a Node object has the address of a pod of this node; it stays the pod's", &fields);
        }
        news
    }

    fn put(&mut self, object: Object) -> bool {
        match object {
            Object::Namespace(n) => self.put_namespace(*n),
            Object::Node(n) => self.put_node(*n),
            Object::Pod(p) => self.put_pod(*p),
            Object::Policy(p) => self.policies.put(format!("{}/{}", p.policy.namespace, p.policy.name), *p),
            Object::ClusterPolicy(p) => self.cluster_policies.put(p.policy.name.clone(), *p),
        }
    }

    fn remove(&mut self, kind: Kind, key: &str) -> bool {
        match kind {
            Kind::Namespaces => self.namespaces.remove(key).is_some(),
            Kind::Nodes => self.nodes.remove(key).is_some(),
            Kind::Pods => self.remove_pod(key),
            Kind::Policies => self.policies.remove(key).is_some(),
            Kind::ClusterPolicies => self.cluster_policies.remove(key).is_some(),
        }
    }

    fn complete(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::Namespaces => self.namespaces.end(),
            Kind::Nodes => self.nodes.end(),
            Kind::Pods => {
                self.leave_unseen();
                let news = self.pods.end();
                if news {
                    self.showing.clear();
                    for (key, data) in self.pods.iter() {
                        for addr in &data.pod.ips {
                            self.showing.entry(*addr).or_default().push(key.to_owned());
                        }
                    }
                }
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

    /// The name of the node that all of this is for.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Whether it is a node of the cluster.
    pub fn knows_its_node(&self) -> bool {
        self.nodes.get(&self.node).is_some()
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

    /// Whether the namespace of a sandbox's pod was told.
    pub fn knows_namespace(&self, sandbox: &Sandbox) -> bool {
        let namespace = sandbox.pod.split_once('/').map_or("", |(namespace, _)| namespace);
        self.namespaces.get(namespace).is_some()
    }

    /// All sandboxes.
    pub fn sandboxes(&self) -> &Sandboxes {
        &self.sandboxes
    }

    /// A sandbox was made.
    ///
    /// # Errors
    /// If there are more than a node can have.
    pub fn add(&mut self, sandbox: Sandbox) -> Result<(), String> {
        let (pod, addresses) = (sandbox.pod.clone(), sandbox.addresses.clone());
        let before: Vec<Sandbox> = self.sandboxes.iter().cloned().collect();
        self.sandboxes.add(sandbox)?;
        let gone = before
            .into_iter()
            .filter(|s| self.sandboxes.get(&s.container, &s.interface).is_none_or(|now| now != s));
        for sandbox in gone.collect::<Vec<_>>() {
            self.touch([sandbox.pod], &sandbox.addresses);
        }
        self.touch([pod], &addresses);
        self.forget_left();
        Ok(())
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
        self.touch([sandbox.pod.clone()], &sandbox.addresses);
        self.forget_left();
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

    /// The policies that select a pod.
    pub fn selecting(&self, pod: &objects::Pod) -> Vec<PolicyName<'_>> {
        let of_namespace = |p: &&PolicyData<Policy>| p.policy.namespace == pod.namespace;
        let plain =
            self.policies.values().filter(of_namespace).filter(|p| p.policy.subject.matches(&pod.labels));
        let mut names: Vec<PolicyName<'_>> =
            plain.map(|p| (Some(p.policy.namespace.as_str()), p.policy.name.as_str())).collect();
        if !self.cluster_policies.is_empty() {
            let mut labels =
                self.namespaces.get(&pod.namespace).map(|n| n.labels.clone()).unwrap_or_default();
            labels.entry(NAMESPACE_NAME_LABEL.to_owned()).or_insert_with(|| pod.namespace.clone());
            let selects = |p: &&PolicyData<ClusterPolicy>| {
                let (namespaces, pods) = &p.policy.subject;
                namespaces.matches(&labels) && pods.matches(&pod.labels)
            };
            names.extend(
                self.cluster_policies.values().filter(selects).map(|p| (None, p.policy.name.as_str())),
            );
        }
        names
    }

    /// These pods may count otherwise than before, and so may those that show their addresses.
    fn touch(&mut self, keys: impl IntoIterator<Item = String>, addrs: &[IpAddr]) {
        let touched = &mut self.touched.pods;
        touched.extend(keys);
        touched.extend(addrs.iter().filter_map(|addr| self.showing.get(addr)).flatten().cloned());
    }
}

/// A policy's namespace, if it has one, and name.
pub type PolicyName<'a> = (Option<&'a str>, &'a str);

/// What may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    /// Which addresses these pods have, or what labels.
    pub pods: BTreeSet<String>,
    /// The same of all pods.
    pub every_pod: bool,
    /// Something else than pods.
    pub others: bool,
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
