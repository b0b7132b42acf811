//! Pods grouped by what policies can see of them.
//!
//! A *group* holds the addresses of pods of one namespace that the same selectors of policies match, with equal named ports,
//! that lie in the same ipBlocks: no policy can tell two addresses of one group apart. Selectors are matched once for each
//! group instead of each pod.

use crate::model::{Model, Pod};
use crate::objects::{ClusterPeer, ContainerPort, Labels, PeerKind, PolicyPort, Selector};
use netpolc_ir::addr::{Block, Cidr, Family, bits};
use netpolc_ir::ports::Transport;
use netpolc_ir::proof::Bounds;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::rc::Rc;

/// One group.
#[derive(Debug)]
pub(crate) struct Group<'m> {
    /// A pod of the group: its namespace and named ports are those of all, and whatever policies ask of labels is true of
    /// its own if it is true of theirs.
    pub(crate) pod: &'m Pod,
    /// The ipBlocks that have the group's addresses, by index into [`Grouping::blocks`].
    pub(crate) blocks: Vec<u32>,
}

/// All groups of a model.
#[derive(Debug)]
pub(crate) struct Grouping<'m> {
    pub(crate) groups: Vec<Group<'m>>,
    /// The distinct ipBlocks of all policies.
    pub(crate) blocks: Vec<Block>,
    /// Where answers may change.
    pub(crate) bounds: Bounds,
    /// The group of every pod address: pod index, address, group.
    pub(crate) addrs: Vec<(usize, IpAddr, usize)>,
    by_namespace: BTreeMap<&'m str, Vec<usize>>,
    selected: RefCell<HashMap<SelectorKey, Vec<usize>>>,
}

/// A peer's namespace selector, or else the policy's own namespace, and its pod selector.
type SelectorKey = (Option<Selector>, Option<String>, Selector);

/// What policies can see of a pod: namespace, which of the selectors that are asked of its namespace match, named ports.
type Look<'m> = (&'m str, Rc<[usize]>, Vec<&'m ContainerPort>);

/// For each namespace, the selectors that policies ask of its pods' labels.
struct Asked<'m> {
    selectors: HashMap<&'m str, Vec<&'m Selector>>,
    /// Which of them match, by position, for labels that were seen.
    matching: HashMap<(&'m str, &'m Labels), Rc<[usize]>>,
}

impl<'m> Asked<'m> {
    fn new(model: &'m Model) -> Asked<'m> {
        let mut asked: HashMap<&str, HashSet<&Selector>> = HashMap::new();
        let mut ask = |namespaces: Option<&Selector>, own: &'m str, pods: &'m Selector| match namespaces {
            None => drop(asked.entry(own).or_default().insert(pods)),
            Some(selector) => {
                for (name, _) in model.namespaces.iter().filter(|(_, labels)| selector.matches(labels)) {
                    asked.entry(name).or_default().insert(pods);
                }
            }
        };
        for policy in &model.policies {
            let own = policy.namespace.as_str();
            ask(None, own, &policy.subject);
            let rules = policy.ingress.iter().flatten().chain(policy.egress.iter().flatten());
            for peer in rules.flat_map(|rule| rule.peers.iter().flatten()) {
                if let PeerKind::Pods { namespaces, pods } = &peer.kind {
                    ask(namespaces.as_ref(), own, pods);
                }
            }
        }
        for policy in &model.cluster_policies {
            let (namespaces, pods) = &policy.subject;
            ask(Some(namespaces), "", pods);
            for peer in policy.ingress.iter().chain(&policy.egress).flat_map(|rule| &rule.peers) {
                if let ClusterPeer::Pods(namespaces, pods) = peer {
                    ask(Some(namespaces), "", pods);
                }
            }
        }
        let list = |selectors: HashSet<&'m Selector>| selectors.into_iter().collect();
        let selectors = asked.into_iter().map(|(name, selectors)| (name, list(selectors))).collect();
        Asked { selectors, matching: HashMap::new() }
    }

    fn matching(&mut self, pod: &'m Pod) -> Rc<[usize]> {
        let namespace = pod.namespace.as_str();
        let selectors = self.selectors.get(namespace).map(Vec::as_slice).unwrap_or_default();
        let known = self.matching.entry((namespace, &pod.labels)).or_insert_with(|| {
            let matching = selectors.iter().enumerate().filter(|(_, selector)| selector.matches(&pod.labels));
            matching.map(|(i, _)| i).collect()
        });
        known.clone()
    }
}

impl<'m> Grouping<'m> {
    pub(crate) fn new(model: &'m Model) -> Grouping<'m> {
        let blocks: Vec<Block> = all_blocks(model).into_iter().collect();
        let mut bounds = port_bounds(model);
        for cidr in blocks.iter().flat_map(|b| b.except.iter().chain([&b.cidr])) {
            bounds.add_addrs(cidr.family(), cidr.first(), cidr.last());
        }
        let mut grouping = Grouping {
            groups: Vec::new(),
            blocks,
            bounds,
            addrs: Vec::new(),
            by_namespace: BTreeMap::new(),
            selected: RefCell::default(),
        };
        grouping.fill(model);
        grouping
    }

    fn fill(&mut self, model: &'m Model) {
        let mut stretches: HashMap<(Family, u128), Vec<u32>> = HashMap::new();
        let mut index: HashMap<(Look<'m>, Vec<u32>), usize> = HashMap::new();
        let mut asked = Asked::new(model);
        for (i, pod) in model.pods.iter().enumerate().filter(|(_, pod)| !pod.host_network) {
            let named = pod.ports.iter().filter(|p| p.name.is_some()).collect::<Vec<_>>();
            for &addr in &pod.addrs {
                let (family, number) = (Family::of(addr), bits(addr));
                let start =
                    self.bounds.addrs[family as usize].range(..=number).next_back().copied().unwrap_or(0);
                let blocks = &self.blocks;
                let inside = stretches.entry((family, start)).or_insert_with(|| {
                    let has = |(i, b): (usize, &Block)| b.contains(addr).then_some(i as u32);
                    blocks.iter().enumerate().filter_map(has).collect()
                });
                let look = (pod.namespace.as_str(), asked.matching(pod), named.clone());
                let key = (look, inside.clone());
                let group = *index.entry(key).or_insert_with(|| {
                    self.by_namespace.entry(&pod.namespace).or_default().push(self.groups.len());
                    self.groups.push(Group { pod, blocks: inside.clone() });
                    self.groups.len() - 1
                });
                self.addrs.push((i, addr, group));
            }
        }
    }

    /// The groups of a namespace that a selector matches.
    pub(crate) fn select_in(&self, namespace: &str, pods: &Selector) -> Vec<usize> {
        let groups = self.by_namespace.get(namespace).map(Vec::as_slice).unwrap_or_default();
        groups.iter().copied().filter(|&g| pods.matches(&self.groups[g].pod.labels)).collect()
    }

    /// The groups that a peer matches: `own` is the namespace that counts where no namespace selector is given.
    pub(crate) fn select(
        &self,
        model: &Model,
        namespaces: Option<&Selector>,
        own: &str,
        pods: &Selector,
    ) -> Vec<usize> {
        let key = (namespaces.cloned(), namespaces.is_none().then(|| own.to_owned()), pods.clone());
        if let Some(found) = self.selected.borrow().get(&key) {
            return found.clone();
        }
        let mut found: Vec<usize> = match namespaces {
            None => self.select_in(own, pods),
            Some(selector) => {
                let matching = model.namespaces.iter().filter(|(_, labels)| selector.matches(labels));
                matching.flat_map(|(name, _)| self.select_in(name, pods)).collect()
            }
        };
        found.sort_unstable();
        self.selected.borrow_mut().insert(key, found.clone());
        found
    }

    /// The groups inside a block.
    pub(crate) fn inside(&self, block: &Block) -> Vec<usize> {
        let Ok(index) = self.blocks.binary_search(block) else { return Vec::new() };
        let inside = |g: &Group<'_>| g.blocks.binary_search(&(index as u32)).is_ok();
        self.groups.iter().enumerate().filter(|(_, g)| inside(g)).map(|(i, _)| i).collect()
    }
}

/// The blocks of the addresses of the nodes that a selector matches.
pub(crate) fn node_blocks(model: &Model, selector: &Selector) -> Vec<Block> {
    let nodes = model.nodes.values().filter(|n| selector.matches(&n.labels));
    let addrs = nodes.flat_map(|n| &n.addrs);
    addrs.filter_map(|a| Cidr::new(*a, Family::of(*a).bits())).map(Block::whole).collect()
}

fn all_blocks(model: &Model) -> BTreeSet<Block> {
    let mut blocks = BTreeSet::new();
    let rules =
        model.policies.iter().flat_map(|p| p.ingress.iter().flatten().chain(p.egress.iter().flatten()));
    for peer in rules.flat_map(|r| r.peers.iter().flatten()) {
        if let PeerKind::Block(block) = &peer.kind {
            blocks.insert(block.clone());
        }
    }
    for peer in
        model.cluster_policies.iter().flat_map(|p| p.ingress.iter().chain(&p.egress)).flat_map(|r| &r.peers)
    {
        match peer {
            ClusterPeer::Networks(cidrs) => blocks.extend(cidrs.iter().map(|c| Block::whole(*c))),
            ClusterPeer::Nodes(selector) => blocks.extend(node_blocks(model, selector)),
            ClusterPeer::Pods(..) | ClusterPeer::Unknown => {}
        }
    }
    blocks
}

fn port_bounds(model: &Model) -> Bounds {
    let mut bounds = Bounds::default();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    let rules =
        model.policies.iter().flat_map(|p| p.ingress.iter().flatten().chain(p.egress.iter().flatten()));
    let ports = rules.flat_map(|r| r.ports.iter().flatten());
    let tiered = model.cluster_policies.iter().flat_map(|p| p.ingress.iter().chain(&p.egress));
    for port in ports.chain(tiered.flat_map(|r| r.ports.iter().flatten())) {
        match port {
            PolicyPort::Range { transport, lo, hi } => bounds.add_ports(*transport, *lo, *hi),
            PolicyPort::Named { name, .. } => {
                names.insert(name);
            }
        }
    }
    for port in model.pods.iter().flat_map(|p| &p.ports) {
        if port.name.as_deref().is_some_and(|n| names.contains(n)) {
            bounds.add_ports(port.transport, port.port, port.port);
        }
    }
    for transport in Transport::ALL {
        bounds.ports[transport as usize].insert(0);
    }
    bounds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::resolve;
    use crate::read::read;
    use crate::source::Sources;

    const PODS: [(&str, &str); 4] = [
        ("a-plain", "{}"),
        ("b-other", "{unasked: x}"),
        ("c-asked", "{app: a}"),
        ("d-both", "{app: a, unasked: x}"),
    ];

    /// How the pods of one namespace are grouped beside a policy.
    fn groups(policy: &str) -> Vec<usize> {
        let mut yaml = policy.to_owned();
        for (i, (name, labels)) in PODS.iter().enumerate() {
            yaml += &format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {labels}}}\nspec: \
                 {{nodeName: x, containers: [{{name: c, image: i}}]}}\nstatus: {{phase: Running, podIP: 10.0.0.{}}}\n",
                i + 1
            );
        }
        let mut sources = Sources::default();
        sources.add("a.yaml", yaml.into_bytes());
        let read = read(&sources);
        assert_eq!(read.diagnostics, []);
        let (model, _) = resolve(read.objects);
        let grouping = Grouping::new(&model);
        let mut addrs: Vec<(IpAddr, usize)> = grouping.addrs.iter().map(|(_, a, g)| (*a, *g)).collect();
        addrs.sort();
        addrs.into_iter().map(|(_, group)| group).collect()
    }

    /// Wherever a policy can ask for a label, pods with it are apart from those without; what no one asks for is nothing.
    #[test]
    fn labels_that_are_asked_for_count() {
        let label = "{matchLabels: {app: a}}";
        let network = |spec: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
            )
        };
        let cluster = |spec: &str| {
            format!(
                "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\nspec: \
                 {{tier: Admin, priority: 1, {spec}}}\n"
            )
        };
        let everyone = "subject: {namespaces: {}}";
        let pods = format!("{{pods: {{namespaceSelector: {{}}, podSelector: {label}}}}}");
        let asking = [
            network(&format!("{{podSelector: {label}}}")),
            network(&format!("{{podSelector: {{}}, ingress: [{{from: [{{podSelector: {label}}}]}}]}}")),
            network(&format!(
                "{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{namespaceSelector: {{}}, podSelector: \
                 {label}}}]}}]}}"
            )),
            cluster(&format!("subject: {pods}, ingress: [{{action: Deny, from: [{{namespaces: {{}}}}]}}]")),
            cluster(&format!("{everyone}, ingress: [{{action: Deny, from: [{pods}]}}]")),
            cluster(&format!("{everyone}, egress: [{{action: Deny, to: [{pods}]}}]")),
        ];
        for policy in &asking {
            assert_eq!(groups(policy), [0, 0, 1, 1], "{policy}");
        }
        assert_eq!(groups(&network("{podSelector: {}}")), [0; 4]);
        // In a namespace that a policy is not about, it asks for nothing.
        let elsewhere = asking[0].replace("namespace: shop", "namespace: stock");
        assert_eq!(groups(&elsewhere), [0; 4]);
    }
}
