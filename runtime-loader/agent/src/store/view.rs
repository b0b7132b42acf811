//! Who has which address: the word of the CNI plugin, what objects show, and who wins where two lay claim.

use super::{Store, is_pod_of, rank};
use crate::trim::PodData;
use netpolc_bundle::wire::Sandbox;
use netpolc_frontend::objects::Phase;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// A pod that counts.
#[derive(Debug)]
pub(super) struct Counted {
    /// The addresses that count.
    pub(super) ips: Vec<IpAddr>,
    /// Whether the CNI plugin told them.
    pub(super) told: bool,
}

/// Who has which address, as of now.
pub(super) struct View<'a> {
    store: &'a Store,
    of_nodes: HashSet<IpAddr>,
    /// The sandboxes of each pod.
    told: HashMap<&'a str, Vec<&'a Sandbox>>,
    /// The pod of each address that has a sandbox.
    sandboxed: HashMap<IpAddr, &'a str>,
}

impl<'a> View<'a> {
    pub(super) fn new(store: &'a Store) -> View<'a> {
        let mut view = View {
            store,
            of_nodes: store.nodes.values().flat_map(|n| &n.node.addrs).copied().collect(),
            told: HashMap::new(),
            sandboxed: HashMap::new(),
        };
        for sandbox in store.sandboxes.iter() {
            view.told.entry(&sandbox.pod).or_default().push(sandbox);
            view.sandboxed.extend(sandbox.addresses.iter().map(|addr| (*addr, sandbox.pod.as_str())));
        }
        view
    }

    /// The addresses of a pod that count; `None` if it does not count.
    pub(super) fn count(&self, key: &str, data: &PodData) -> Option<Counted> {
        let (mut ips, told) = self.claims(key, data);
        let here = told || data.pod.node.as_deref() == Some(&self.store.node);
        // What the plugin told is so whatever the object says, until the sandbox ends: a pod that the control plane takes for
        // failed may run on. The labels of a namespace that was not told yet might be ones that no peer may have.
        if !told && data.pod.phase == Phase::Finished || !here && !self.knows_namespace(data) {
            return None;
        }
        ips.retain(|ip| (told || !self.of_nodes.contains(ip)) && self.wins(key, data, *ip));
        (!ips.is_empty()).then_some(Counted { ips, told })
    }

    fn knows_namespace(&self, data: &PodData) -> bool {
        self.store.namespaces.get(&data.pod.namespace).is_some()
    }

    /// The addresses that a pod lays claim to, and whether the CNI plugin told them.
    fn claims(&self, key: &str, data: &PodData) -> (Vec<IpAddr>, bool) {
        let told = self.told.get(key).map(Vec::as_slice).unwrap_or_default();
        let mine = told.iter().filter(|s| is_pod_of(data, &self.store.node, s));
        let own: Vec<IpAddr> = mine.flat_map(|s| &s.addresses).copied().collect();
        if !own.is_empty() {
            return (own, true);
        }
        let ended = |ip: &&IpAddr| self.store.sandboxes.has_ended(key, &data.uid, ip);
        let shown = data.pod.ips.iter().filter(|ip| !self.sandboxed.contains_key(*ip) && !ended(ip));
        (shown.copied().collect(), false)
    }

    /// Whether no other pod has a better claim: an address was given to another pod before the object of the first shows it.
    fn wins(&self, key: &str, data: &PodData, ip: IpAddr) -> bool {
        let showing = self.store.showing.get(&ip).into_iter().flatten().map(String::as_str);
        let others = showing.chain(self.sandboxed.get(&ip).copied()).filter(|other| *other != key);
        !others.into_iter().any(|other| {
            let Some(theirs) = self.store.pods.get(other) else { return false };
            let better = match rank(theirs).cmp(&rank(data)) {
                std::cmp::Ordering::Greater => true,
                std::cmp::Ordering::Equal => other < key,
                std::cmp::Ordering::Less => false,
            };
            better && theirs.pod.phase != Phase::Finished && self.claims(other, theirs).0.contains(&ip)
        })
    }
}
