//! Node objects -> what the loader needs to make the node's network (`--cni=ptp`), or to know which addresses are surely not
//! the node's own (`--cni=chain`).

use crate::trim::NodeData;
use netpolc_bundle::wire::Network;
use netpolc_ir::addr::{Cidr, Family};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The network of one node, to make it. `None` while its own ranges are not known: a controller gives them to new nodes.
pub fn network<'n>(node: &str, nodes: impl Iterator<Item = &'n NodeData>) -> Option<Network> {
    Some(known(node, nodes)).filter(|network| !network.pod_ranges.is_empty())
}

/// What the Node objects say: perhaps nothing of the node's own ranges, since another plugin may have its own.
pub fn known<'n>(node: &str, nodes: impl Iterator<Item = &'n NodeData>) -> Network {
    let mut own = Vec::new();
    let mut routes: BTreeSet<(String, IpAddr)> = BTreeSet::new();
    let mut cluster: BTreeSet<String> = BTreeSet::new();
    for data in nodes {
        let ranges = || data.node.pod_cidrs.iter();
        cluster.extend(ranges().map(Cidr::to_string));
        let single = |addr: &IpAddr| Cidr::new(*addr, Family::of(*addr).bits()).map(|c| c.to_string());
        cluster.extend(data.internal.iter().filter_map(single));
        if data.node.name == node {
            own = ranges().map(Cidr::to_string).collect();
            continue;
        }
        for range in ranges() {
            // A range without an address of its family cannot be reached by a route; the other family's still can.
            if let Some(via) = data.internal.iter().find(|a| Family::of(**a) == range.family()) {
                routes.insert((range.to_string(), *via));
            }
        }
    }
    Network {
        pod_ranges: own,
        routes: routes.into_iter().collect(),
        cluster_ranges: cluster.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpolc_frontend::objects::Node;
    use netpolc_frontend::source::{SourceId, Span};

    fn node(name: &str, ranges: &[&str], internal: &[&str]) -> NodeData {
        let at = Span { source: SourceId(0), start: 0, end: 0 };
        let range = |text: &&str| {
            let (addr, length) = text.split_once('/').unwrap();
            Cidr::new(addr.parse().unwrap(), length.parse().unwrap()).unwrap()
        };
        let internal: Vec<IpAddr> = internal.iter().map(|a| a.parse().unwrap()).collect();
        let pod_cidrs = ranges.iter().map(range).collect();
        let node =
            Node { name: name.into(), labels: Default::default(), addrs: internal.clone(), pod_cidrs, at };
        NodeData { node, internal }
    }

    #[test]
    fn other_nodes_are_reached_in_their_own_families() {
        let nodes = [
            node("a", &["10.244.0.0/24", "fd00:10::/64"], &["172.18.0.2", "fc00::2"]),
            node("b", &["10.244.1.0/24", "fd00:11::/64"], &["172.18.0.3"]),
            node("c", &[], &["172.18.0.4"]),
        ];
        let network = network("a", nodes.iter()).unwrap();
        assert_eq!(network.pod_ranges, ["10.244.0.0/24", "fd00:10::/64"]);
        assert_eq!(network.routes, [("10.244.1.0/24".to_owned(), "172.18.0.3".parse().unwrap())]);
        let cluster = network.cluster_ranges;
        assert_eq!(cluster.len(), 4 + 4, "ranges and addresses: {cluster:?}");
        assert!(cluster.contains(&"172.18.0.4/32".to_owned()) && cluster.contains(&"fc00::2/128".to_owned()));
        assert_eq!(super::network("c", nodes.iter()), None, "no range yet");
        let known = known("c", nodes.iter());
        assert_eq!(
            (known.pod_ranges.len(), known.cluster_ranges),
            (0, cluster),
            "but of the others something"
        );
    }
}
