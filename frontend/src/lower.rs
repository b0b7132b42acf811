//! Model -> IR. Total: every model has a unit. One class for every group of pods, one IR rule for every rule of a
//! policy (and each number that a named port stands for); sharing and merging are left to the passes.

use crate::grouping::{Grouping, node_blocks};
use crate::model::Model;
use crate::objects::{ClusterPeer, ClusterRule, Labels, PeerKind, PolicyPeer, PolicyPort, PolicyRule};
use cranelift_entity::EntityRef;
use netpolc_ir::addr::{Block, Cidr, Family};
use netpolc_ir::ports::{PortSpan, Transport};
use netpolc_ir::unit::*;
use std::collections::{BTreeMap, HashMap};

/// Lowers a model.
pub fn lower(model: &Model) -> Unit {
    let grouping = Grouping::new(model);
    let mut lowering = Lowering { model, grouping: &grouping, unit: Unit::default() };
    lowering.cluster();
    lowering.policies();
    lowering.cluster_policies();
    lowering.unit
}

struct Lowering<'m> {
    model: &'m Model,
    grouping: &'m Grouping<'m>,
    unit: Unit,
}

/// A rule on its way to the IR: who (groups), with whom, on which ports.
struct Draft {
    tier: Tier,
    direction: Direction,
    order: u32,
    action: Action,
    origin: Origin,
    subject: Vec<usize>,
    peers: SetDraft,
}

/// A set of peers as groups and blocks.
#[derive(Clone, Default)]
struct SetDraft {
    groups: Vec<usize>,
    blocks: Vec<Block>,
}

impl SetDraft {
    fn everyone() -> SetDraft {
        SetDraft { groups: Vec::new(), blocks: Family::ALL.map(|f| Block::whole(Cidr::all(f))).to_vec() }
    }
}

impl Lowering<'_> {
    fn cluster(&mut self) {
        let mut hosts: HashMap<&str, Host> = HashMap::new();
        for (name, node) in &self.model.nodes {
            let mut addrs = node.addrs.clone();
            addrs.sort_unstable();
            addrs.dedup();
            hosts.insert(name, self.unit.hosts.push(HostData { name: name.clone(), addrs }));
        }
        for group in &self.grouping.groups {
            self.unit.classes.push(class_name(&group.pod.namespace, &group.pod.labels));
        }
        let mut addrs = self.grouping.addrs.iter().peekable();
        for (i, pod) in self.model.pods.iter().enumerate() {
            let mut own = Vec::new();
            while let Some((_, addr, group)) = addrs.next_if(|(pod, _, _)| *pod == i) {
                own.push((*addr, Class::new(*group)));
            }
            if !own.is_empty() {
                let host = hosts[pod.node.as_str()];
                self.unit.endpoints.push(EndpointData { name: pod.full_name(), host, addrs: own });
            }
        }
    }

    fn set(&mut self, mut groups: Vec<usize>, blocks: Vec<Block>) -> Set {
        groups.sort_unstable();
        groups.dedup();
        self.unit.sets.push(SetData { classes: groups.into_iter().map(Class::new).collect(), blocks })
    }

    fn policies(&mut self) {
        let model = self.model;
        for (i, policy) in model.policies.iter().enumerate() {
            let subject = self.grouping.select_in(&policy.namespace, &policy.subject);
            let ingress = policy.ingress.as_ref().map(|rules| (Direction::Ingress, rules));
            let egress = policy.egress.as_ref().map(|rules| (Direction::Egress, rules));
            let mut number = 0;
            for (direction, rules) in ingress.into_iter().chain(egress) {
                let set = self.set(subject.clone(), Vec::new());
                self.unit.isolations.push(Isolation {
                    direction,
                    subject: set,
                    origins: vec![model.policy_origin(i)],
                });
                for rule in rules {
                    let draft = Draft {
                        tier: Tier::NetworkPolicy,
                        direction,
                        order: 0,
                        action: Action::Accept,
                        origin: model.rule_origin(i, number),
                        subject: subject.clone(),
                        peers: self.peers(&policy.namespace, rule),
                    };
                    number += 1;
                    self.rule(draft, rule.ports.as_deref());
                }
            }
        }
    }

    fn peers(&self, namespace: &str, rule: &PolicyRule) -> SetDraft {
        let Some(peers) = &rule.peers else { return SetDraft::everyone() };
        let mut set = SetDraft::default();
        for PolicyPeer { kind, .. } in peers {
            match kind {
                PeerKind::Pods { namespaces, pods } => {
                    set.groups.extend(self.grouping.select(self.model, namespaces.as_ref(), namespace, pods));
                }
                PeerKind::Block(block) => set.blocks.push(block.clone()),
            }
        }
        set
    }

    fn cluster_policies(&mut self) {
        let model = self.model;
        let mut next: BTreeMap<(Tier, Direction), u32> = BTreeMap::new();
        for (i, policy) in model.cluster_policies.iter().enumerate() {
            let (namespaces, pods) = &policy.subject;
            let subject = self.grouping.select(model, Some(namespaces), "", pods);
            let ingress = policy.ingress.iter().map(|r| (Direction::Ingress, r));
            let rules = ingress.chain(policy.egress.iter().map(|r| (Direction::Egress, r)));
            for (number, (direction, rule)) in rules.enumerate() {
                let order = next.entry((policy.tier, direction)).or_default();
                let draft = Draft {
                    tier: policy.tier,
                    direction,
                    order: *order,
                    action: rule.action,
                    origin: model.cluster_rule_origin(i, number),
                    subject: subject.clone(),
                    peers: self.cluster_peers(rule),
                };
                *order += 1;
                self.rule(draft, rule.ports.as_deref());
            }
        }
    }

    fn cluster_peers(&self, rule: &ClusterRule) -> SetDraft {
        let mut set = SetDraft::default();
        for peer in &rule.peers {
            match peer {
                ClusterPeer::Pods(namespaces, pods) => {
                    set.groups.extend(self.grouping.select(self.model, Some(namespaces), "", pods));
                }
                ClusterPeer::Nodes(selector) => set.blocks.extend(node_blocks(self.model, selector)),
                ClusterPeer::Networks(cidrs) => set.blocks.extend(cidrs.iter().map(|c| Block::whole(*c))),
                ClusterPeer::Unknown if rule.action == Action::Accept => {}
                ClusterPeer::Unknown => set.blocks.extend(SetDraft::everyone().blocks),
            }
        }
        set
    }

    /// Adds a rule: its plain ports as they are, and one rule more for every number that a named port stands for on
    /// some destination.
    fn rule(&mut self, draft: Draft, ports: Option<&[PolicyPort]>) {
        let Some(ports) = ports else {
            self.push(&draft, draft.subject.clone(), draft.peers.clone(), vec![PortSpan::Any]);
            return;
        };
        let mut plain = Vec::new();
        for port in ports {
            match port {
                PolicyPort::Range { transport, lo, hi } => {
                    plain.push(PortSpan::Ports { transport: *transport, lo: *lo, hi: *hi });
                }
                PolicyPort::Named { transport, name } => self.named(&draft, *transport, name),
            }
        }
        if !plain.is_empty() {
            self.push(&draft, draft.subject.clone(), draft.peers.clone(), plain);
        }
    }

    /// A named port is looked up on the destination: the subject for ingress, each peer that is a pod for egress.
    fn named(&mut self, draft: &Draft, transport: Option<Transport>, name: &str) {
        let destinations = match draft.direction {
            Direction::Ingress => draft.subject.clone(),
            Direction::Egress => {
                let inside = draft.peers.blocks.iter().flat_map(|b| self.inside(b));
                draft.peers.groups.iter().copied().chain(inside).collect()
            }
        };
        let mut by_number: BTreeMap<(Transport, u16), Vec<usize>> = BTreeMap::new();
        for group in destinations {
            for found in self.grouping.groups[group].pod.named_ports(transport, name) {
                by_number.entry(found).or_default().push(group);
            }
        }
        for ((transport, number), groups) in by_number {
            let ports = vec![PortSpan::port(transport, number)];
            match draft.direction {
                Direction::Ingress => self.push(draft, groups, draft.peers.clone(), ports),
                Direction::Egress => {
                    let peers = SetDraft { groups, blocks: Vec::new() };
                    self.push(draft, draft.subject.clone(), peers, ports);
                }
            }
        }
    }

    fn inside(&self, block: &Block) -> Vec<usize> {
        if block.cidr.prefix_len() > 0 || !block.except.is_empty() {
            return self.grouping.inside(block);
        }
        // "Everyone" is no block of a policy, so the grouping does not know it.
        let family = block.cidr.family();
        let of_family = self.grouping.addrs.iter().filter(|(_, addr, _)| Family::of(*addr) == family);
        of_family.map(|(_, _, group)| *group).collect()
    }

    fn push(&mut self, draft: &Draft, subject: Vec<usize>, peers: SetDraft, ports: Vec<PortSpan>) {
        let subject = self.set(subject, Vec::new());
        let peers = self.set(peers.groups, peers.blocks);
        let ports = self.unit.ports.push(ports);
        self.unit.rules.push(RuleData {
            tier: draft.tier,
            direction: draft.direction,
            order: draft.order,
            subject,
            peers,
            ports,
            action: draft.action,
            origins: vec![draft.origin],
        });
    }
}

/// How many characters of labels a class's name shows.
const CLASS_NAME_LENGTH: usize = 80;

/// The name of a class, for people: namespace and labels.
fn class_name(namespace: &str, labels: &Labels) -> String {
    let mut name = namespace.to_owned();
    for (key, value) in labels {
        name.push(' ');
        name.push_str(key);
        if !value.is_empty() {
            name.push('=');
            name.push_str(value);
        }
    }
    if name.chars().count() > CLASS_NAME_LENGTH {
        name = name.chars().take(CLASS_NAME_LENGTH).chain("...".chars()).collect();
    }
    name
}
