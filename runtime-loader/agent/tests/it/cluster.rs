//! The objects of the tests, and what a bundle does with packets between them.

use netpolc_bundle::Bundle;
use netpolc_ir::ports::Protocol;
use netpolc_ir::unit::{Flow, Verdict};
use netpolc_node::{Machines, NodeJudge};
use netpolc_standin::Standin;
use serde_json::{Value, json};

pub(crate) const DB: &str = "10.244.1.5";
pub(crate) const BACKEND: &str = "10.244.2.5";
pub(crate) const FRONTEND: &str = "10.244.2.6";

pub(crate) fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } } })
}

pub(crate) fn node(name: &str, address: &str, range: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "spec": { "podCIDR": range, "podCIDRs": [range] },
        "status": { "addresses": [{ "type": "Hostname", "address": name },
            { "type": "InternalIP", "address": address }] } })
}

/// A pod that runs, or one without an address yet if `address` is empty.
pub(crate) fn pod(name: &str, node: &str, address: &str) -> Value {
    let ips = if address.is_empty() { json!([]) } else { json!([{ "ip": address }]) };
    let phase = if address.is_empty() { "Pending" } else { "Running" };
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "shop", "name": name, "labels": { "app": name },
            "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }] },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i",
            "ports": [{ "name": "sql", "containerPort": 3306, "protocol": "TCP" }] }] },
        "status": { "phase": phase, "podIP": address, "podIPs": ips, "conditions": [] } })
}

/// Only the backend may reach the database.
pub(crate) fn db_test() -> Value {
    json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "shop", "name": "db-test" },
        "spec": { "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "backend" } } }],
                "ports": [{ "protocol": "TCP", "port": 3306 }] }] } })
}

/// Two nodes, three pods, one policy.
pub(crate) fn fill(api: &Standin) {
    api.apply(namespace("shop"));
    api.apply(node("n1", "172.18.0.2", "10.244.1.0/24"));
    api.apply(node("n2", "172.18.0.3", "10.244.2.0/24"));
    api.apply(pod("db", "n1", DB));
    api.apply(pod("backend", "n2", BACKEND));
    api.apply(pod("frontend", "n2", FRONTEND));
    api.apply(db_test());
}

/// Whether a bundle lets a connection to port 3306/TCP pass.
pub(crate) fn passes(bundle: &Bundle, from: &str, to: &str) -> bool {
    let flow =
        Flow { src: from.parse().unwrap(), dst: to.parse().unwrap(), protocol: Protocol::TCP, port: 3306 };
    let backend = bundle.manifest.backends().into_iter().next().unwrap();
    let machine = Machines::open(bundle).unwrap().take(backend).unwrap();
    let local = bundle.bindings().unwrap().pods.into_iter().flat_map(|p| p.addresses);
    NodeJudge::new(machine, local, &bundle.manifest.node_addresses).decide(&flow) == Verdict::Allow
}

/// `namespace/name` and addresses of the pods that a bundle binds.
pub(crate) fn bindings(bundle: &Bundle) -> Vec<(String, Vec<String>)> {
    let pods = bundle.bindings().unwrap().pods.into_iter();
    pods.map(|p| (p.name, p.addresses.iter().map(ToString::to_string).collect())).collect()
}

/// Whether a bundle binds an address.
pub(crate) fn binds(bundle: &Bundle, address: &str) -> bool {
    bindings(bundle).iter().any(|(_, addresses)| addresses.iter().any(|a| a == address))
}
