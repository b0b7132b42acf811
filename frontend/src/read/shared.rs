//! Addresses that several nodes have.
//!
//! "Traffic between a pod and its own node passes" needs to know whose an address is. An InternalIP is one node's own; two
//! nodes with one are an error. Nodes behind one NAT gateway may well share an ExternalIP: no packet inside of the cluster
//! comes from it, so it is taken away from the nodes that have it as such, with a warning.

use crate::diagnostic::{ADDRESS_TAKEN, Diagnostic, SHARED_ADDRESS, Severity};
use crate::objects::Node;
use crate::source::Sources;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// By name of a node, its addresses that are no InternalIP.
pub(super) type External = BTreeMap<String, BTreeSet<IpAddr>>;

/// Sees to it that no address is that of two nodes, or reports an error.
pub(super) fn check(
    nodes: &mut [Node],
    external: &External,
    sources: &Sources,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let mut claims: BTreeMap<IpAddr, BTreeMap<String, usize>> = BTreeMap::new();
    for (i, node) in nodes.iter().enumerate() {
        for addr in &node.addrs {
            claims.entry(*addr).or_default().insert(node.name.clone(), i);
        }
    }
    for (addr, claims) in claims.into_iter().filter(|(_, claims)| claims.len() > 1) {
        let as_external = |name: &str| external.get(name).is_some_and(|addrs| addrs.contains(&addr));
        let (given_up, kept): (Vec<_>, Vec<_>) = claims.iter().partition(|(name, _)| as_external(name));
        if let [(_, first), (_, second), ..] = kept[..] {
            diagnostics.push(two_internal(addr, &nodes[*first], &nodes[*second], sources));
        }
        let names: Vec<&str> = claims.keys().map(String::as_str).collect();
        if let Some((_, i)) = given_up.last() {
            let keeper = kept.first().map(|(name, _)| name.as_str());
            diagnostics.push(given_up_address(addr, &names, keeper, &nodes[**i]));
        }
        for (_, i) in given_up {
            nodes[*i].addrs.retain(|a| *a != addr);
        }
    }
}

fn two_internal(addr: IpAddr, first: &Node, second: &Node, sources: &Sources) -> Diagnostic {
    let place = sources.place(first.at);
    Diagnostic {
        code: ADDRESS_TAKEN,
        severity: Severity::Error,
        message: format!(
            "the address {addr} of node {} is also that of node {}, at {place}",
            second.name, first.name
        ),
        span: Some(second.at),
        path: Some("status.addresses".to_owned()),
        object: Some(format!("Node {}", second.name)),
        help: Some(
            "an InternalIP can belong to one node only; take a fresh snapshot of the cluster".to_owned(),
        ),
    }
}

fn given_up_address(addr: IpAddr, names: &[&str], keeper: Option<&str>, last: &Node) -> Diagnostic {
    const SHOWN: usize = 5;
    let mut list = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        list.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    let whose = keeper.map_or("none of them".to_owned(), |name| format!("{name} only"));
    Diagnostic {
        code: SHARED_ADDRESS,
        severity: Severity::Warning,
        message: format!(
            "the address {addr} is that of several nodes ({list}): it is taken for that of {whose}"
        ),
        span: Some(last.at),
        path: Some("status.addresses".to_owned()),
        object: Some(format!("Node {}", last.name)),
        help: Some(
            "a peer of `nodes` does not match this address; name it under `networks` or in an ipBlock if it matters"
                .to_owned(),
        ),
    }
}
