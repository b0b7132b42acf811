//! Objects from the API server, cut down to what policies need as soon as they arrive, and read by the front end as CI
//! reads the same objects from files.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DynamicObject, ObjectMeta};
use netpolc_frontend::diagnostic::Severity;
use netpolc_frontend::objects::{self, ClusterPeer, ClusterPolicy, ClusterRule, Objects, Policy, Selector};
use netpolc_frontend::read::read;
use netpolc_frontend::source::{SourceId, Sources, Span};
use netpolc_ir::unit::{Action, Tier};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The API version of NetworkPolicies.
pub const POLICY_API: &str = "networking.k8s.io/v1";
/// The API version of ClusterNetworkPolicies.
pub const CLUSTER_POLICY_API: &str = "policy.networking.k8s.io/v1alpha2";
/// Names the UID that the kubelet knows a static pod by; the object in the API has another one.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// API objects have no lines; this is where the parts of one stand.
const NOWHERE: Span = Span { source: SourceId(0), start: 0, end: 0 };

/// A pod as it is decoded from the API: a few fields, so that a page of a list costs little.
#[derive(Debug, Clone, Deserialize)]
pub struct WatchedPod {
    #[serde(default, deserialize_with = "slim")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    ports: Option<Vec<Port>>,
    restart_policy: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    container_port: i32,
    protocol: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: Option<String>,
}

/// Metadata without what takes most of its room: managed fields and annotations.
fn slim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Slim {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<Notes>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Notes {
        #[serde(rename = "kubernetes.io/config.mirror")]
        mirror: Option<String>,
    }
    let slim = Slim::deserialize(deserializer)?;
    let mirror = slim.annotations.and_then(|a| a.mirror);
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        uid: slim.uid,
        resource_version: slim.resource_version,
        labels: slim.labels,
        annotations: mirror.map(|m| BTreeMap::from([(MIRROR.to_owned(), m)])),
        creation_timestamp: slim.creation_timestamp,
        deletion_timestamp: slim.deletion_timestamp,
        ..ObjectMeta::default()
    })
}

impl kube::Resource for WatchedPod {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }
    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A pod as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodData {
    /// What policies can see of it.
    pub pod: objects::Pod,
    /// Its UID.
    pub uid: String,
    /// The UID that the kubelet knows it by, if it is a static pod.
    pub mirror: Option<String>,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Seconds since the epoch.
    pub created: i64,
}

impl PodData {
    /// Whether the runtime means this pod by a UID; it may not have said one.
    pub fn is(&self, uid: Option<&str>) -> bool {
        uid.is_none_or(|uid| uid == self.uid || self.mirror.as_deref() == Some(uid))
    }
}

/// A node as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeData {
    /// What policies can see of it.
    pub node: objects::Node,
    /// Its addresses of type InternalIP: what other nodes reach it by.
    pub internal: Vec<IpAddr>,
}

/// A policy as it is kept: if it could not be read, one that isolates stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyData<P> {
    /// What is compiled.
    pub policy: P,
    /// The object's UID.
    pub uid: String,
    /// Why the object itself could not be read.
    pub fault: Option<String>,
}

/// `namespace/name`, or the name alone.
pub fn key(meta: &ObjectMeta) -> String {
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}"),
        _ => name.to_owned(),
    }
}

/// Reads one object; if it has errors, the first one in a sentence.
fn read_object(object: &Value) -> Result<Objects, String> {
    let mut sources = Sources::default();
    sources.add("API server", object.to_string().into_bytes());
    let read = read(&sources);
    match read.diagnostics.into_iter().find(|d| d.severity == Severity::Error) {
        None => Ok(read.objects),
        Some(error) => match error.path {
            Some(path) => Err(format!("{path}: {} ({})", error.message, error.code)),
            None => Err(format!("{} ({})", error.message, error.code)),
        },
    }
}

fn nothing() -> String {
    "it was passed over".to_owned()
}

/// A pod with no more than what policies need.
pub fn pod_object(watched: &WatchedPod) -> Value {
    let WatchedPod { metadata, spec, status } = watched;
    let containers = |list: &Option<Vec<Container>>| -> Vec<Value> {
        let list = list.iter().flatten();
        let trimmed = list.filter_map(|c| {
            // A port without a name is no policy's business.
            let named = |p: &&Port| p.name.as_deref().is_some_and(|n| !n.is_empty());
            let port = |p: &Port| {
                let protocol = p.protocol.as_deref().unwrap_or("TCP");
                json!({ "name": p.name, "containerPort": p.container_port, "protocol": protocol })
            };
            let ports: Vec<Value> = c.ports.iter().flatten().filter(named).map(port).collect();
            let restart = c.restart_policy.as_deref().unwrap_or_default();
            (!ports.is_empty()).then(|| json!({ "ports": ports, "restartPolicy": restart }))
        });
        trimmed.collect()
    };
    let ips = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.as_deref());
    let ips: Vec<Value> = ips.filter(|ip| !ip.is_empty()).map(|ip| json!({ "ip": ip })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": metadata.namespace, "name": metadata.name,
            "labels": metadata.labels.clone().unwrap_or_default() },
        "spec": { "nodeName": spec.node_name, "hostNetwork": spec.host_network.unwrap_or(false),
            "containers": containers(&spec.containers), "initContainers": containers(&spec.init_containers) },
        "status": { "phase": status.phase.as_deref().filter(|p| !p.is_empty()).unwrap_or("Pending"),
            "podIP": status.pod_ip.as_deref().unwrap_or_default(), "podIPs": ips },
    })
}

/// Reads a pod.
///
/// # Errors
/// What is wrong with it.
pub fn pod(watched: &WatchedPod) -> Result<PodData, String> {
    let metadata = &watched.metadata;
    let mut pod = read_object(&pod_object(watched))?.pods.pop().ok_or_else(nothing)?;
    pod.at = NOWHERE;
    pod.owners = Vec::new();
    let seconds = metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second());
    Ok(PodData {
        pod,
        uid: metadata.uid.clone().unwrap_or_default(),
        mirror: metadata.annotations.as_ref().and_then(|a| a.get(MIRROR).cloned()),
        terminating: metadata.deletion_timestamp.is_some(),
        created: seconds,
    })
}

/// An object with no more of its metadata than names and labels, and of the rest only the fields that are named.
pub fn trimmed(object: &DynamicObject, api_version: &str, kind: &str, fields: &[&str]) -> Value {
    let meta = &object.metadata;
    let mut metadata = json!({ "name": meta.name });
    if let Some(namespace) = &meta.namespace {
        metadata["namespace"] = json!(namespace);
    }
    if let Some(labels) = &meta.labels {
        metadata["labels"] = json!(labels);
    }
    let mut out = json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata });
    for field in fields {
        if let Some(value) = object.data.get(field) {
            out[*field] = value.clone();
        }
    }
    out
}

/// Reads a namespace.
///
/// # Errors
/// What is wrong with it.
pub fn namespace(object: &DynamicObject) -> Result<objects::Namespace, String> {
    let read = read_object(&trimmed(object, "v1", "Namespace", &[]))?;
    let mut namespace = read.namespaces.into_iter().next_back().ok_or_else(nothing)?;
    namespace.at = NOWHERE;
    Ok(namespace)
}

/// A node with no more than what policies and routes need.
pub fn node_object(object: &DynamicObject) -> Value {
    let mut value = trimmed(object, "v1", "Node", &[]);
    for field in ["podCIDR", "podCIDRs"] {
        if let Some(range) = object.data.get("spec").and_then(|spec| spec.get(field)) {
            value["spec"][field] = range.clone();
        }
    }
    let addresses = object.data.pointer("/status/addresses").cloned().unwrap_or_else(|| json!([]));
    value["status"] = json!({ "addresses": addresses });
    value
}

/// Reads a node.
///
/// # Errors
/// What is wrong with it.
pub fn node(object: &DynamicObject) -> Result<NodeData, String> {
    let value = node_object(object);
    let addresses = value["status"]["addresses"].as_array().into_iter().flatten();
    let internal = addresses.filter(|a| a["type"] == "InternalIP");
    let internal = internal.filter_map(|a| a["address"].as_str()?.parse().ok()).collect();
    let mut node = read_object(&value)?.nodes.pop().ok_or_else(nothing)?;
    node.at = NOWHERE;
    Ok(NodeData { node, internal })
}

/// Reads a NetworkPolicy. Whatever is wrong with it, something stands for it.
pub fn policy(object: &DynamicObject) -> PolicyData<Policy> {
    let meta = &object.metadata;
    let mut value = trimmed(object, POLICY_API, "NetworkPolicy", &["spec"]);
    let read = |value: &Value| read_object(value)?.policies.pop().ok_or_else(nothing);
    let (policy, fault) = match read(&value) {
        Ok(policy) => (policy, None),
        Err(fault) => {
            let spec = std::mem::take(&mut value["spec"]);
            let subject = |selector: &Value, types: &Value| {
                let mut only = value.clone();
                only["spec"] = json!({ "podSelector": selector, "policyTypes": types });
                read(&only).ok()
            };
            // What can still be read of it counts: whom it selects, and for which directions. A selector that is not
            // there could be one that a later version of the API writes elsewhere, so it is not taken for "everyone"
            // by accident, but on purpose.
            let both = json!(["Ingress", "Egress"]);
            let types = Some(&spec["policyTypes"]).filter(|t| t.as_array().is_some_and(|t| !t.is_empty()));
            let stand_in = subject(&spec["podSelector"], types.unwrap_or(&both))
                .or_else(|| subject(&spec["podSelector"], &both))
                .or_else(|| subject(&json!({}), &both))
                .unwrap_or_else(|| Policy {
                    namespace: meta.namespace.clone().unwrap_or_default(),
                    name: meta.name.clone().unwrap_or_default(),
                    at: NOWHERE,
                    subject: Selector::default(),
                    ingress: Some(Vec::new()),
                    egress: Some(Vec::new()),
                });
            (stand_in, Some(fault))
        }
    };
    PolicyData { policy, uid: meta.uid.clone().unwrap_or_default(), fault }
}

/// Reads a ClusterNetworkPolicy. Whatever is wrong with it, something stands for it.
pub fn cluster_policy(object: &DynamicObject) -> PolicyData<ClusterPolicy> {
    let meta = &object.metadata;
    let mut value = trimmed(object, CLUSTER_POLICY_API, "ClusterNetworkPolicy", &["spec"]);
    let read = |value: &Value| read_object(value)?.cluster_policies.pop().ok_or_else(nothing);
    let (policy, fault) = match read(&value) {
        Ok(policy) => (policy, None),
        Err(fault) => {
            let spec = std::mem::take(&mut value["spec"]);
            let only = |fields: &[&str]| {
                let mut only = value.clone();
                let default = json!({ "tier": "Admin", "priority": 0, "subject": { "namespaces": {} } });
                only["spec"] = default;
                for field in fields {
                    only["spec"][*field] = spec[*field].clone();
                }
                read(&only).ok()
            };
            let readable = only(&["tier", "priority", "subject"])
                .or_else(|| only(&["subject"]))
                .or_else(|| only(&[]))
                .unwrap_or_else(|| ClusterPolicy {
                    kind: "ClusterNetworkPolicy".to_owned(),
                    name: meta.name.clone().unwrap_or_default(),
                    at: NOWHERE,
                    tier: Tier::Admin,
                    priority: 0,
                    subject: (Selector::default(), Selector::default()),
                    ingress: Vec::new(),
                    egress: Vec::new(),
                });
            (isolating(readable), Some(fault))
        }
    };
    PolicyData { policy, uid: meta.uid.clone().unwrap_or_default(), fault }
}

/// A policy of the same subject that denies everything.
fn isolating(policy: ClusterPolicy) -> ClusterPolicy {
    let deny = |direction: &str| ClusterRule {
        at: NOWHERE,
        path: format!("spec.{direction}"),
        action: Action::Deny,
        // A form that is not known matches everyone where a rule denies.
        peers: vec![ClusterPeer::Unknown],
        ports: None,
    };
    ClusterPolicy { ingress: vec![deny("ingress")], egress: vec![deny("egress")], ..policy }
}
