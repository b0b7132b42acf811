use super::*;
use crate::alike::{Addresses, Alike, Seen, Verdict};
use crate::compile::{Wanted, compile};
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

/// The pods of these objects, and the node that rules are for.
#[derive(Debug)]
struct Listed<'o>(&'o [Pod], &'o str);

fn bound(pod: &Pod) -> BoundPod<'_> {
    BoundPod { pod, ips: Cow::Borrowed(&pod.ips), node: pod.node.as_deref() }
}

impl Pods for Listed<'_> {
    fn namespaces(&self) -> Vec<&str> {
        self.0.iter().map(|pod| pod.namespace.as_str()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn of_namespace(&self, namespace: &str) -> Vec<BoundPod<'_>> {
        self.0.iter().filter(|pod| pod.namespace == namespace).map(bound).collect()
    }

    fn local(&self) -> Vec<BoundPod<'_>> {
        self.0.iter().filter(|pod| pod.node.as_deref() == Some(self.1)).map(bound).collect()
    }
}

/// What the rules of a node depend on.
fn slice_of(objects: &Objects, node: &str) -> Slice {
    slice(&Cluster {
        node,
        namespaces: objects.namespaces.iter().collect(),
        nodes: objects.nodes.iter().map(Cow::Borrowed).collect(),
        pods: &Listed(&objects.pods, node),
        policies: objects.policies.iter().collect(),
        cluster_policies: objects.cluster_policies.iter().collect(),
    })
}

#[test]
fn what_is_left_out_changes_nothing() {
    let (objects, sources) = cluster();
    let (model, _) = resolve(objects.clone());
    let compiled = common(&model, &mut |_| ()).unwrap();
    let names = Names::of_policies(&model);
    let builder = NodeBuilder::new(&model, &compiled.matrix, &names, [Backend::Nftables], None);
    for node in ["n0", "n1", "n2"] {
        let some = slice_of(&objects, node);
        assert!(some.objects.policies.len() < objects.policies.len() || node == "n2", "{node}");
        let bundle = compile(some.objects, &some.sources, node, &[Backend::Nftables], None).unwrap();
        builder.prove(&bundle).unwrap();
        let all = Slice { objects: objects.clone(), sources: sources.clone(), seen: Seen::default() };
        let all = compile(all.objects, &all.sources, node, &[Backend::Nftables], None).unwrap();
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
        match compiler.bundle(slice_of(&objects, "n0"), "n0", &Wanted::all(&backends)).unwrap() {
            Some(bundle) => held = Some(bundle),
            None => reused += 1,
        }
        let fresh = slice_of(&objects, "n0");
        let fresh = compile(fresh.objects, &fresh.sources, "n0", &backends, None).unwrap();
        assert_eq!(held.as_ref(), Some(&fresh), "step {step}");
    }
    assert!(reused > 0 && reused < 60, "{reused}");
}

/// The same events and some more, without compiling what is like something known: after each, the bundle says of all
/// packets what the policies say.
#[test]
fn what_comes_and_goes_is_judged_as_if_it_were_compiled() {
    for (backend, artifact) in [(Backend::Nftables, Artifact::Nftables), (Backend::Ebpf, Artifact::Ebpf)] {
        let (mut objects, _) = cluster();
        let start = |objects: &Objects| {
            let Slice { objects, sources, seen } = slice_of(objects, "n0");
            let alike = Alike::new(seen, &objects);
            (alike, compile(objects, &sources, "n0", &[backend], None).unwrap())
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
            let names: Vec<String> =
                objects.pods.iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect();
            let gone = before.iter().filter(|name| !names.contains(name)).map(|name| (name.as_str(), None));
            let mut changes: Vec<(&str, Option<BoundPod<'_>>)> = gone.collect();
            changes.extend(
                names.iter().map(String::as_str).zip(objects.pods.iter().map(|pod| Some(bound(pod)))),
            );
            let selecting = |pod: &Pod| {
                let selects = |p: &&Policy| p.namespace == pod.namespace && p.subject.matches(&pod.labels);
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
            let builder = NodeBuilder::new(&model, &compiled.matrix, &names, [backend], None);
            builder.prove(&bundle).unwrap_or_else(|error| panic!("{backend}, step {step}: {error}"));
            let mine = objects.pods.iter().filter(|p| p.node.as_deref() == Some("n0"));
            let mut mine: Vec<_> =
                mine.map(|p| (format!("{}/{}", p.namespace, p.name), p.ips.clone())).collect();
            mine.sort();
            let bound = bundle.bindings().unwrap().pods.into_iter();
            assert_eq!(bound.map(|pod| (pod.name, pod.addresses)).collect::<Vec<_>>(), mine, "step {step}");
        }
        assert!(verdicts.iter().all(|n| *n >= 4), "{backend}: {verdicts:?}");
    }
}

#[test]
fn a_cluster_without_policies_for_a_node_leaves_its_own_pods() {
    let (mut objects, _) = cluster();
    objects.policies.clear();
    objects.cluster_policies.clear();
    let Slice { objects, .. } = slice_of(&objects, "n1");
    assert_eq!(objects.pods.len(), 6);
    assert!(objects.pods.iter().all(|p| p.node.as_deref() == Some("n1") && p.labels.is_empty()));
}
