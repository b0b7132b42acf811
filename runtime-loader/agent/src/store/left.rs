//! Pods whose object is gone while their sandbox is not.
//!
//! With `kubectl delete --force` an object goes first, and its containers run on until the kubelet has ended them; where it does
//! not work, without end. Another object may have the name meanwhile. What has a sandbox can send, so it is judged as it
//! was last, until the runtime says that the sandbox ends, or gives its addresses to another pod.

use super::{Store, full_name, is_pod_of};
use crate::log;

/// Most characters of a name that stay, so that name and UID are no longer than names of pods may be (253).
const NAME: usize = 216;

impl Store {
    /// The object of a pod is about to be gone, or to give way to that of another pod of its name.
    pub(super) fn leave(&mut self, key: &str) {
        let Some(data) = self.pods.get(key) else { return };
        let mut data = data.clone();
        data.pod.name = name(&data.pod.name, &data.uid);
        let left = full_name(&data.pod);
        let mut any = false;
        for sandbox in self.sandboxes.of_pod_mut(key).filter(|s| is_pod_of(&data, &self.node, s)) {
            sandbox.pod.clone_from(&left);
            any = true;
        }
        if any {
            log::info(
                "the object of a pod is gone, and its sandbox is not; it is judged as before",
                &[("pod", &key)],
            );
            // What the object showed is nobody's claim any more; the sandbox has addresses of its own.
            data.pod.ips.clear();
            self.left.insert(left.clone(), data);
            self.touch([left], &[]);
        }
    }

    /// As [`Store::leave`], for all pods that a list did not mention.
    pub(super) fn leave_unseen(&mut self) {
        let unseen = self.sandboxes.iter().map(|s| &s.pod).filter(|key| self.pods.is_unseen(key));
        for key in unseen.cloned().collect::<Vec<String>>() {
            self.leave(&key);
        }
    }

    /// The object of a pod is there, maybe again.
    pub(super) fn come_back(&mut self, key: &str, uid: &str) {
        let Some((namespace, short)) = key.split_once('/') else { return };
        let left = format!("{namespace}/{}", name(short, uid));
        if self.left.remove(&left).is_some() {
            self.sandboxes.of_pod_mut(&left).for_each(|sandbox| key.clone_into(&mut sandbox.pod));
            self.touch([left, key.to_owned()], &[]);
        }
    }

    /// Forgets those that have no sandbox any more.
    pub(super) fn forget_left(&mut self) {
        let sandboxes = &self.sandboxes;
        self.left.retain(|key, _| sandboxes.of_pod(key).next().is_some());
    }
}

/// No other pod has this name: UIDs are unique.
fn name(name: &str, uid: &str) -> String {
    format!("{}.{uid}", name.chars().take(NAME).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relevant::Pods;
    use crate::sandboxes::Sandboxes;
    use crate::store::{Kind, Object, Told};
    use crate::trim::PodData;
    use netpolc_bundle::wire::Sandbox;
    use netpolc_frontend::objects::{self, Phase};
    use netpolc_frontend::source::{SourceId, Span};
    use std::path::Path;

    fn pod(uid: &str, address: u8) -> Told {
        let pod = objects::Pod {
            namespace: "shop".to_owned(),
            name: "db-0".to_owned(),
            labels: objects::Labels::from([("uid".to_owned(), uid.to_owned())]),
            node: Some("n0".to_owned()),
            host_network: false,
            phase: Phase::Live,
            ips: vec![[10, 0, 0, address].into()],
            ports: Vec::new(),
            owners: Vec::new(),
            at: Span { source: SourceId(0), start: 0, end: 0 },
        };
        let data = PodData { pod, uid: uid.to_owned(), mirror: None, terminating: false, created: 0 };
        Told::Is(Object::Pod(Box::new(data)))
    }

    fn sandbox(uid: &str, address: u8) -> Sandbox {
        Sandbox {
            container: format!("c-{uid}"),
            interface: "eth0".to_owned(),
            pod: "shop/db-0".to_owned(),
            uid: Some(uid.to_owned()),
            addresses: vec![[10, 0, 0, address].into()],
        }
    }

    /// The pods that count, each with its label and the last byte of its address.
    fn local(store: &mut Store) -> Vec<(String, String, String)> {
        store.take_touched();
        let row = |bound: crate::relevant::BoundPod<'_>| {
            (bound.pod.name.clone(), bound.pod.labels["uid"].clone(), bound.ips[0].to_string())
        };
        store.local().into_iter().map(row).collect()
    }

    fn rows(expected: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
        expected.iter().map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned())).collect()
    }

    #[test]
    fn a_pod_without_an_object_is_as_it_was_until_its_sandbox_ends() {
        let mut store = Store::new("n0", Sandboxes::load(Path::new("/nonexistent")));
        store.take(pod("old", 1));
        store.add(sandbox("old", 1)).unwrap();
        let named = rows(&[("db-0", "old", "10.0.0.1")]);
        let left = rows(&[("db-0.old", "old", "10.0.0.1")]);
        assert_eq!(local(&mut store), named);
        // A list that does not mention it, and one that does again.
        for (mentioned, expected) in [(false, &left), (true, &named), (false, &left)] {
            store.take(Told::Begin(Kind::Pods));
            if mentioned {
                store.take(pod("old", 1));
            }
            store.take(Told::Complete(Kind::Pods));
            assert_eq!(&local(&mut store), expected);
        }
        // Another pod of its name, whose sandbox comes before the end of the first.
        store.take(pod("new", 2));
        store.add(sandbox("new", 2)).unwrap();
        let both = rows(&[("db-0", "new", "10.0.0.2"), ("db-0.old", "old", "10.0.0.1")]);
        assert_eq!(local(&mut store), both);
        assert!(store.end(&sandbox("old", 1)));
        assert_eq!(local(&mut store), rows(&[("db-0", "new", "10.0.0.2")]));
        // The address of one that is left, given to another pod.
        store.take(Told::Gone(Kind::Pods, "shop/db-0".to_owned()));
        assert_eq!(local(&mut store), rows(&[("db-0.new", "new", "10.0.0.2")]));
        store.take(pod("third", 2));
        store.add(sandbox("third", 2)).unwrap();
        assert_eq!(local(&mut store), rows(&[("db-0", "third", "10.0.0.2")]));
        assert!(store.left.is_empty());
    }
}
