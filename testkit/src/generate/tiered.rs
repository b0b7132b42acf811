//! ClusterNetworkPolicies of `policy.networking.k8s.io/v1alpha2`.

use super::blocks::networks;
use super::cluster::{PORT_NAMES, PORTS, World};
use super::selector::{of_namespaces, selector};
use crate::random::Random;
use serde_json::{Value, json};

/// A policy; `i` is part of its name. Priorities collide now and then.
pub(super) fn policy(random: &mut Random, world: &World, i: usize) -> Value {
    let subject = match random.below(3) {
        0 => json!({"namespaces": {}}),
        1 => json!({"namespaces": of_namespaces(random, &world.namespaces)}),
        _ => json!({"pods": pods(random, world)}),
    };
    let rules = |random: &mut Random, field: &str| -> Vec<Value> {
        let count = random.between(0, 3);
        (0..count).map(|_| rule(random, world, field)).collect()
    };
    let (ingress, egress) = (rules(random, "from"), rules(random, "to"));
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": format!("c{i}")},
        "spec": {
            "tier": random.word(&["Admin", "Baseline", "Admin"]), "priority": random.below(4), "subject": subject,
            "ingress": ingress, "egress": egress,
        },
    })
}

fn pods(random: &mut Random, world: &World) -> Value {
    json!({"namespaceSelector": of_namespaces(random, &world.namespaces), "podSelector": selector(random)})
}

fn rule(random: &mut Random, world: &World, field: &str) -> Value {
    let count = random.between(1, 2);
    let peers: Vec<Value> = (0..count).map(|_| peer(random, world, field == "to")).collect();
    // The CRD refuses named ports beside addresses.
    let named = !peers.iter().any(|p| p.get("networks").is_some() || p.get("nodes").is_some());
    let mut rule = json!({"action": random.word(&["Accept", "Deny", "Pass"]), field: peers});
    if random.percent(60) {
        let count = random.between(1, 3);
        rule["protocols"] = (0..count).map(|_| protocol(random, named)).collect();
    }
    rule
}

fn peer(random: &mut Random, world: &World, egress: bool) -> Value {
    match random.below(if egress { 5 } else { 2 }) {
        0 => json!({"namespaces": of_namespaces(random, &world.namespaces)}),
        1 => json!({"pods": pods(random, world)}),
        2 => json!({"nodes": selector(random)}),
        _ => json!({"networks": networks(random, world)}),
    }
}

fn protocol(random: &mut Random, named: bool) -> Value {
    if named && random.percent(30) {
        return json!({"destinationNamedPort": random.word(&PORT_NAMES)});
    }
    let port = match random.below(3) {
        0 => json!({"range": {"start": 80, "end": 8085}}),
        1 => json!({"range": {"start": 1, "end": 65535}}),
        _ => json!({"number": random.pick(&PORTS)}),
    };
    json!({random.word(&["tcp", "udp", "sctp"]): {"destinationPort": port}})
}
