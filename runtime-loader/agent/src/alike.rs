//! Which pods are alike: what a pod that comes can be judged as, so that nothing has to be compiled for it.
//!
//! Two pods are alike if no rule of the node can tell them apart: they are in one namespace, both here or both elsewhere,
//! have the same of the labels and named ports that the policies of the node ask for, and their addresses lie in the
//! same blocks. Policies that matter to the node because of the new pod alone were not compiled, so a pod that such a
//! policy selects is like no other.

use crate::relevant::{Asked, BoundPod};
use crate::store::PolicyName;
use netpolc_bundle::LocalPod;
use netpolc_frontend::model::DEFAULT_NODE;
use netpolc_frontend::objects::{ClusterPeer, ContainerPort, Labels, Objects, PeerKind, Pod, Selector};
use netpolc_ir::addr::Block;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// What rules can see of a pod but its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    namespace: String,
    labels: Labels,
    ports: Vec<ContainerPort>,
    local: bool,
}

/// A pod that counts for the node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    kind: Kind,
    ips: Vec<IpAddr>,
}

/// What a node's rules can see of pods.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The node.
    pub(crate) node: String,
    /// What its policies ask for.
    pub(crate) asked: Asked,
    /// Which selectors of peers a namespace lets through.
    pub(crate) selectors: HashMap<String, Vec<Selector>>,
}

/// The pods that a node's rules were made for, and what tells them apart.
#[derive(Debug, Clone, Default)]
pub struct Alike {
    seen: Seen,
    policies: BTreeSet<(Option<String>, String)>,
    blocks: Vec<Block>,
    pods: HashMap<String, Known>,
    /// The addresses of each kind.
    members: HashMap<Kind, BTreeSet<IpAddr>>,
}

/// What a change takes.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The rules do not depend on it.
    Nothing,
    /// Addresses that come and go.
    Addresses(Addresses),
    /// It must be compiled.
    Compile,
}

/// Addresses that come and go, and whose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    /// Those that go.
    pub gone: Vec<IpAddr>,
    /// Those that come, each with one that is judged alike.
    pub like: Vec<(IpAddr, IpAddr)>,
    /// This node's pods that have others now.
    pub pods: Vec<LocalPod>,
    after: Vec<(String, Option<Known>)>,
}

impl Alike {
    /// For the rules that are made from these objects.
    pub fn new(seen: Seen, objects: &Objects) -> Alike {
        let plain = objects.policies.iter().map(|p| (Some(p.namespace.clone()), p.name.clone()));
        let cluster = objects.cluster_policies.iter().map(|p| (None, p.name.clone()));
        let mut alike = Alike {
            seen,
            policies: plain.chain(cluster).collect(),
            blocks: blocks(objects),
            ..Alike::default()
        };
        for pod in &objects.pods {
            let kind = alike.kind(pod, pod.node.as_deref().unwrap_or(DEFAULT_NODE) == alike.seen.node);
            alike.set(&format!("{}/{}", pod.namespace, pod.name), Some(Known { kind, ips: pod.ips.clone() }));
        }
        alike
    }

    fn kind(&self, pod: &Pod, local: bool) -> Kind {
        let (labels, ports) = self.seen.asked.seen(pod);
        Kind { namespace: pod.namespace.clone(), labels, ports, local }
    }

    fn set(&mut self, key: &str, now: Option<Known>) {
        if let Some(before) = self.pods.remove(key)
            && let Some(members) = self.members.get_mut(&before.kind)
        {
            members.retain(|ip| !before.ips.contains(ip));
            if members.is_empty() {
                self.members.remove(&before.kind);
            }
        }
        if let Some(now) = now {
            self.members.entry(now.kind.clone()).or_default().extend(&now.ips);
            self.pods.insert(key.to_owned(), now);
        }
    }

    /// What pods that may have changed take; each by name, as it counts now. `selecting` says which policies select a pod.
    pub fn judge<'a>(
        &self,
        changes: &[(&str, Option<BoundPod<'_>>)],
        selecting: impl Fn(&Pod) -> Vec<PolicyName<'a>>,
    ) -> Verdict {
        let mut found = Addresses::default();
        let mut new: Vec<(IpAddr, Kind)> = Vec::new();
        for (key, now) in changes {
            let before = self.pods.get(*key);
            let now = match now {
                None => None,
                Some(bound) => match self.known(bound, &selecting) {
                    Ok(now) => now,
                    Err(()) => return Verdict::Compile,
                },
            };
            if before == now.as_ref() {
                continue;
            }
            let same_kind = |other: Option<&Known>, kind: &Kind| other.is_some_and(|o| o.kind == *kind);
            let gone = before.iter().flat_map(|before| {
                let stays = now.as_ref().filter(|now| same_kind(Some(now), &before.kind));
                before.ips.iter().filter(move |ip| stays.is_none_or(|now| !now.ips.contains(ip)))
            });
            found.gone.extend(gone.copied());
            if let Some(now) = &now {
                let stays = before.filter(|before| same_kind(Some(before), &now.kind));
                let fresh = now.ips.iter().filter(|ip| stays.is_none_or(|before| !before.ips.contains(ip)));
                new.extend(fresh.map(|ip| (*ip, now.kind.clone())));
            }
            if [before, now.as_ref()].into_iter().flatten().any(|known| known.kind.local) {
                let mut addresses =
                    now.as_ref().filter(|now| now.kind.local).map(|now| now.ips.clone()).unwrap_or_default();
                addresses.sort_unstable();
                found.pods.push(LocalPod { name: (*key).to_owned(), addresses });
            }
            found.after.push(((*key).to_owned(), now));
        }
        if found.after.is_empty() {
            return Verdict::Nothing;
        }
        for (ip, kind) in &new {
            let alike = |other: &&IpAddr| {
                other.is_ipv4() == ip.is_ipv4()
                    && !new.iter().any(|(new, _)| new == *other)
                    && self.blocks.iter().all(|block| block.contains(**other) == block.contains(*ip))
            };
            let Some(other) = self.members.get(kind).into_iter().flatten().find(alike) else {
                return Verdict::Compile;
            };
            found.like.push((*ip, *other));
        }
        Verdict::Addresses(found)
    }

    /// What the rules see of a pod; `None` if they do not depend on it.
    fn known<'a>(
        &self,
        bound: &BoundPod<'_>,
        selecting: impl Fn(&Pod) -> Vec<PolicyName<'a>>,
    ) -> Result<Option<Known>, ()> {
        let pod = bound.pod;
        let local = bound.is_on(&self.seen.node);
        // A namespace that nobody knew of.
        let selectors = self.seen.selectors.get(&pod.namespace).ok_or(())?;
        if local {
            let known = |(namespace, name): PolicyName<'_>| {
                self.policies.contains(&(namespace.map(str::to_owned), name.to_owned()))
            };
            if !selecting(pod).into_iter().all(known) {
                return Err(());
            }
        } else if !self.seen.asked.every_pod && !selectors.iter().any(|s| s.matches(&pod.labels)) {
            return Ok(None);
        }
        let ipv4 = bound.ips.iter().filter(|ip| ip.is_ipv4()).count();
        if ipv4 > 1 || bound.ips.len() - ipv4 > 1 {
            return Err(());
        }
        Ok(Some(Known { kind: self.kind(pod, local), ips: bound.ips.to_vec() }))
    }

    /// The change is in force.
    pub fn done(&mut self, change: Addresses) {
        for (key, now) in change.after {
            self.set(&key, now);
        }
    }
}

/// All blocks that policies name.
fn blocks(objects: &Objects) -> Vec<Block> {
    let mut blocks = Vec::new();
    let rules =
        objects.policies.iter().flat_map(|p| p.ingress.iter().flatten().chain(p.egress.iter().flatten()));
    for peer in rules.flat_map(|rule| rule.peers.iter().flatten()) {
        if let PeerKind::Block(block) = &peer.kind {
            blocks.push(block.clone());
        }
    }
    let rules = objects.cluster_policies.iter().flat_map(|p| p.ingress.iter().chain(&p.egress));
    for peer in rules.flat_map(|rule| &rule.peers) {
        if let ClusterPeer::Networks(networks) = peer {
            blocks.extend(networks.iter().copied().map(Block::whole));
        }
    }
    // Many rules name the same.
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

pub(crate) type Selectors<'a> = HashMap<&'a str, Vec<&'a Selector>>;

/// Copies what must outlive the policies.
pub(crate) fn owned(selectors: &Selectors<'_>) -> HashMap<String, Vec<Selector>> {
    let copy = |(namespace, list): (&&str, &Vec<&Selector>)| {
        ((*namespace).to_owned(), list.iter().map(|s| (*s).clone()).collect())
    };
    selectors.iter().map(copy).collect()
}
