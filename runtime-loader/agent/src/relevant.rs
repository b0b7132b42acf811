//! What of a cluster's objects the rules of one node depend on: the rest need not be compiled.
//!
//! A node judges the traffic of its own pods. So a policy matters only if it selects one of them; a pod of another node
//! only if a peer of such a policy matches it, for otherwise it is an address like any outside of the cluster; a label
//! only if a selector of such a policy asks for it; a port's name only if such a policy has it.
//!
//! Why it is sound: nothing that is left out could be told apart by a selector, a block or a named port of a policy that
//! stays. The tests prove rules that were compiled this way against all objects. What it costs: one look at each pod for
//! each selector, and only one look for pods that are alike.

use netpolc_frontend::model::DEFAULT_NODE;
use netpolc_frontend::objects::{
    ClusterPeer, ClusterPolicy, Labels, NAMESPACE_NAME_LABEL, Objects, PeerKind, Pod, Policy, PolicyPort,
    Selector,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Whom a peer matches: its namespaces by labels or by name, and its pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Namespaces {
    Of(String),
    Matching(Selector),
}

/// What the policies that stay ask for.
#[derive(Debug, Default)]
struct Asked {
    peers: BTreeSet<(Namespaces, Selector)>,
    keys: BTreeSet<String>,
    port_names: BTreeSet<String>,
    /// A named port is looked up on whatever pod has an address.
    every_pod: bool,
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
                    ClusterPeer::Nodes(_) | ClusterPeer::Networks(_) | ClusterPeer::Unknown => {
                        by_address = true;
                    }
                }
            }
            self.ports(rule.ports.as_deref(), by_address);
        }
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

/// Leaves what the rules of a node depend on.
pub fn keep_relevant(objects: &mut Objects, node: &str) {
    let namespaces = namespaces(objects);
    let of_namespace = |pod: &Pod, selector: &Selector| {
        namespaces.get(&pod.namespace).is_some_and(|labels| selector.matches(labels))
    };
    let is_local = |pod: &Pod| pod.node.as_deref().unwrap_or(DEFAULT_NODE) == node;
    let local: Vec<&Pod> = objects.pods.iter().filter(|pod| is_local(pod)).collect();
    objects.policies.retain(|policy| {
        let selects = |pod: &&Pod| pod.namespace == policy.namespace && policy.subject.matches(&pod.labels);
        local.iter().any(selects)
    });
    objects.cluster_policies.retain(|policy| {
        let (of, pods) = &policy.subject;
        local.iter().any(|pod| of_namespace(pod, of) && pods.matches(&pod.labels))
    });
    let mut asked = Asked::default();
    objects.policies.iter().for_each(|policy| asked.policy(policy));
    objects.cluster_policies.iter().for_each(|policy| asked.cluster_policy(policy));
    for pod in &mut objects.pods {
        pod.labels.retain(|key, _| asked.keys.contains(key));
        pod.ports.retain(|port| port.name.as_ref().is_some_and(|name| asked.port_names.contains(name)));
    }
    if asked.every_pod {
        return;
    }
    let mut alike: HashMap<(&str, &Labels), bool> = HashMap::new();
    let keep: Vec<bool> = (objects.pods.iter())
        .map(|pod| {
            let matched = |(of, pods): &(Namespaces, Selector)| {
                let namespace = match of {
                    Namespaces::Of(name) => *name == pod.namespace,
                    Namespaces::Matching(selector) => of_namespace(pod, selector),
                };
                namespace && pods.matches(&pod.labels)
            };
            let any = || asked.peers.iter().any(matched);
            is_local(pod) || *alike.entry((&pod.namespace, &pod.labels)).or_insert_with(any)
        })
        .collect();
    let mut keep = keep.into_iter();
    objects.pods.retain(|_| keep.next().unwrap_or(true));
}

/// The labels of all namespaces, those too that only a pod mentions.
fn namespaces(objects: &Objects) -> BTreeMap<String, Labels> {
    let mut namespaces: BTreeMap<String, Labels> =
        objects.namespaces.iter().map(|n| (n.name.clone(), n.labels.clone())).collect();
    for pod in &objects.pods {
        if !namespaces.contains_key(&pod.namespace) {
            namespaces.insert(pod.namespace.clone(), Labels::new());
        }
    }
    for (name, labels) in &mut namespaces {
        labels.entry(NAMESPACE_NAME_LABEL.to_owned()).or_insert_with(|| name.clone());
    }
    namespaces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{compile, compile_all};
    use netpolc_bundle::Backend;
    use netpolc_frontend::model::resolve;
    use netpolc_frontend::read::read;
    use netpolc_frontend::source::Sources;
    use netpolc_node::{Labels as Names, NodeBuilder, compile as common};
    use serde_json::{Value, json};

    /// Three nodes, two namespaces, pods with and without a named port, and policies of every kind.
    fn cluster() -> (Objects, Sources) {
        let mut items: Vec<Value> = Vec::new();
        for (i, namespace) in ["a", "b"].into_iter().enumerate() {
            let labels = json!({ "team": namespace });
            items.push(json!({ "apiVersion": "v1", "kind": "Namespace",
                "metadata": { "name": namespace, "labels": labels } }));
            for (j, app) in ["web", "db", "job"].into_iter().enumerate() {
                for node in 0..3 {
                    let address = format!("10.{node}.{i}.{}", 10 + j);
                    items.push(json!({ "apiVersion": "v1", "kind": "Pod",
                        "metadata": { "name": format!("{app}-{node}"), "namespace": namespace,
                            "labels": { "app": app, "node": node.to_string(), "hash": format!("h{j}{node}") } },
                        "spec": { "nodeName": format!("n{node}"), "containers": [{ "name": "c", "ports": [
                            { "name": "http", "containerPort": 8000 + node }, { "name": "x", "containerPort": 1 } ] }] },
                        "status": { "phase": "Running", "podIP": address } }));
                }
            }
        }
        for node in 0..3 {
            items.push(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("n{node}") },
                "status": { "addresses": [{ "type": "InternalIP", "address": format!("172.16.0.{}", node + 1) }] } }));
        }
        let web = json!({ "matchLabels": { "app": "web" } });
        let specs = [
            json!({ "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Ingress"],
                "ingress": [{ "from": [{ "podSelector": web }], "ports": [{ "port": "http" }] }] }),
            json!({ "podSelector": { "matchLabels": { "node": "1" } }, "policyTypes": ["Ingress", "Egress"],
                "egress": [{ "to": [{ "namespaceSelector": { "matchLabels": { "team": "b" } } },
                    { "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.2.0.0/16"] } }] }] }),
            json!({ "podSelector": { "matchExpressions": [{ "key": "hash", "operator": "In", "values": ["h22"] }] },
                "policyTypes": ["Egress"],
                "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }], "ports": [{ "port": "http" }] }] }),
        ];
        for (i, spec) in specs.into_iter().enumerate() {
            items.push(json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": { "namespace": "a", "name": format!("p{i}") }, "spec": spec }));
        }
        items.push(json!({ "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": { "name": "c" }, "spec": { "tier": "Admin", "priority": 1,
                "subject": { "namespaces": { "matchLabels": { "team": "b" } } },
                "ingress": [{ "action": "Deny", "from": [{ "pods": { "podSelector": { "matchLabels": { "app": "job" } } } }] }],
                "egress": [{ "action": "Deny", "to": [{ "nodes": {} }] }] } }));
        let mut sources = Sources::default();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        sources.add("cluster.json", list.to_string().into_bytes());
        let read = read(&sources);
        assert_eq!(read.diagnostics, []);
        (read.objects, sources)
    }

    #[test]
    fn what_is_left_out_changes_nothing() {
        let (objects, sources) = cluster();
        let (model, _) = resolve(objects.clone());
        let compiled = common(&model, &mut |_| ()).unwrap();
        let names = Names::of_policies(&model);
        let builder = NodeBuilder::new(&model, &compiled.matrix, &names, [Backend::Nftables], "");
        for node in ["n0", "n1", "n2"] {
            let mut some = objects.clone();
            keep_relevant(&mut some, node);
            assert!(some.policies.len() < objects.policies.len() || node == "n2", "{node}");
            let bundle = compile(objects.clone(), &sources, node, &[Backend::Nftables]).unwrap();
            builder.prove(&bundle).unwrap();
            let all = compile_all(objects.clone(), &sources, node, &[Backend::Nftables]).unwrap();
            assert_eq!(bundle.bindings().unwrap(), all.bindings().unwrap());
        }
    }

    #[test]
    fn a_cluster_without_policies_for_a_node_leaves_its_own_pods() {
        let (mut objects, _) = cluster();
        objects.policies.clear();
        objects.cluster_policies.clear();
        keep_relevant(&mut objects, "n1");
        assert_eq!(objects.pods.len(), 6);
        assert!(objects.pods.iter().all(|p| p.node.as_deref() == Some("n1") && p.labels.is_empty()));
    }
}
