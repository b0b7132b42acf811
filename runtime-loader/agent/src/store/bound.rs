//! The pods that count, as rules are made from them.

use super::view::{Counted, View};
use super::{Store, Touched};
use crate::relevant::{BoundPod, Cluster, Pods};
use crate::table::end_of;
use crate::trim::PodData;
use netpolc_frontend::objects;
use netpolc_frontend::source::{SourceId, Span};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Bound;

/// The pods that count, by name.
#[derive(Debug, Default)]
pub(super) struct Counts {
    all: BTreeMap<String, Counted>,
    /// Those of this node.
    local: BTreeSet<String>,
}

impl Counts {
    /// A pod counts from now on, and whether it is this node's; or it does not count any more.
    fn set(&mut self, key: &str, counted: Option<(Counted, bool)>) {
        if counted.as_ref().is_some_and(|(_, local)| *local) {
            self.local.insert(key.to_owned());
        } else {
            self.local.remove(key);
        }
        match counted {
            Some((counted, _)) => drop(self.all.insert(key.to_owned(), counted)),
            None => drop(self.all.remove(key)),
        }
    }
}

impl Store {
    /// All objects, each where it is kept.
    pub fn cluster(&self) -> Cluster<'_> {
        let mut nodes = self.nodes_with_their_own();
        if self.nodes.get(&self.node).is_none() {
            let at = Span { source: SourceId(0), start: 0, end: 0 };
            let (labels, addrs, pod_cidrs) = Default::default();
            nodes.push(Cow::Owned(objects::Node { name: self.node.clone(), labels, addrs, pod_cidrs, at }));
        }
        Cluster {
            node: &self.node,
            namespaces: self.namespaces.values().collect(),
            nodes,
            pods: self,
            policies: self.policies.values().map(|data| &data.policy).collect(),
            cluster_policies: self.cluster_policies.values().map(|data| &data.policy).collect(),
        }
    }

    /// The nodes with the addresses that are surely theirs: not those that pods of this node were given, whatever Node objects
    /// say; and one that several show, as of a gateway, is that of the node whose InternalIP it is, or nobody's.
    fn nodes_with_their_own(&self) -> Vec<Cow<'_, objects::Node>> {
        let mut owners: HashMap<IpAddr, (usize, Option<&str>)> = HashMap::new();
        let own_first = self.nodes.get(&self.node).into_iter().chain(self.nodes.values());
        for data in own_first {
            for addr in &data.internal {
                owners.entry(*addr).or_default().1.get_or_insert(&data.node.name);
            }
        }
        for addr in self.nodes.values().flat_map(|data| &data.node.addrs) {
            owners.entry(*addr).or_default().0 += 1;
        }
        let sandboxed: HashSet<IpAddr> = self.sandboxes.iter().flat_map(|s| &s.addresses).copied().collect();
        let theirs = |node: &objects::Node, addr: &IpAddr| {
            let (shown, owner) = owners.get(addr).copied().unwrap_or_default();
            !sandboxed.contains(addr) && (shown <= 1 || owner == Some(&node.name))
        };
        let nodes =
            self.nodes.values().map(|data| match data.node.addrs.iter().all(|a| theirs(&data.node, a)) {
                true => Cow::Borrowed(&data.node),
                false => {
                    let mut node = data.node.clone();
                    node.addrs.retain(|addr| theirs(&data.node, addr));
                    Cow::Owned(node)
                }
            });
        nodes.collect()
    }

    /// A pod by its name.
    fn pod(&self, key: &str) -> Option<&PodData> {
        self.pods.get(key).or_else(|| self.left.get(key))
    }

    /// Some pods as they count now, by name; `None` for one that does not.
    pub fn bound<'a>(&'a self, keys: &'a BTreeSet<String>) -> Vec<(&'a str, Option<BoundPod<'a>>)> {
        keys.iter().map(|key| (key.as_str(), self.bound_pod(key))).collect()
    }

    fn bound_pod(&self, key: &str) -> Option<BoundPod<'_>> {
        let (data, counted) = self.pod(key).zip(self.that_count.all.get(key))?;
        Some(self.counted(data, counted))
    }

    fn counted<'a>(&'a self, data: &'a PodData, counted: &'a Counted) -> BoundPod<'a> {
        let node = if counted.told { Some(self.node.as_str()) } else { data.pod.node.as_deref() };
        BoundPod { pod: &data.pod, ips: Cow::Borrowed(&counted.ips), node }
    }

    /// What may have changed since this was asked last. From now on pods count as they do now.
    pub fn take_touched(&mut self) -> Touched {
        let touched = std::mem::take(&mut self.touched);
        let view = View::new(self);
        let count = |key: &str, data: &PodData| {
            let counted = view.count(key, data)?;
            let local = self.counted(data, &counted).is_on(&self.node);
            Some((counted, local))
        };
        if touched.every_pod {
            let mut counts = Counts::default();
            let left = self.left.iter().map(|(key, data)| (key.as_str(), data));
            self.pods.iter().chain(left).for_each(|(key, data)| counts.set(key, count(key, data)));
            self.that_count = counts;
            return touched;
        }
        let of = |key: &String| self.pod(key).and_then(|data| count(key, data));
        let counts: Vec<_> = touched.pods.iter().map(|key| (key, of(key))).collect();
        for (key, counted) in counts {
            self.that_count.set(key, counted);
        }
        touched
    }
}

impl Pods for Store {
    fn namespaces(&self) -> Vec<&str> {
        let (mut names, mut from) = (Vec::new(), String::new());
        let next = |from: &str| {
            let rest = (Bound::Included(from), Bound::Unbounded);
            self.that_count.all.range::<str, _>(rest).next().map(|(key, _)| key)
        };
        while let Some(key) = next(&from) {
            let (name, _) = key.split_once('/').unwrap_or((key, ""));
            names.push(name);
            from = end_of(name);
        }
        names
    }

    fn of_namespace(&self, namespace: &str) -> Vec<BoundPod<'_>> {
        let (from, to) = (format!("{namespace}/"), end_of(namespace));
        let bounds = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
        let counts = self.that_count.all.range::<str, _>(bounds);
        counts.filter_map(|(key, counted)| Some(self.counted(self.pod(key)?, counted))).collect()
    }

    fn local(&self) -> Vec<BoundPod<'_>> {
        self.that_count.local.iter().filter_map(|key| self.bound_pod(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandboxes::Sandboxes;
    use crate::store::{Kind, Object, Told};
    use netpolc_frontend::objects::Phase;
    use std::path::Path;

    const AT: Span = Span { source: SourceId(0), start: 0, end: 0 };

    fn pod(namespace: &str, name: &str, node: &str, address: u8) -> Told {
        let pod = objects::Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: objects::Labels::new(),
            node: Some(node.to_owned()),
            host_network: false,
            phase: Phase::Live,
            ips: vec![[10, 0, 0, address].into()],
            ports: Vec::new(),
            owners: Vec::new(),
            at: AT,
        };
        let data = PodData { pod, uid: format!("u{address}"), mirror: None, terminating: false, created: 0 };
        Told::Is(Object::Pod(Box::new(data)))
    }

    fn names(pods: Vec<BoundPod<'_>>) -> Vec<String> {
        pods.into_iter().map(|bound| format!("{}/{}", bound.pod.namespace, bound.pod.name)).collect()
    }

    /// Names that sort before and after a slash: each namespace has its own pods and no other's, and those of the node are
    /// those whose objects say so now.
    #[test]
    fn pods_by_namespace_and_node() {
        let mut store = Store::new("n0", Sandboxes::load(Path::new("/nonexistent")));
        let spaces = ["a", "a-b", "a.b", "a0", "a00", "aa", "b"];
        for (i, namespace) in (0u8..).zip(spaces) {
            let told =
                objects::Namespace { name: namespace.to_owned(), labels: objects::Labels::new(), at: AT };
            store.take(Told::Is(Object::Namespace(Box::new(told))));
            store.take(pod(namespace, "x", "n0", 2 * i));
            store.take(pod(namespace, "0", "n1", 2 * i + 1));
        }
        store.take_touched();
        let mut found = store.namespaces();
        found.sort_unstable();
        assert_eq!(found, spaces);
        for namespace in spaces {
            let own = ["0", "x"].map(|name| format!("{namespace}/{name}"));
            assert_eq!(names(store.of_namespace(namespace)), own);
        }
        assert!(names(store.of_namespace("nobody")).is_empty());
        let all = store.namespaces().into_iter().flat_map(|name| names(store.of_namespace(name)));
        assert!(all.collect::<Vec<_>>().is_sorted(), "in the order of full names");
        assert_eq!(names(store.local()).len(), spaces.len());

        store.take(pod("a", "x", "n1", 0));
        store.take(pod("b", "0", "n0", 13));
        store.take(Told::Gone(Kind::Pods, "aa/x".to_owned()));
        store.take_touched();
        assert_eq!(names(store.local()), ["a-b/x", "a.b/x", "a0/x", "a00/x", "b/0", "b/x"]);
        assert_eq!(names(store.of_namespace("aa")), ["aa/0"]);
    }
}
