//! Peers.

use super::types::Peer;
use super::{Kind, at_least_one, at_most, namespaced, one_of};
use crate::diagnostic::DOMAIN_NAMES;
use crate::objects::{ClusterPeer, Selector};
use crate::read::report::Report;
use crate::read::tree::Path;
use crate::read::validate::cidr::{cidr, strict_cidr};
use crate::read::validate::selector::selector;

/// Most entries of `networks`, in either version (CRD: `networks`, `maxItems`).
const MAX_NETWORKS: usize = 25;

/// Checks a peer; exactly one of its fields must be set.
pub(super) fn peer(
    kind: Kind,
    written: Peer,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Option<ClusterPeer> {
    let Peer { namespaces, pods, nodes, networks, domain_names } = written;
    let set =
        [namespaces.is_some(), pods.is_some(), nodes.is_some(), networks.is_some(), domain_names.is_some()];
    if !one_of(set.into_iter().filter(|s| *s).count(), report, path) {
        return None;
    }
    if domain_names.is_some() {
        let message = "domainNames peers are not supported: a packet has an address, not a name";
        let help = "use `networks` with the addresses that the name stands for".to_string();
        report.error_help(DOMAIN_NAMES, &path.key("domainNames"), message.to_string(), Some(help));
        return None;
    }
    if let Some(labels) = namespaces {
        return Some(ClusterPeer::Pods(
            selector(&labels, report, &path.key("namespaces")),
            Selector::default(),
        ));
    }
    if let Some(labels) = nodes {
        return Some(ClusterPeer::Nodes(selector(&labels, report, &path.key("nodes"))));
    }
    if let Some(pods) = pods {
        return namespaced(kind, pods, report, &path.key("pods")).map(|(n, p)| ClusterPeer::Pods(n, p));
    }
    let networks = networks?;
    let list = path.key("networks");
    at_least_one(networks.len(), report, &list);
    at_most(MAX_NETWORKS, networks.len(), report, &list);
    // The schema of v1alpha2 demands `isCIDR(self)`; v1alpha1 leaves the reading to the implementation.
    let read = if kind == Kind::Cluster { strict_cidr } else { cidr };
    let blocks = networks.iter().enumerate().filter_map(|(i, text)| read(text, report, &list.index(i)));
    Some(ClusterPeer::Networks(blocks.collect()))
}
