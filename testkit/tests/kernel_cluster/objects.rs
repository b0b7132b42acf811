//! Objects of the API.

use crate::lan::{addrs, ranges};
use serde_json::{Value, json};
use std::net::IpAddr;

pub(crate) fn namespace(name: &str, team: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name, "team": team } } })
}

pub(crate) fn node(number: u8) -> Value {
    let name = format!("n{number}");
    let own = addrs(number).map(|addr| json!({ "type": "InternalIP", "address": addr.to_string() }));
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "spec": { "podCIDR": ranges(number)[0], "podCIDRs": ranges(number) },
        "status": { "addresses": own } })
}

/// A pod that was scheduled; it runs if it has addresses.
pub(crate) fn pod(pod: &str, uid: &str, labels: &Value, node: &str, addrs: &[IpAddr]) -> Value {
    let (namespace, name) = pod.split_once('/').unwrap();
    let ips: Vec<Value> = addrs.iter().map(|addr| json!({ "ip": addr.to_string() })).collect();
    let phase = if addrs.is_empty() { "Pending" } else { "Running" };
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "uid": uid, "labels": labels },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i",
            "ports": [{ "name": "web", "containerPort": 80, "protocol": "TCP" }] }] },
        "status": { "phase": phase, "podIPs": ips } })
}

/// A policy about the pods of namespace `shop` with label `app: <app>`.
pub(crate) fn policy(name: &str, app: &str, rules: &Value) -> Value {
    let mut spec = json!({ "podSelector": { "matchLabels": { "app": app } }, "policyTypes": [] });
    for (field, kind) in [("ingress", "Ingress"), ("egress", "Egress")] {
        if let Some(rules) = rules.get(field) {
            spec[field] = rules.clone();
            spec["policyTypes"].as_array_mut().unwrap().push(kind.into());
        }
    }
    json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "shop", "name": name, "uid": format!("uid-of-{name}") }, "spec": spec })
}
