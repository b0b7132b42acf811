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
