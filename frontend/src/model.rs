//! The model: the cluster and its policies, resolved. What a policy means is in [`decide`].

pub mod decide;
mod hosts;
mod resolve;
mod stand_ins;

pub use resolve::resolve;

use crate::objects::{ClusterPolicy, ContainerPort, Labels, Policy};
use crate::source::Span;
use netpolc_ir::addr::Cidr;
use netpolc_ir::ports::{PortSpan, Protocol, Transport};
use netpolc_ir::unit::Origin;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// The node of pods that name none.
pub const DEFAULT_NODE: &str = "default";

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its labels.
    pub labels: Labels,
    /// Its own addresses.
    pub addrs: Vec<IpAddr>,
    /// Its pod ranges.
    pub pod_cidrs: Vec<Cidr>,
}

/// A pod that counts: it is not finished and has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// The node it runs on.
    pub node: String,
    /// Whether it shares its node's addresses. Such a pod is never subject to a policy and matches no pod selector.
    pub host_network: bool,
    /// Its addresses, in its own order. Those of a pod without `host_network` belong to no other pod or node.
    pub addrs: Vec<IpAddr>,
    /// Whether netpolc made the addresses up, because the object comes from a repository and not from a cluster.
    pub planned: bool,
    /// The ports of its containers and sidecars, in order.
    pub ports: Vec<ContainerPort>,
    /// Where it stands.
    pub at: Span,
}

impl Pod {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The ports with this name (and protocol, if one is asked for), each with its protocol: what a named port of a policy
    /// means on this pod. Names are unique within a container only, so there may be several; each of them is meant.
    pub fn named_ports(
        &self,
        transport: Option<Transport>,
        name: &str,
    ) -> impl Iterator<Item = (Transport, u16)> {
        let fits = move |p: &&ContainerPort| {
            p.name.as_deref() == Some(name) && transport.is_none_or(|t| t == p.transport)
        };
        self.ports.iter().filter(fits).map(|p| (p.transport, p.port))
    }

    /// Whether a port is one of those with this name (and protocol, if one is asked for).
    pub fn has_named_port(
        &self,
        transport: Option<Transport>,
        name: &str,
        protocol: Protocol,
        port: u16,
    ) -> bool {
        self.named_ports(transport, name).any(|(t, number)| PortSpan::port(t, number).matches(protocol, port))
    }
}

/// Where a part of a policy stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OriginData {
    /// The policy: `shop/db-test`, or `ClusterNetworkPolicy/name`.
    pub policy: String,
    /// The field path of a rule, as `spec.ingress[0]`; empty for the policy itself.
    pub path: String,
    /// Where it stands in the text.
    pub at: Span,
}

/// The cluster and its policies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Model {
    /// Every namespace that exists or is mentioned, with its labels.
    pub namespaces: BTreeMap<String, Labels>,
    /// Every node that exists or that a pod names.
    pub nodes: BTreeMap<String, Node>,
    /// The pods that count, sorted by `namespace/name`.
    pub pods: Vec<Pod>,
    /// NetworkPolicies, sorted by namespace and name.
    pub policies: Vec<Policy>,
    /// Tiered policies, in the order in which they are asked.
    pub cluster_policies: Vec<ClusterPolicy>,
    /// What the origins of the IR lead back to, by number.
    pub origins: Vec<OriginData>,
    /// The first origin of every policy (the policy itself; its ingress rules, then its egress rules follow).
    policy_origins: Vec<u32>,
    cluster_origins: Vec<u32>,
    by_addr: HashMap<IpAddr, usize>,
    by_name: HashMap<String, usize>,
    nodes_by_addr: HashMap<IpAddr, String>,
}

impl Model {
    /// The pod that has an address. Never a pod with `host_network`.
    pub fn pod_at(&self, addr: IpAddr) -> Option<&Pod> {
        self.by_addr.get(&addr).map(|&i| &self.pods[i])
    }

    /// The node that has an address.
    pub fn node_at(&self, addr: IpAddr) -> Option<&str> {
        self.nodes_by_addr.get(&addr).map(String::as_str)
    }

    /// The pod with this `namespace/name`.
    pub fn pod_named(&self, name: &str) -> Option<&Pod> {
        self.by_name.get(name).map(|&i| &self.pods[i])
    }

    /// The origin of a NetworkPolicy (by index).
    pub fn policy_origin(&self, policy: usize) -> Origin {
        Origin(self.policy_origins[policy])
    }

    /// The origin of a rule of a NetworkPolicy. `rule` counts ingress rules first, then egress rules.
    pub fn rule_origin(&self, policy: usize, rule: usize) -> Origin {
        Origin(self.policy_origins[policy] + 1 + rule as u32)
    }

    /// The origin of a tiered policy (by index).
    pub fn cluster_policy_origin(&self, policy: usize) -> Origin {
        Origin(self.cluster_origins[policy])
    }

    /// The origin of a rule of a tiered policy, counted in the same way.
    pub fn cluster_rule_origin(&self, policy: usize, rule: usize) -> Origin {
        Origin(self.cluster_origins[policy] + 1 + rule as u32)
    }

    /// What an origin leads back to.
    pub fn origin(&self, origin: Origin) -> Option<&OriginData> {
        self.origins.get(origin.0 as usize)
    }
}
