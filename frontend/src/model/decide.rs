//! The reference semantics: what happens to a packet that would open a connection. Written to be read beside the
//! NetworkPolicy specification, not to be fast; everything else in netpolc is checked against it.

use super::{Model, Pod};
use crate::objects::{ClusterPeer, ClusterPolicy, ClusterRule, PeerKind, PolicyPeer, PolicyPort, PolicyRule};
use netpolc_ir::addr::Block;
use netpolc_ir::ports::{PortSpan, Protocol};
use netpolc_ir::unit::{Action, Direction, Flow, Origin, Tier, Verdict};
use std::net::IpAddr;

/// The verdict on a flow and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub because: Because,
}

/// Why a flow gets its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Because {
    /// A pod always reaches itself.
    SamePod,
    /// Traffic between a pod and the node it runs on always passes.
    OwnNode,
    /// Both ends were asked; an end that is no pod has no say.
    Judged {
        /// What the source's policies say.
        egress: Option<Side>,
        /// What the destination's policies say.
        ingress: Option<Side>,
    },
}

/// What the policies of one pod say about a flow in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// Whether this side allows it.
    pub allowed: bool,
    /// The tier that decided; `None` if no policy had a say (then it is allowed).
    pub tier: Option<Tier>,
    /// The policies that isolate the pod in this direction.
    pub isolated_by: Vec<Origin>,
    /// The policies of the other tiers that select the pod and have rules for this direction.
    pub selected_by: Vec<Origin>,
    /// The rule of the Admin tier that left the decision to the tiers below, if one did.
    pub passed_by: Option<Origin>,
    /// The rules that decided: all NetworkPolicy rules that allow it, or the one rule of another tier.
    pub rules: Vec<Origin>,
}

/// One end of a flow.
#[derive(Clone, Copy)]
struct End<'a> {
    addr: IpAddr,
    pod: Option<&'a Pod>,
}

/// What is asked of one end.
struct Question<'a> {
    direction: Direction,
    subject: &'a Pod,
    peer: End<'a>,
    /// The pod at the destination, on which named ports are looked up.
    destination: Option<&'a Pod>,
    protocol: Protocol,
    port: u16,
}

impl Model {
    /// The verdict on a flow.
    pub fn decide(&self, flow: &Flow) -> Decision {
        let src = End { addr: flow.src, pod: self.pod_at(flow.src) };
        let dst = End { addr: flow.dst, pod: self.pod_at(flow.dst) };
        if let (Some(a), Some(b)) = (src.pod, dst.pod)
            && std::ptr::eq(a, b)
        {
            return Decision { verdict: Verdict::Allow, because: Because::SamePod };
        }
        let own_node =
            |pod: Option<&Pod>, other: IpAddr| pod.is_some_and(|p| self.node_at(other) == Some(&p.node));
        if own_node(src.pod, dst.addr) || own_node(dst.pod, src.addr) {
            return Decision { verdict: Verdict::Allow, because: Because::OwnNode };
        }
        let (protocol, port, destination) = (flow.protocol, flow.port, dst.pod);
        let egress = src.pod.map(|subject| {
            let direction = Direction::Egress;
            self.side(&Question { direction, subject, peer: dst, destination, protocol, port })
        });
        let ingress = dst.pod.map(|subject| {
            let direction = Direction::Ingress;
            self.side(&Question { direction, subject, peer: src, destination, protocol, port })
        });
        let allowed = |side: &Option<Side>| side.as_ref().is_none_or(|s| s.allowed);
        let verdict = Verdict::allow_if(allowed(&egress) && allowed(&ingress));
        Decision { verdict, because: Because::Judged { egress, ingress } }
    }

    /// Whether the policies of `subject` alone permit a flow with a peer in a direction.
    pub(crate) fn permits(
        &self,
        subject: &Pod,
        direction: Direction,
        peer: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> bool {
        let peer = End { addr: peer, pod: self.pod_at(peer) };
        let destination = match direction {
            Direction::Ingress => Some(subject),
            Direction::Egress => peer.pod,
        };
        self.side(&Question { direction, subject, peer, destination, protocol, port }).allowed
    }

    /// Admin, then NetworkPolicy if the pod is isolated in this direction, else Baseline.
    fn side(&self, q: &Question<'_>) -> Side {
        let (isolated_by, selected_by) = (self.isolated_by(q), self.selected_by(q));
        let isolated = !isolated_by.is_empty();
        let mut side =
            Side { allowed: true, tier: None, isolated_by, selected_by, passed_by: None, rules: Vec::new() };
        let decided = |side: Side, allowed, tier, rules| Side { allowed, tier: Some(tier), rules, ..side };
        match self.first_match(Tier::Admin, q) {
            Some((Action::Accept, rule)) => return decided(side, true, Tier::Admin, vec![rule]),
            Some((Action::Deny, rule)) => return decided(side, false, Tier::Admin, vec![rule]),
            Some((Action::Pass, rule)) => side.passed_by = Some(rule),
            None => {}
        }
        if isolated {
            let rules = self.network_policy_rules(q);
            return decided(side, !rules.is_empty(), Tier::NetworkPolicy, rules);
        }
        match self.first_match(Tier::Baseline, q) {
            Some((Action::Deny, rule)) => decided(side, false, Tier::Baseline, vec![rule]),
            Some((_, rule)) => decided(side, true, Tier::Baseline, vec![rule]),
            None => side,
        }
    }

    /// The policies of the Admin and Baseline tiers that select the subject and have rules for the direction.
    fn selected_by(&self, q: &Question<'_>) -> Vec<Origin> {
        let policies = self.cluster_policies.iter().enumerate().filter(|(_, policy)| {
            let rules = match q.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            !rules.is_empty() && self.selects(policy, q.subject)
        });
        policies.map(|(i, _)| self.cluster_policy_origin(i)).collect()
    }

    /// The NetworkPolicies that select the subject and list the direction.
    fn isolated_by(&self, q: &Question<'_>) -> Vec<Origin> {
        let policies = self.policies.iter().enumerate().filter(|(_, policy)| {
            policy.namespace == q.subject.namespace
                && policy.subject.matches(&q.subject.labels)
                && match q.direction {
                    Direction::Ingress => policy.ingress.is_some(),
                    Direction::Egress => policy.egress.is_some(),
                }
        });
        policies.map(|(i, _)| self.policy_origin(i)).collect()
    }

    /// The rules of those policies that allow the flow.
    fn network_policy_rules(&self, q: &Question<'_>) -> Vec<Origin> {
        let mut origins = Vec::new();
        for (i, policy) in self.policies.iter().enumerate() {
            if policy.namespace != q.subject.namespace || !policy.subject.matches(&q.subject.labels) {
                continue;
            }
            let before = match q.direction {
                Direction::Ingress => 0,
                Direction::Egress => policy.ingress.as_ref().map_or(0, Vec::len),
            };
            let rules = match q.direction {
                Direction::Ingress => policy.ingress.as_deref(),
                Direction::Egress => policy.egress.as_deref(),
            };
            for (k, rule) in rules.unwrap_or_default().iter().enumerate() {
                if self.rule_allows(rule, &policy.namespace, q) {
                    origins.push(self.rule_origin(i, before + k));
                }
            }
        }
        origins
    }

    fn rule_allows(&self, rule: &PolicyRule, namespace: &str, q: &Question<'_>) -> bool {
        let peers = rule.peers.as_ref();
        peers.is_none_or(|peers| peers.iter().any(|peer| self.peer_matches(peer, namespace, q)))
            && ports_match(rule.ports.as_deref(), q)
    }

    fn peer_matches(&self, peer: &PolicyPeer, namespace: &str, q: &Question<'_>) -> bool {
        match &peer.kind {
            PeerKind::Block(block) => block.contains(q.peer.addr),
            PeerKind::Pods { namespaces, pods } => q.peer.pod.is_some_and(|pod| {
                let in_namespace = match namespaces {
                    None => pod.namespace == namespace,
                    Some(selector) => {
                        self.namespaces.get(&pod.namespace).is_some_and(|l| selector.matches(l))
                    }
                };
                in_namespace && pods.matches(&pod.labels)
            }),
        }
    }

    /// The first rule of a tier that matches. A policy that does not select the subject is passed over.
    fn first_match(&self, tier: Tier, q: &Question<'_>) -> Option<(Action, Origin)> {
        for (i, policy) in self.cluster_policies.iter().enumerate() {
            if policy.tier != tier || !self.selects(policy, q.subject) {
                continue;
            }
            let (rules, before) = match q.direction {
                Direction::Ingress => (&policy.ingress, 0),
                Direction::Egress => (&policy.egress, policy.ingress.len()),
            };
            if let Some(k) = rules.iter().position(|rule| self.cluster_rule_matches(rule, q)) {
                return Some((rules[k].action, self.cluster_rule_origin(i, before + k)));
            }
        }
        None
    }

    pub(crate) fn selects(&self, policy: &ClusterPolicy, pod: &Pod) -> bool {
        let (namespaces, pods) = &policy.subject;
        self.namespaces.get(&pod.namespace).is_some_and(|l| namespaces.matches(l))
            && pods.matches(&pod.labels)
    }

    fn cluster_rule_matches(&self, rule: &ClusterRule, q: &Question<'_>) -> bool {
        let peer_matches = rule.peers.iter().any(|peer| match peer {
            ClusterPeer::Pods(namespaces, pods) => q.peer.pod.is_some_and(|pod| {
                self.namespaces.get(&pod.namespace).is_some_and(|l| namespaces.matches(l))
                    && pods.matches(&pod.labels)
            }),
            ClusterPeer::Nodes(selector) => {
                let node = self.node_at(q.peer.addr).and_then(|name| self.nodes.get(name));
                node.is_some_and(|n| selector.matches(&n.labels))
            }
            ClusterPeer::Networks(cidrs) => cidrs.iter().any(|c| Block::whole(*c).contains(q.peer.addr)),
            // What we do not know must not open anything.
            ClusterPeer::Unknown => rule.action != Action::Accept,
        });
        peer_matches && ports_match(rule.ports.as_deref(), q)
    }
}

fn ports_match(ports: Option<&[PolicyPort]>, q: &Question<'_>) -> bool {
    ports.is_none_or(|ports| {
        ports.iter().any(|port| match port {
            PolicyPort::Range { transport, lo, hi } => {
                PortSpan::Ports { transport: *transport, lo: *lo, hi: *hi }.matches(q.protocol, q.port)
            }
            PolicyPort::Named { transport, name } => {
                q.destination.is_some_and(|pod| pod.has_named_port(*transport, name, q.protocol, q.port))
            }
        })
    })
}
