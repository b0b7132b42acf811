//! The reference semantics asked for whole sets of peers at once, for the proof of an artifact.
//!
//! [`Model::decide`] says what happens to one packet; this module says the same for all peers of a subject in one go.
//! It goes from the model straight to the answer, without the IR. Tests hold the two against each other.

use crate::grouping::Grouping;
use crate::model::Model;
use crate::objects::{PeerKind, Policy, PolicyPort, PolicyRule};
use netpolc_ir::addr::{AddrSet, Block, Family, Ranges};
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::{PortSpan, Protocol};
use netpolc_ir::proof::{Bounds, Permitted, Reference};
use netpolc_ir::unit::Direction;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

/// A rule by policy and position, and, for egress to named ports, the port in question.
type RuleKey = (usize, usize, Option<(Protocol, u16)>);

/// What is looked up again and again.
#[derive(Default)]
struct Cache {
    /// For each group and direction: the NetworkPolicies that isolate it.
    isolating: HashMap<(usize, Direction), Rc<Vec<usize>>>,
    rules: HashMap<(Direction, RuleKey), Rc<Permitted>>,
    unions: HashMap<(Direction, Vec<RuleKey>), Rc<Permitted>>,
    /// Whole answers, for each group, direction, protocol and port that was asked about.
    answers: HashMap<(usize, Direction, Protocol, u16), Option<Rc<Permitted>>>,
}

/// The model, prepared for questions about sets of peers.
pub struct SetReference<'m> {
    model: &'m Model,
    grouping: Grouping<'m>,
    by_node: BTreeMap<&'m str, Vec<usize>>,
    policies_in: HashMap<&'m str, Vec<usize>>,
    cache: RefCell<Cache>,
}

impl<'m> SetReference<'m> {
    /// Prepares a model.
    pub fn new(model: &'m Model) -> SetReference<'m> {
        let grouping = Grouping::new(model);
        let mut by_node: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, (pod, _, _)) in grouping.addrs.iter().enumerate() {
            by_node.entry(&model.pods[*pod].node).or_default().push(i);
        }
        let mut policies_in: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, policy) in model.policies.iter().enumerate() {
            policies_in.entry(&policy.namespace).or_default().push(i);
        }
        SetReference { model, grouping, by_node, policies_in, cache: RefCell::default() }
    }

    fn isolating(&self, group: usize, direction: Direction) -> Rc<Vec<usize>> {
        if let Some(found) = self.cache.borrow().isolating.get(&(group, direction)) {
            return found.clone();
        }
        let pod = self.grouping.groups[group].pod;
        let candidates = self.policies_in.get(pod.namespace.as_str()).map(Vec::as_slice).unwrap_or_default();
        let isolates = |i: &&usize| {
            let policy = &self.model.policies[**i];
            rules(policy, direction).is_some() && policy.subject.matches(&pod.labels)
        };
        let found: Rc<Vec<usize>> = Rc::new(candidates.iter().filter(isolates).copied().collect());
        self.cache.borrow_mut().isolating.insert((group, direction), found.clone());
        found
    }

    /// The rules of the isolating policies that may apply to a port, as keys.
    fn matching(&self, group: usize, direction: Direction, protocol: Protocol, port: u16) -> Vec<RuleKey> {
        let pod = self.grouping.groups[group].pod;
        let mut keys = Vec::new();
        for &i in self.isolating(group, direction).iter() {
            for (k, rule) in rules(&self.model.policies[i], direction).unwrap_or_default().iter().enumerate()
            {
                let Some(ports) = &rule.ports else {
                    keys.push((i, k, None));
                    continue;
                };
                let plain = ports.iter().any(|p| match p {
                    PolicyPort::Range { transport, lo, hi } => {
                        PortSpan::Ports { transport: *transport, lo: *lo, hi: *hi }.matches(protocol, port)
                    }
                    PolicyPort::Named { transport, name } => {
                        direction == Direction::Ingress
                            && pod.has_named_port(*transport, name, protocol, port)
                    }
                });
                if plain {
                    keys.push((i, k, None));
                } else if direction == Direction::Egress
                    && ports.iter().any(|p| matches!(p, PolicyPort::Named { .. }))
                {
                    keys.push((i, k, Some((protocol, port))));
                }
            }
        }
        keys
    }

    /// Whom one rule allows.
    fn rule(&self, direction: Direction, key: RuleKey) -> Rc<Permitted> {
        if let Some(found) = self.cache.borrow().rules.get(&(direction, key)) {
            return found.clone();
        }
        let policy = &self.model.policies[key.0];
        let rule = &rules(policy, direction).unwrap_or_default()[key.1];
        let mut permitted = self.rule_peers(policy, rule);
        if let Some((protocol, port)) = key.2 {
            permitted.unbound = AddrSet::default();
            for group in permitted.groups.clone().iter() {
                let pod = self.grouping.groups[group].pod;
                let fits = rule.ports.iter().flatten().any(|p| match p {
                    PolicyPort::Range { .. } => false,
                    PolicyPort::Named { transport, name } => {
                        pod.has_named_port(*transport, name, protocol, port)
                    }
                });
                if !fits {
                    permitted.groups.remove(group);
                }
            }
        }
        let permitted = Rc::new(permitted);
        self.cache.borrow_mut().rules.insert((direction, key), permitted.clone());
        permitted
    }

    fn rule_peers(&self, policy: &Policy, rule: &PolicyRule) -> Permitted {
        let n = self.grouping.groups.len();
        let Some(peers) = &rule.peers else {
            return Permitted { groups: BitSet::full(n), unbound: AddrSet::all() };
        };
        let mut groups = BitSet::empty(n);
        let mut blocks: Vec<&Block> = Vec::new();
        for peer in peers {
            let found = match &peer.kind {
                PeerKind::Pods { namespaces, pods } => {
                    self.grouping.select(self.model, namespaces.as_ref(), &policy.namespace, pods)
                }
                PeerKind::Block(block) => {
                    blocks.push(block);
                    self.grouping.inside(block)
                }
            };
            found.into_iter().for_each(|g| groups.insert(g));
        }
        Permitted { groups, unbound: AddrSet::from_blocks(blocks) }
    }

    fn union(&self, direction: Direction, keys: Vec<RuleKey>) -> Rc<Permitted> {
        let cached = self.cache.borrow().unions.get(&(direction, keys.clone())).cloned();
        if let Some(found) = cached {
            return found;
        }
        let mut all =
            Permitted { groups: BitSet::empty(self.grouping.groups.len()), unbound: AddrSet::default() };
        for &key in &keys {
            let one = self.rule(direction, key);
            all.groups.or_with(&one.groups);
            all.unbound = all.unbound.union(&one.unbound);
        }
        let all = Rc::new(all);
        self.cache.borrow_mut().unions.insert((direction, keys), all.clone());
        all
    }

    /// With tiers: one question to the model for every group and every stretch of addresses.
    fn tiered(&self, group: usize, direction: Direction, protocol: Protocol, port: u16) -> Rc<Permitted> {
        let subject = self.grouping.groups[group].pod;
        let asks = |peer: IpAddr| self.model.permits(subject, direction, peer, protocol, port);
        // An address for each group, other than the subject's own where there is a choice; groups are uniform.
        let mut peers: Vec<Option<IpAddr>> = vec![None; self.grouping.groups.len()];
        for (_, addr, g) in &self.grouping.addrs {
            peers[*g].get_or_insert(*addr);
        }
        let groups = peers.iter().enumerate().map(|(i, a)| (i, a.is_some_and(asks))).collect();
        let mut unbound = AddrSet::default();
        for family in Family::ALL {
            let mut starts: Vec<u128> =
                self.grouping.bounds.addrs[family as usize].iter().copied().chain([0]).collect();
            starts.sort_unstable();
            starts.dedup();
            let ends = starts.iter().skip(1).map(|s| s - 1).chain([family.max()]);
            let stretches = starts.iter().copied().zip(ends);
            // An unbound representative: an endpoint's address would be judged by its labels.
            let free = |lo: u128, hi: u128| {
                (lo..=hi).map(|x| family.addr(x)).find(|a| self.model.pod_at(*a).is_none())
            };
            let ranges = stretches.filter(|&(lo, hi)| free(lo, hi).is_some_and(asks)).collect();
            match family {
                Family::V4 => unbound.v4 = Ranges::new(ranges),
                Family::V6 => unbound.v6 = Ranges::new(ranges),
            }
        }
        Rc::new(Permitted { groups, unbound })
    }

    fn under_tiers(&self, group: usize) -> bool {
        let pod = self.grouping.groups[group].pod;
        self.model.cluster_policies.iter().any(|p| self.model.selects(p, pod))
    }
}

fn rules(policy: &Policy, direction: Direction) -> Option<&[PolicyRule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

impl Reference for SetReference<'_> {
    fn groups(&self) -> usize {
        self.grouping.groups.len()
    }

    fn endpoints(&self, node: &str) -> Vec<(IpAddr, usize, bool)> {
        let local = |pod: usize| self.model.pods[pod].node == node;
        self.grouping.addrs.iter().map(|&(pod, addr, group)| (addr, group, local(pod))).collect()
    }

    fn same_pod(&self, node: &str) -> Vec<Vec<IpAddr>> {
        let mut pods: BTreeMap<usize, Vec<IpAddr>> = BTreeMap::new();
        for &i in self.by_node.get(node).map(Vec::as_slice).unwrap_or_default() {
            let (pod, addr, _) = self.grouping.addrs[i];
            pods.entry(pod).or_default().push(addr);
        }
        pods.into_values().filter(|addrs| addrs.len() > 1).collect()
    }

    fn node_addresses(&self, node: &str) -> Vec<IpAddr> {
        self.model.nodes.get(node).map(|n| n.addrs.clone()).unwrap_or_default()
    }

    fn permits(
        &self,
        group: usize,
        direction: Direction,
        protocol: Protocol,
        port: u16,
    ) -> Option<Rc<Permitted>> {
        let key = (group, direction, protocol, port);
        if let Some(known) = self.cache.borrow().answers.get(&key) {
            return known.clone();
        }
        let answer = if !self.model.cluster_policies.is_empty() && self.under_tiers(group) {
            Some(self.tiered(group, direction, protocol, port))
        } else if self.isolating(group, direction).is_empty() {
            None
        } else {
            Some(self.union(direction, self.matching(group, direction, protocol, port)))
        };
        self.cache.borrow_mut().answers.insert(key, answer.clone());
        answer
    }

    fn isolated(&self, group: usize) -> Option<bool> {
        if Direction::ALL.iter().any(|d| !self.isolating(group, *d).is_empty()) {
            return Some(true);
        }
        (!self.under_tiers(group)).then_some(false)
    }

    fn constants(&self) -> &Bounds {
        &self.grouping.bounds
    }

    fn ports(&self, group: usize, direction: Direction) -> Cow<'_, Bounds> {
        let whole = Cow::Borrowed(self.constants());
        if !self.model.cluster_policies.is_empty() && self.under_tiers(group) {
            return whole;
        }
        let pod = self.grouping.groups[group].pod;
        let mut bounds = Bounds::default();
        let isolating = self.isolating(group, direction);
        let rules =
            isolating.iter().flat_map(|&i| rules(&self.model.policies[i], direction).unwrap_or_default());
        for port in rules.flat_map(|rule| rule.ports.iter().flatten()) {
            match port {
                PolicyPort::Range { transport, lo, hi } => bounds.add_ports(*transport, *lo, *hi),
                PolicyPort::Named { transport, name } if direction == Direction::Ingress => {
                    let ports = pod.named_ports(*transport, name);
                    ports.for_each(|(transport, port)| bounds.add_ports(transport, port, port));
                }
                // The peers' ports of that name.
                PolicyPort::Named { .. } => return whole,
            }
        }
        Cow::Owned(bounds)
    }
}
