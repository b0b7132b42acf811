//! What of a cluster's objects the rules of one node depend on: the rest need not be compiled.
//!
//! A node judges the traffic of its own pods. So a policy matters only if it selects one of them; a pod of another node
//! only if a peer of such a policy matches it, for otherwise it is an address like any outside of the cluster; a label
//! only if a selector of such a policy asks for it; a port's name only if such a policy has it.
//!
//! Why it is sound: nothing that is left out could be told apart by a selector, a block or a named port of a policy that
//! stays. The tests prove rules that were compiled this way against all objects. What it costs: one look at each pod, and
//! for pods that are alike one at each selector that its namespace lets through. Only what stays is copied, since ten
//! thousand pods take longer to copy than to look at.

use crate::alike::{Alike, owned};
use netpolc_frontend::model::DEFAULT_NODE;
use netpolc_frontend::objects::{
    ClusterPeer, ClusterPolicy, ContainerPort, Labels, NAMESPACE_NAME_LABEL, Namespace, Node, Objects,
    PeerKind, Pod, Policy, PolicyPort, Selector,
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

/// All objects of a cluster, each where it is kept.
#[derive(Debug, Default)]
pub struct Cluster<'a> {
    /// Namespaces.
    pub namespaces: Vec<&'a Namespace>,
    /// Nodes.
    pub nodes: Vec<Cow<'a, Node>>,
    /// Pods, each address once.
    pub pods: Vec<BoundPod<'a>>,
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
    /// Which pods the rules cannot tell apart.
    pub alike: Alike,
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

/// What the rules of a node depend on.
pub fn slice<'a>(cluster: &Cluster<'a>, node: &str) -> Slice {
    let namespaces = namespaces(cluster);
    let of_namespace =
        |name: &str, selector: &Selector| namespaces.get(name).is_some_and(|labels| selector.matches(labels));
    let is_local = |pod: &BoundPod<'_>| pod.node.unwrap_or(DEFAULT_NODE) == node;
    let mut local: BTreeMap<&str, Vec<&Labels>> = BTreeMap::new();
    for pod in cluster.pods.iter().filter(|pod| is_local(pod)) {
        local.entry(&pod.pod.namespace).or_default().push(&pod.pod.labels);
    }
    let any = |pods: &[&Labels], selector: &Selector| pods.iter().any(|labels| selector.matches(labels));
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
    let mut alike: HashMap<(&str, Vec<Label<'_>>), bool> = HashMap::new();
    let mut last: Option<(&str, &[&Selector])> = None;
    let keep = |pod: &&BoundPod<'a>| {
        if asked.every_pod || is_local(pod) {
            return true;
        }
        let namespace = pod.pod.namespace.as_str();
        let selectors = match last {
            Some((name, selectors)) if name == namespace => selectors,
            _ => selectors.get(namespace).map(Vec::as_slice).unwrap_or_default(),
        };
        last = Some((namespace, selectors));
        if selectors.is_empty() {
            return false;
        }
        let labels = &pod.pod.labels;
        let seen = labels.iter().filter(|(key, _)| asked.keys.contains(*key)).collect();
        let any = || selectors.iter().any(|selector| selector.matches(labels));
        *alike.entry((&pod.pod.namespace, seen)).or_insert_with(any)
    };
    let pods: Vec<&BoundPod<'_>> = cluster.pods.iter().filter(keep).collect();
    let mut sources = Sources::default();
    sources.add("API server", Vec::new());
    let objects = Objects {
        namespaces: cluster.namespaces.iter().copied().cloned().collect(),
        nodes: cluster.nodes.iter().map(|node| node.clone().into_owned()).collect(),
        pods: pods.into_iter().map(|pod| seen_by(&asked, pod)).collect(),
        workloads: Vec::new(),
        policies: policies.into_iter().map(|policy| named(policy, &mut sources)).collect(),
        cluster_policies: (cluster_policies.into_iter())
            .map(|policy| cluster_named(policy, &mut sources))
            .collect(),
    };
    let selectors = owned(&selectors);
    let alike = Alike::new(node, asked, selectors, &objects);
    Slice { objects, sources, alike }
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
        phase: pod.phase,
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
    // Pods of a namespace stand together.
    let mut last = None;
    for pod in &cluster.pods {
        let name = pod.pod.namespace.as_str();
        if last != Some(name) {
            namespaces.entry(name).or_insert_with(|| Cow::Owned(Labels::new()));
            last = Some(name);
        }
    }
    for (name, labels) in &mut namespaces {
        if !labels.contains_key(NAMESPACE_NAME_LABEL) {
            labels.to_mut().insert(NAMESPACE_NAME_LABEL.to_owned(), (*name).to_owned());
        }
    }
    namespaces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alike::{Addresses, Verdict};
    use crate::compile::compile;
    use netpolc_bundle::rebind::Rebind;
    use netpolc_bundle::{Artifact, Backend};
    use netpolc_frontend::model::resolve;
    use netpolc_frontend::read::read;
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

    fn all(objects: &Objects) -> Cluster<'_> {
        fn bound(pod: &Pod) -> BoundPod<'_> {
            BoundPod { pod, ips: Cow::Borrowed(&pod.ips), node: pod.node.as_deref() }
        }
        Cluster {
            namespaces: objects.namespaces.iter().collect(),
            nodes: objects.nodes.iter().map(Cow::Borrowed).collect(),
            pods: objects.pods.iter().map(bound).collect(),
            policies: objects.policies.iter().collect(),
            cluster_policies: objects.cluster_policies.iter().collect(),
        }
    }

    #[test]
    fn what_is_left_out_changes_nothing() {
        let (objects, sources) = cluster();
        let (model, _) = resolve(objects.clone());
        let compiled = common(&model, &mut |_| ()).unwrap();
        let names = Names::of_policies(&model);
        let builder = NodeBuilder::new(&model, &compiled.matrix, &names, [Backend::Nftables], "");
        for node in ["n0", "n1", "n2"] {
            let some = slice(&all(&objects), node);
            assert!(some.objects.policies.len() < objects.policies.len() || node == "n2", "{node}");
            let bundle = compile(some.objects, &some.sources, node, &[Backend::Nftables]).unwrap();
            builder.prove(&bundle).unwrap();
            let all = Slice { objects: objects.clone(), sources: sources.clone(), alike: Alike::default() };
            let all = compile(all.objects, &all.sources, node, &[Backend::Nftables]).unwrap();
            assert_eq!(bundle.bindings().unwrap(), all.bindings().unwrap());
        }
    }

    /// Pods of other nodes come, go, move and change labels, in all orders that the seed leads to: what is compiled from
    /// one event to the next is, byte for byte, what a fresh start would compile.
    #[test]
    fn from_event_to_event_as_from_scratch() {
        let (mut objects, _) = cluster();
        let (mut compiler, mut state, mut reused) = (crate::compile::Compiler::default(), 7u64, 0);
        let mut held = None;
        for step in 0..60u32 {
            // A linear congruential generator: the high bits are good enough to pick by.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = (state >> 33) as usize;
            let i = pick % objects.pods.len();
            match (pick >> 8) % 5 {
                0 => objects.pods[i].ips = vec![std::net::Ipv4Addr::from(0x0a03_0000 + step).into()],
                1 => drop(objects.pods[i].labels.insert("hash".into(), format!("h{}", pick % 30))),
                2 if objects.pods.len() > 6 => drop(objects.pods.remove(i)),
                3 => {
                    let (name, ips) =
                        (format!("new-{step}"), vec![std::net::Ipv4Addr::from(0x0a04_0000 + step).into()]);
                    objects.pods.push(Pod { name, ips, ..objects.pods[i].clone() });
                }
                _ => drop(objects.pods[i].labels.insert("unasked".into(), step.to_string())),
            }
            let backends = [Backend::Nftables];
            match compiler.bundle(slice(&all(&objects), "n0"), "n0", &backends).unwrap() {
                Some(bundle) => held = Some(bundle),
                None => reused += 1,
            }
            let fresh = slice(&all(&objects), "n0");
            let fresh = compile(fresh.objects, &fresh.sources, "n0", &backends).unwrap();
            assert_eq!(held.as_ref(), Some(&fresh), "step {step}");
        }
        assert!(reused > 0 && reused < 60, "{reused}");
    }

    /// The same events and some more, without compiling what is like something known: after each, the bundle says of all
    /// packets what the policies say.
    #[test]
    fn what_comes_and_goes_is_judged_as_if_it_were_compiled() {
        for (backend, artifact) in [(Backend::Nftables, Artifact::Nftables), (Backend::Ebpf, Artifact::Ebpf)]
        {
            let (mut objects, _) = cluster();
            let start = |objects: &Objects| {
                let Slice { objects, sources, alike } = slice(&all(objects), "n0");
                (alike, compile(objects, &sources, "n0", &[backend]).unwrap())
            };
            let (mut alike, mut bundle) = start(&objects);
            let (mut state, mut verdicts) = (11u64, [0; 3]);
            for step in 0..120u32 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let pick = (state >> 33) as usize;
                let i = pick % objects.pods.len();
                // In one of the blocks, in what is taken out of one, or in none.
                let base = [0x0a01_0000, 0x0a02_0000, 0xc0a8_0000][(pick >> 12) % 3];
                let fresh = || vec![std::net::Ipv4Addr::from(base + 1000 + step).into()];
                let before: Vec<String> =
                    objects.pods.iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect();
                match (pick >> 8) % 6 {
                    0 | 1 => objects.pods[i].ips = fresh(),
                    2 => {
                        let (name, ips) = (format!("new-{step}"), fresh());
                        objects.pods.push(Pod { name, ips, ..objects.pods[i].clone() });
                    }
                    3 if objects.pods.len() > 8 => drop(objects.pods.remove(i)),
                    4 => {
                        let (other, ips) = ((i + 1) % objects.pods.len(), objects.pods[i].ips.clone());
                        objects.pods[i].ips = objects.pods[other].ips.clone();
                        objects.pods[other].ips = ips;
                    }
                    _ => drop(objects.pods[i].labels.insert("hash".into(), format!("h{}", pick % 30))),
                }
                let now = all(&objects);
                let names: Vec<String> =
                    now.pods.iter().map(|p| format!("{}/{}", p.pod.namespace, p.pod.name)).collect();
                let gone =
                    before.iter().filter(|name| !names.contains(name)).map(|name| (name.as_str(), None));
                let mut changes: Vec<(&str, Option<BoundPod<'_>>)> = gone.collect();
                changes.extend(names.iter().map(String::as_str).zip(now.pods.into_iter().map(Some)));
                let selecting = |pod: &Pod| {
                    let selects =
                        |p: &&Policy| p.namespace == pod.namespace && p.subject.matches(&pod.labels);
                    let plain = objects.policies.iter().filter(selects);
                    let mut names: Vec<_> =
                        plain.map(|p| (Some(p.namespace.as_str()), p.name.as_str())).collect();
                    // That of the cluster selects by namespace alone.
                    names.extend(
                        objects
                            .cluster_policies
                            .iter()
                            .filter(|_| pod.namespace == "b")
                            .map(|p| (None, p.name.as_str())),
                    );
                    names
                };
                match alike.judge(&changes, selecting) {
                    Verdict::Nothing => verdicts[0] += 1,
                    Verdict::Addresses(addresses) => {
                        let Addresses { gone, like, pods, .. } = addresses.clone();
                        let from = bundle.manifest.artifacts[&artifact];
                        bundle = bundle.rebound(&Rebind { artifact, from, gone, like, pods }).unwrap();
                        alike.done(addresses);
                        verdicts[1] += 1;
                    }
                    Verdict::Compile => {
                        (alike, bundle) = start(&objects);
                        verdicts[2] += 1;
                    }
                }
                let (model, _) = resolve(objects.clone());
                let compiled = common(&model, &mut |_| ()).unwrap();
                let names = Names::of_policies(&model);
                let builder = NodeBuilder::new(&model, &compiled.matrix, &names, [backend], "");
                builder.prove(&bundle).unwrap_or_else(|error| panic!("{backend}, step {step}: {error}"));
                let mine = objects.pods.iter().filter(|p| p.node.as_deref() == Some("n0"));
                let mut mine: Vec<_> =
                    mine.map(|p| (format!("{}/{}", p.namespace, p.name), p.ips.clone())).collect();
                mine.sort();
                let bound = bundle.bindings().unwrap().pods.into_iter();
                assert_eq!(
                    bound.map(|pod| (pod.name, pod.addresses)).collect::<Vec<_>>(),
                    mine,
                    "step {step}"
                );
            }
            assert!(verdicts.iter().all(|n| *n >= 4), "{backend}: {verdicts:?}");
        }
    }

    #[test]
    fn a_cluster_without_policies_for_a_node_leaves_its_own_pods() {
        let (mut objects, _) = cluster();
        objects.policies.clear();
        objects.cluster_policies.clear();
        let Slice { objects, .. } = slice(&all(&objects), "n1");
        assert_eq!(objects.pods.len(), 6);
        assert!(objects.pods.iter().all(|p| p.node.as_deref() == Some("n1") && p.labels.is_empty()));
    }
}
