//! Nodes that pods name, and what pods with `hostNetwork` say of their addresses.

use super::{DEFAULT_NODE, Node};
use crate::diagnostic::{ADDRESS_TAKEN, Diagnostic, Severity, TOO_MANY};
use crate::objects::{self, MAX_ADDRESSES, Phase};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Adds the nodes that only pods name. A node of which no address is given has those of its pods with `hostNetwork`, for
/// these are its own.
pub(super) fn name_nodes(
    pods: &[objects::Pod],
    nodes: &mut BTreeMap<String, Node>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (name, node) in nodes.iter() {
        owners.extend(node.addrs.iter().map(|addr| (*addr, name.clone())));
    }
    let mut found: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for pod in pods {
        let name = pod.node.as_deref().unwrap_or(DEFAULT_NODE);
        if !nodes.contains_key(name) {
            let unknown = Node { labels: BTreeMap::new(), addrs: Vec::new(), pod_cidrs: Vec::new() };
            nodes.insert(name.to_owned(), unknown);
        }
        let says = pod.host_network && pod.phase != Phase::Finished && nodes[name].addrs.is_empty();
        for addr in pod.ips.iter().filter(|_| says) {
            let owner = owners.entry(*addr).or_insert_with(|| name.to_owned());
            if owner != name {
                diagnostics.push(taken(pod, name, *addr, owner));
                continue;
            }
            let of_node = found.entry(name.to_owned()).or_default();
            if of_node.insert(*addr) && of_node.len() == MAX_ADDRESSES + 1 {
                diagnostics.push(too_many(pod, name));
            }
        }
    }
    for (name, addrs) in found {
        if let Some(node) = nodes.get_mut(&name) {
            node.addrs = addrs.into_iter().collect();
        }
    }
}

/// The addresses of a pod with `hostNetwork`: its node's, those of its own status first and in their order.
pub(super) fn addresses(own: &[IpAddr], node: &Node) -> Vec<IpAddr> {
    let mut addrs: Vec<IpAddr> = own.iter().copied().filter(|a| node.addrs.contains(a)).collect();
    let others: Vec<IpAddr> = node.addrs.iter().copied().filter(|a| !addrs.contains(a)).collect();
    addrs.extend(others);
    addrs
}

fn error(pod: &objects::Pod, code: &'static str, message: String, help: &str) -> Diagnostic {
    Diagnostic {
        code,
        severity: Severity::Error,
        message,
        span: Some(pod.at),
        path: Some("status.podIPs".to_owned()),
        object: Some(format!("Pod {}/{}", pod.namespace, pod.name)),
        help: Some(help.to_owned()),
    }
}

fn taken(pod: &objects::Pod, node: &str, addr: IpAddr, other: &str) -> Diagnostic {
    let objects::Pod { namespace, name, .. } = pod;
    let message = format!(
        "the address {addr} of pod {namespace}/{name}, which shares the network of node {node}, is also that of node \
         {other}"
    );
    error(
        pod,
        ADDRESS_TAKEN,
        message,
        "an address can belong to one node only; take a fresh snapshot of the cluster",
    )
}

fn too_many(pod: &objects::Pod, node: &str) -> Diagnostic {
    let message =
        format!("the pods with `hostNetwork` of node {node} have more than {MAX_ADDRESSES} addresses");
    error(pod, TOO_MANY, message, "give the node's own object, with the addresses that are its own")
}
