//! What a caller asks for: nodes, pods and hosts outside the cluster, as plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::error::Error;

/// Most hosts (nodes, pods and outside hosts) in one sandbox. A bound on memory and open files, not a kernel limit.
pub const MAX_HOSTS: usize = 1_000;

/// Most listening endpoints (addresses times ports) in one sandbox. A bound on open files, not a kernel limit.
pub const MAX_LISTENERS: usize = 16_000;

/// The next hop that every pod uses, as ptp CNI plugins do. It belongs to no host; reserved, so no host may have it.
pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// What a probe or a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
    /// SCTP, IP protocol 132.
    Sctp,
    /// Echo request of ICMP or ICMPv6. For probes only: the kernel of every host answers, so nothing can listen.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
            Protocol::Icmp => "icmp",
        })
    }
}

/// A whole sandbox: nodes joined by one router, pods on nodes, and hosts outside the cluster at that router.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// The nodes; [`HostId::Node`] indexes this list.
    pub nodes: Vec<NodeSpec>,
    /// The pods of all nodes; [`HostId::Pod`] indexes this list.
    pub pods: Vec<PodSpec>,
    /// Hosts that are no part of the cluster; [`HostId::Outside`] indexes this list.
    pub outside: Vec<OutsideSpec>,
}

/// A node: routes for its pods and has listeners of its own, as host-network pods do.
#[derive(Debug, Clone, Default)]
pub struct NodeSpec {
    /// For messages only; need not be unique.
    pub name: String,
    /// The node's own addresses. May be empty: the node then only routes.
    pub addrs: Vec<IpAddr>,
    /// Ports that answer on every one of `addrs`.
    pub listen: Vec<(Protocol, u16)>,
}

/// A pod.
#[derive(Debug, Clone, Default)]
pub struct PodSpec {
    /// For messages only; need not be unique.
    pub name: String,
    /// Index into [`Spec::nodes`].
    pub node: usize,
    /// The pod's addresses; the first of each family is its preferred source.
    pub addrs: Vec<IpAddr>,
    /// Ports that answer on every one of `addrs`.
    pub listen: Vec<(Protocol, u16)>,
}

/// A host outside the cluster, reached through every node's uplink.
#[derive(Debug, Clone)]
pub struct OutsideSpec {
    /// Its one address.
    pub addr: IpAddr,
    /// Ports that answer on `addr`.
    pub listen: Vec<(Protocol, u16)>,
}

/// One host of a sandbox: an index into one of the three lists of its [`Spec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostId {
    /// Index into [`Spec::nodes`].
    Node(usize),
    /// Index into [`Spec::pods`].
    Pod(usize),
    /// Index into [`Spec::outside`].
    Outside(usize),
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostId::Node(i) => write!(f, "node {i}"),
            HostId::Pod(i) => write!(f, "pod {i}"),
            HostId::Outside(i) => write!(f, "outside host {i}"),
        }
    }
}

impl Spec {
    /// All hosts, in the order nodes, pods, outside hosts.
    pub fn hosts(&self) -> impl Iterator<Item = HostId> + '_ {
        let nodes = (0..self.nodes.len()).map(HostId::Node);
        let pods = (0..self.pods.len()).map(HostId::Pod);
        nodes.chain(pods).chain((0..self.outside.len()).map(HostId::Outside))
    }

    /// The addresses of a host; none for a host that does not exist.
    pub fn addrs(&self, host: HostId) -> &[IpAddr] {
        match host {
            HostId::Node(i) => self.nodes.get(i).map_or(&[], |node| &node.addrs),
            HostId::Pod(i) => self.pods.get(i).map_or(&[], |pod| &pod.addrs),
            HostId::Outside(i) => self.outside.get(i).map_or(&[], |host| std::slice::from_ref(&host.addr)),
        }
    }

    /// The ports that a host listens on; none for a host that does not exist.
    pub fn listen(&self, host: HostId) -> &[(Protocol, u16)] {
        match host {
            HostId::Node(i) => self.nodes.get(i).map_or(&[], |node| &node.listen),
            HostId::Pod(i) => self.pods.get(i).map_or(&[], |pod| &pod.listen),
            HostId::Outside(i) => self.outside.get(i).map_or(&[], |host| &host.listen),
        }
    }

    /// Checks everything that the kernel would refuse late or, worse, accept with another meaning.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let hosts = self.hosts().count();
        if hosts > MAX_HOSTS {
            return Err(Error::Spec(format!("{hosts} hosts are more than {MAX_HOSTS}")));
        }
        if let Some((i, pod)) = self.pods.iter().enumerate().find(|(_, pod)| pod.node >= self.nodes.len()) {
            return Err(Error::Spec(format!(
                "pod {i} ({}) is on node {}, which is not there",
                pod.name, pod.node
            )));
        }
        let mut owners = BTreeMap::new();
        let mut listeners = 0;
        for host in self.hosts() {
            for &addr in self.addrs(host) {
                check_address(host, addr)?;
                if let Some(other) = owners.insert(addr, host) {
                    return Err(Error::Spec(format!("{other} and {host} both have the address {addr}")));
                }
            }
            listeners += self.addrs(host).len() * (self.listen(host).len() + 1);
            let mut seen = BTreeSet::new();
            for &(protocol, port) in self.listen(host) {
                if port == 0 || protocol == Protocol::Icmp || !seen.insert((protocol, port)) {
                    return Err(Error::Spec(format!(
                        "{host} cannot listen on {protocol} port {port}, or not twice"
                    )));
                }
            }
        }
        if listeners > MAX_LISTENERS {
            return Err(Error::Spec(format!("{listeners} listeners are more than {MAX_LISTENERS}")));
        }
        Ok(())
    }
}

/// Refuses addresses that a host cannot own, or that do not cross a router.
fn check_address(host: HostId, addr: IpAddr) -> Result<(), Error> {
    let unusable = match addr {
        IpAddr::V4(v4) => {
            v4 == GATEWAY_V4 || v4.is_broadcast() || v4.octets()[0] == 0 || v4.octets()[0] >= 240
        }
        // A v4-mapped address never stands in a packet's header.
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    if unusable || addr.is_loopback() || addr.is_multicast() || addr.is_unspecified() {
        return Err(Error::Spec(format!("{host} cannot have the address {addr}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: usize, addr: &str) -> PodSpec {
        PodSpec { node, addrs: vec![addr.parse().unwrap()], ..PodSpec::default() }
    }

    fn refusal(pods: Vec<PodSpec>) -> String {
        let spec = Spec { nodes: vec![NodeSpec::default()], pods, outside: vec![] };
        spec.check().map_or_else(|e| e.to_string(), |()| "accepted".into())
    }

    #[test]
    fn a_sound_spec_is_accepted() {
        assert_eq!(refusal(vec![pod(0, "10.0.0.1"), pod(0, "fd00::1")]), "accepted");
    }

    #[test]
    fn unusable_specs_are_refused_with_the_host_named() {
        let cases = [
            (vec![pod(1, "10.0.0.1")], "pod 0"),
            (vec![pod(0, "10.0.0.1"), pod(0, "10.0.0.1")], "pod 0 and pod 1"),
            (vec![pod(0, "127.0.0.1")], "127.0.0.1"),
            (vec![pod(0, "169.254.1.1")], "169.254.1.1"),
            (vec![pod(0, "fe80::5")], "fe80::5"),
            (vec![pod(0, "::ffff:10.0.0.1")], "::ffff:10.0.0.1"),
            (vec![pod(0, "240.0.0.1")], "240.0.0.1"),
            (vec![PodSpec { listen: vec![(Protocol::Udp, 0)], ..pod(0, "10.0.0.1") }], "port 0"),
            (vec![PodSpec { listen: vec![(Protocol::Icmp, 1)], ..pod(0, "10.0.0.1") }], "icmp"),
        ];
        for (pods, expected) in cases {
            let text = refusal(pods);
            assert!(text.contains(expected) && text != "accepted", "{text} lacks {expected}");
        }
    }

    #[test]
    fn too_many_listeners_are_refused() {
        let listen = (1..=u16::MAX).map(|port| (Protocol::Udp, port)).collect();
        assert!(refusal(vec![PodSpec { listen, ..pod(0, "10.0.0.1") }]).contains("listeners"));
    }
}
