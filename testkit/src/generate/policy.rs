//! NetworkPolicies of `networking.k8s.io/v1`.

use super::blocks::ip_blocks;
use super::cluster::{PORT_NAMES, PORTS, World};
use super::selector::{of_namespaces, selector};
use crate::random::Random;
use serde_json::{Map, Value, json};

/// Inclusive ranges: touching, nested, of one port, the whole.
const RANGES: [(u16, u16); 9] = [
    (1, 65535),
    (80, 81),
    (80, 80),
    (82, 442),
    (81, 8080),
    (8080, 8090),
    (8091, 9000),
    (65535, 65535),
    (1, 1),
];

/// A policy; `i` is part of its name.
pub(super) fn policy(random: &mut Random, world: &World, i: usize) -> Value {
    let namespace = random.pick(&world.namespaces).cloned().unwrap_or_default();
    let mut spec = Map::new();
    if random.percent(90) {
        spec.insert("podSelector".to_owned(), selector(random));
    }
    let types: Option<&[&str]> = match random.below(8) {
        0 | 1 => None,
        2 => Some(&["Ingress"]),
        3 => Some(&["Egress"]),
        4 => Some(&["Egress", "Ingress"]),
        5 => Some(&["Ingress", "Ingress"]),
        _ => Some(&["Ingress", "Egress"]),
    };
    if let Some(types) = types {
        spec.insert("policyTypes".to_owned(), json!(types));
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        if let Some(rules) = maybe_list(random, 20, 3, |random| vec![rule(random, world, peers)]) {
            spec.insert(direction.to_owned(), rules);
        }
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": format!("p{i}"), "namespace": namespace}, "spec": spec,
    })
}

/// A list in all its forms: missing, null, empty, or of up to `most` parts. `percent` is that of everything but the last.
fn maybe_list(
    random: &mut Random,
    percent: usize,
    most: usize,
    mut part: impl FnMut(&mut Random) -> Vec<Value>,
) -> Option<Value> {
    if random.percent(percent) {
        return match random.below(3) {
            0 => None,
            1 => Some(Value::Null),
            _ => Some(json!([])),
        };
    }
    let count = random.between(1, most);
    Some(Value::Array((0..count).flat_map(|_| part(random)).collect()))
}

fn rule(random: &mut Random, world: &World, peers: &str) -> Value {
    let mut rule = Map::new();
    if let Some(list) = maybe_list(random, 15, 3, |random| peer(random, world)) {
        rule.insert(peers.to_owned(), list);
    }
    if let Some(list) = maybe_list(random, 25, 3, |random| vec![port(random)]) {
        rule.insert("ports".to_owned(), list);
    }
    Value::Object(rule)
}

fn peer(random: &mut Random, world: &World) -> Vec<Value> {
    match random.below(6) {
        0 => vec![json!({"podSelector": selector(random)})],
        1 => vec![json!({"namespaceSelector": of_namespaces(random, &world.namespaces)})],
        2 => {
            let namespaces = of_namespaces(random, &world.namespaces);
            vec![json!({"namespaceSelector": namespaces, "podSelector": selector(random)})]
        }
        _ => ip_blocks(random, world),
    }
}

fn port(random: &mut Random) -> Value {
    let mut port = Map::new();
    if random.percent(65) {
        port.insert("protocol".to_owned(), json!(random.word(&["TCP", "UDP", "SCTP", "TCP"])));
    }
    match random.below(6) {
        0 => {}
        1 | 2 => {
            port.insert("port".to_owned(), json!(random.word(&PORT_NAMES)));
        }
        3 | 4 => {
            port.insert("port".to_owned(), json!(random.pick(&PORTS)));
        }
        _ => {
            let (lo, hi) = random.pick(&RANGES).copied().unwrap_or((1, 1));
            port.insert("port".to_owned(), json!(lo));
            port.insert("endPort".to_owned(), json!(hi));
        }
    }
    Value::Object(port)
}
