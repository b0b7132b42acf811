//! Objects -> model: who counts, which namespaces and nodes exist, who has which address.

use super::stand_ins::stand_ins;
use super::{DEFAULT_NODE, Model, Node, OriginData, Pod, hosts};
use crate::diagnostic::{
    ADDRESS_TAKEN, Diagnostic, EQUAL_PRIORITIES, NO_PLANNED_ADDRESS, PLANNED_ADDRESSES, Severity,
};
use crate::objects::{self, ClusterPolicy, NAMESPACE_NAME_LABEL, Objects, Phase, Workload};
use crate::source::Span;
use netpolc_ir::unit::Tier;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// The block from which pods without a status get an address, so that their rules can be generated and tried. It is
/// kind's default pod range; addresses of real pods are never given away.
const PLANNED_BLOCK: u32 = u32::from_be_bytes([10, 244, 0, 0]);
/// How many addresses that block has: a /16.
const PLANNED_SIZE: u32 = 1 << 16;

/// Resolves what was read. Errors are in the diagnostics; the model holds what could be resolved.
pub fn resolve(objects: Objects) -> (Model, Vec<Diagnostic>) {
    let mut diagnostics = Vec::new();
    let namespaces = objects.namespaces.into_iter().map(|n| (n.name, n.labels)).collect();
    let mut model = Model { namespaces, ..Model::default() };
    for node in objects.nodes {
        let objects::Node { name, labels, addrs, pod_cidrs, at: _ } = node;
        model.nodes.insert(name, Node { labels, addrs, pod_cidrs });
    }
    model.pods = pods(objects.pods, objects.workloads, &mut model.nodes, &mut diagnostics);
    give_planned_addresses(&mut model.pods, &model.nodes, &mut diagnostics);
    model.policies = objects.policies;
    model.policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    model.cluster_policies = objects.cluster_policies;
    // Equal priorities are decided by name, then kind, so that the result does not depend on the order of reading.
    let key = |p: &ClusterPolicy| (p.tier, p.priority, p.name.clone(), p.kind.clone());
    model.cluster_policies.sort_by_key(key);
    warn_equal_priorities(&model.cluster_policies, &mut diagnostics);
    mention_namespaces(&mut model);
    index(&mut model, &mut diagnostics);
    number_origins(&mut model);
    (model, diagnostics)
}

/// The pods that count. Workloads stand for pods where no pod of theirs is given.
fn pods(
    mut pods: Vec<objects::Pod>,
    workloads: Vec<Workload>,
    nodes: &mut BTreeMap<String, Node>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Pod> {
    pods.extend(stand_ins(&pods, workloads, diagnostics));
    hosts::name_nodes(&pods, nodes, diagnostics);
    let mut out = Vec::with_capacity(pods.len());
    for pod in pods {
        let node = pod.node.unwrap_or_else(|| DEFAULT_NODE.to_owned());
        let planned = pod.phase == Phase::Planned && pod.ips.is_empty() && !pod.host_network;
        let addrs = if pod.host_network { hosts::addresses(&pod.ips, &nodes[&node]) } else { pod.ips };
        if pod.phase == Phase::Finished || (addrs.is_empty() && !planned) {
            continue;
        }
        out.push(Pod {
            namespace: pod.namespace,
            name: pod.name,
            labels: pod.labels,
            node,
            host_network: pod.host_network,
            addrs,
            planned,
            ports: pod.ports,
            at: pod.at,
        });
    }
    out.sort_by_cached_key(Pod::full_name);
    out
}

/// Gives pods without a status an address that depends on their name alone, as long as it is free: a pod that is added
/// later changes no other pod's address but in the rare case of a collision.
fn give_planned_addresses(
    pods: &mut [Pod],
    nodes: &BTreeMap<String, Node>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let of_nodes = nodes.values().flat_map(|n| &n.addrs);
    let mut taken: BTreeSet<IpAddr> = pods.iter().flat_map(|p| &p.addrs).chain(of_nodes).copied().collect();
    let mut given = 0usize;
    for pod in pods.iter_mut().filter(|p| p.planned) {
        let start = fnv1a(pod.full_name().as_bytes());
        let free = (0..PLANNED_SIZE).map(|i| start.wrapping_add(i) % PLANNED_SIZE).find_map(|offset| {
            // The first and the last address of a /24 are left alone: many networks give them a meaning.
            let addr = IpAddr::V4(Ipv4Addr::from(PLANNED_BLOCK + offset));
            (!matches!(offset & 0xff, 0 | 0xff) && !taken.contains(&addr)).then_some(addr)
        });
        let Some(addr) = free else {
            // Each further pod would search the whole block in vain.
            diagnostics.push(Diagnostic {
                code: NO_PLANNED_ADDRESS,
                severity: Severity::Error,
                message: format!("more pods without a status than made-up addresses ({given})"),
                span: Some(pod.at),
                path: None,
                object: Some(format!("Pod {}", pod.full_name())),
                help: Some("give the pods their status, as `kubectl get pods -o yaml` prints it".to_owned()),
            });
            break;
        };
        taken.insert(addr);
        pod.addrs = vec![addr];
        given += 1;
    }
    if given > 0 {
        diagnostics.push(Diagnostic {
            code: PLANNED_ADDRESSES,
            severity: Severity::Note,
            message: format!("{given} pods have no status; each got a made-up address in 10.244.0.0/16"),
            span: None,
            path: None,
            object: None,
            help: Some(
                "enough to review and to try rules; a cluster needs the pods' own addresses".to_owned(),
            ),
        });
    }
}

/// FNV-1a, 32 bits: a stable, well-spread number for a name. Not for anything that an adversary may choose.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

fn warn_equal_priorities(policies: &[ClusterPolicy], diagnostics: &mut Vec<Diagnostic>) {
    for pair in policies.windows(2) {
        let (a, b) = (&pair[0], &pair[1]);
        if a.tier == Tier::Admin && (a.tier, a.priority) == (b.tier, b.priority) {
            diagnostics.push(Diagnostic {
                code: EQUAL_PRIORITIES,
                severity: Severity::Warning,
                message: format!("{} and {} have the same priority {}", a.name, b.name, a.priority),
                span: Some(b.at),
                path: Some("spec.priority".to_owned()),
                object: Some(format!("{} {}", b.kind, b.name)),
                help: Some(
                    "Kubernetes leaves the order undefined; netpolc asks them in the order of their names"
                        .to_owned(),
                ),
            });
        }
    }
}

/// A namespace that only a pod or a policy mentions exists, with the one label that every namespace has.
fn mention_namespaces(model: &mut Model) {
    let pods = model.pods.iter().map(|p| p.namespace.clone());
    let mentioned: BTreeSet<String> =
        pods.chain(model.policies.iter().map(|p| p.namespace.clone())).collect();
    for name in mentioned {
        model.namespaces.entry(name).or_default();
    }
    for (name, labels) in &mut model.namespaces {
        labels.entry(NAMESPACE_NAME_LABEL.to_owned()).or_insert_with(|| name.clone());
    }
}

fn index(model: &mut Model, diagnostics: &mut Vec<Diagnostic>) {
    for (name, node) in &model.nodes {
        for addr in &node.addrs {
            model.nodes_by_addr.insert(*addr, name.clone());
        }
    }
    for (i, pod) in model.pods.iter().enumerate() {
        model.by_name.insert(pod.full_name(), i);
        if pod.host_network {
            continue;
        }
        for addr in &pod.addrs {
            if let Some(node) = model.nodes_by_addr.get(addr) {
                diagnostics.push(taken(pod.at, &pod.full_name(), *addr, &format!("node {node}")));
            } else if let Some(other) = model.by_addr.insert(*addr, i)
                && other != i
            {
                diagnostics.push(taken(
                    pod.at,
                    &pod.full_name(),
                    *addr,
                    &format!("pod {}", model.pods[other].full_name()),
                ));
            }
        }
    }
}

fn taken(at: Span, pod: &str, addr: IpAddr, other: &str) -> Diagnostic {
    Diagnostic {
        code: ADDRESS_TAKEN,
        severity: Severity::Error,
        message: format!("the address {addr} of pod {pod} is also that of {other}"),
        span: Some(at),
        path: Some("status.podIPs".to_owned()),
        object: Some(format!("Pod {pod}")),
        help: Some(
            "an address can belong to one running pod only; take a fresh snapshot of the cluster".to_owned(),
        ),
    }
}

fn number_origins(model: &mut Model) {
    let mut origins = Vec::new();
    let add = |origins: &mut Vec<OriginData>, policy: &str, path: &str, at: Span| {
        origins.push(OriginData { policy: policy.to_owned(), path: path.to_owned(), at });
    };
    for policy in &model.policies {
        let name = format!("{}/{}", policy.namespace, policy.name);
        model.policy_origins.push(origins.len() as u32);
        add(&mut origins, &name, "", policy.at);
        for rule in policy.ingress.iter().flatten().chain(policy.egress.iter().flatten()) {
            add(&mut origins, &name, &rule.path, rule.at);
        }
    }
    for policy in &model.cluster_policies {
        let name = format!("{}/{}", policy.kind, policy.name);
        model.cluster_origins.push(origins.len() as u32);
        add(&mut origins, &name, "", policy.at);
        for rule in policy.ingress.iter().chain(&policy.egress) {
            add(&mut origins, &name, &rule.path, rule.at);
        }
    }
    model.origins = origins;
}
