//! What the stand-in keeps: objects, the history of their changes, and how it is to fail.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The kinds that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `v1` Namespace.
    Namespaces,
    /// `v1` Node.
    Nodes,
    /// `v1` Pod.
    Pods,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicies,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy, if the server was told to serve it.
    ClusterNetworkPolicies,
}

impl Resource {
    const ALL: [Resource; 5] = [
        Resource::Namespaces,
        Resource::Nodes,
        Resource::Pods,
        Resource::NetworkPolicies,
        Resource::ClusterNetworkPolicies,
    ];

    /// API version, kind and path.
    pub(crate) fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Resource::Namespaces => ("v1", "Namespace", "/api/v1/namespaces"),
            Resource::Nodes => ("v1", "Node", "/api/v1/nodes"),
            Resource::Pods => ("v1", "Pod", "/api/v1/pods"),
            Resource::NetworkPolicies => {
                ("networking.k8s.io/v1", "NetworkPolicy", "/apis/networking.k8s.io/v1/networkpolicies")
            }
            Resource::ClusterNetworkPolicies => (
                "policy.networking.k8s.io/v1alpha2",
                "ClusterNetworkPolicy",
                "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
            ),
        }
    }

    pub(crate) fn of_path(path: &str) -> Option<Resource> {
        Resource::ALL.into_iter().find(|r| r.names().2 == path)
    }

    fn of_object(object: &Value) -> Option<Resource> {
        Resource::ALL
            .into_iter()
            .find(|r| object["kind"] == r.names().1 && object["apiVersion"] == r.names().0)
    }

    fn is_namespaced(self) -> bool {
        matches!(self, Resource::Pods | Resource::NetworkPolicies)
    }
}

/// One change.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) version: u64,
    pub(crate) resource: Resource,
    /// The line that a watch sends.
    pub(crate) line: Vec<u8>,
}

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct State {
    version: u64,
    objects: BTreeMap<(Resource, String, String), Value>,
    /// All changes since the oldest version that a watch may start from.
    pub(crate) history: Vec<Entry>,
    pub(crate) oldest: u64,
    pub(crate) held_lists: BTreeSet<Resource>,
    pub(crate) held_watches: BTreeSet<Resource>,
    /// Raised to cut all watches that began before.
    pub(crate) epoch: u64,
    pub(crate) refusing: bool,
    pub(crate) gone_as_status: bool,
    pub(crate) cluster_policies: bool,
    pub(crate) stopping: bool,
    /// Paths of requests, in order.
    pub(crate) requests: Vec<String>,
    /// What was created through the API: path and body.
    pub(crate) created: Vec<(String, Value)>,
}

impl State {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Adds or replaces an object, and fills in what a server would: version, UID, time of creation, namespace.
    ///
    /// # Panics
    /// If it is of no kind that is served; the caller is a test.
    pub(crate) fn apply(&mut self, mut object: Value) {
        let resource = Resource::of_object(&object);
        assert!(resource.is_some(), "not served: {object}");
        let Some(resource) = resource else { return };
        self.version += 1;
        let version = self.version;
        let metadata = &mut object["metadata"];
        if resource.is_namespaced() && metadata["namespace"].is_null() {
            metadata["namespace"] = json!("default");
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (resource, text(&metadata["namespace"]), text(&metadata["name"]));
        let known = self.objects.get(&key);
        for (field, fresh) in [
            ("uid", format!("uid-{version}")),
            ("creationTimestamp", format!("2026-01-01T{:02}:{:02}:00Z", version / 60 % 24, version % 60)),
        ] {
            if metadata[field].is_null() {
                let kept = known.map(|k| k["metadata"][field].clone());
                metadata[field] = kept.unwrap_or_else(|| json!(fresh));
            }
        }
        metadata["resourceVersion"] = json!(version.to_string());
        let change = if known.is_some() { "MODIFIED" } else { "ADDED" };
        self.log(resource, change, &object);
        self.objects.insert(key, object);
    }

    pub(crate) fn delete(&mut self, resource: Resource, namespace: &str, name: &str) -> bool {
        let key = (resource, namespace.to_owned(), name.to_owned());
        let Some(mut object) = self.objects.remove(&key) else { return false };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log(resource, "DELETED", &object);
        true
    }

    /// Tells all watches the present version.
    pub(crate) fn bookmark(&mut self) {
        for resource in Resource::ALL {
            let (api_version, kind, _) = resource.names();
            let version = self.version.to_string();
            let object = json!({ "apiVersion": api_version, "kind": kind,
                "metadata": { "resourceVersion": version, "creationTimestamp": null } });
            self.log(resource, "BOOKMARK", &object);
        }
    }

    /// Forgets the history, so that watches must begin with a list again.
    pub(crate) fn expire(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.history.clear();
        self.epoch += 1;
    }

    fn log(&mut self, resource: Resource, change: &str, object: &Value) {
        let mut line = json!({ "type": change, "object": object }).to_string().into_bytes();
        line.push(b'\n');
        self.history.push(Entry { version: self.version, resource, line });
    }

    /// A page of a list: at most `limit` objects behind the key that `from` names.
    pub(crate) fn list(&self, resource: Resource, limit: usize, from: Option<&str>) -> Value {
        let (api_version, kind, _) = resource.names();
        let full = |key: &(Resource, String, String)| format!("{}/{}", key.1, key.2);
        let mut rest = self
            .objects
            .iter()
            .filter(|(key, _)| key.0 == resource)
            .skip_while(|(key, _)| from.is_some_and(|from| full(key).as_str() <= from))
            .peekable();
        let mut items = Vec::new();
        let mut last = String::new();
        while items.len() < limit
            && let Some((key, object)) = rest.next()
        {
            let mut object = object.clone();
            // Items of typed lists lack both.
            if let Some(fields) = object.as_object_mut() {
                fields.remove("kind");
                fields.remove("apiVersion");
            }
            items.push(object);
            last = full(key);
        }
        let more = if rest.peek().is_some() { json!(last) } else { Value::Null };
        json!({ "apiVersion": api_version, "kind": format!("{kind}List"),
            "metadata": { "resourceVersion": self.version.to_string(), "continue": more },
            "items": items })
    }
}
