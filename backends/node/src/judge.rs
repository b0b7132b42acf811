//! What a node does with packets.

use netpolc_ir::proof::{Artifact, Packet};
use netpolc_ir::unit::{Flow, Verdict};
use std::collections::HashSet;
use std::net::IpAddr;

/// What the artifact of a node does with packets, as they pass the node.
pub struct NodeJudge {
    machine: Box<dyn Artifact>,
    local: HashSet<IpAddr>,
    node: HashSet<IpAddr>,
}

impl std::fmt::Debug for NodeJudge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeJudge")
            .field("local", &self.local)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl NodeJudge {
    /// A node with the addresses of its pods and its own.
    pub fn new(
        machine: Box<dyn Artifact>,
        local: impl IntoIterator<Item = IpAddr>,
        node: &[IpAddr],
    ) -> NodeJudge {
        NodeJudge { machine, local: local.into_iter().collect(), node: node.iter().copied().collect() }
    }

    /// Whether the packet that opens a flow passes. Traffic between a pod and its own node does not cross the forward
    /// hook, so no rule sees it.
    pub fn decide(&self, flow: &Flow) -> Verdict {
        let own = |pod: &IpAddr, other: &IpAddr| self.local.contains(pod) && self.node.contains(other);
        if own(&flow.src, &flow.dst) || own(&flow.dst, &flow.src) {
            return Verdict::Allow;
        }
        self.machine.decide(&Packet::opening(*flow))
    }
}
