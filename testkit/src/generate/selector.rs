//! Labels and selectors.

use crate::random::Random;
use serde_json::{Map, Value, json};

/// Labels of 63 characters, the longest that there are.
const LONG: &str = "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk";
const KEYS: [&str; 7] = ["app", "app", "tier", "example.com/role", "a.b-c.example.org/x_y.z", LONG, "on"];
const VALUES: [&str; 8] = ["", "web", "db", "web", "true", "1.0", "Y_e.s", LONG];

/// Some labels.
pub(super) fn labels(random: &mut Random) -> Map<String, Value> {
    let count = random.between(0, 3);
    (0..count).map(|_| (random.word(&KEYS).to_owned(), Value::from(random.word(&VALUES)))).collect()
}

/// A selector for pods or nodes.
pub(super) fn selector(random: &mut Random) -> Value {
    selector_with(random, &[])
}

/// A selector for namespaces with these names.
pub(super) fn of_namespaces(random: &mut Random, names: &[String]) -> Value {
    selector_with(random, names)
}

fn selector_with(random: &mut Random, names: &[String]) -> Value {
    if random.percent(25) {
        return json!({});
    }
    let mut selector = Map::new();
    if random.percent(50) {
        selector.insert("matchLabels".to_owned(), Value::Object(match_labels(random, names)));
    }
    if random.percent(60) {
        let count = random.between(1, 2);
        let list = (0..count).map(|_| requirement(random, names)).collect();
        selector.insert("matchExpressions".to_owned(), Value::Array(list));
    }
    Value::Object(selector)
}

fn match_labels(random: &mut Random, names: &[String]) -> Map<String, Value> {
    match random.pick(names) {
        Some(name) if random.percent(50) => Map::from_iter([(NAME.to_owned(), Value::from(name.as_str()))]),
        _ => Map::from_iter([(random.word(&KEYS).to_owned(), Value::from(random.word(&VALUES)))]),
    }
}

const NAME: &str = "kubernetes.io/metadata.name";

fn requirement(random: &mut Random, names: &[String]) -> Value {
    let by_name = !names.is_empty() && random.percent(40);
    let key = if by_name { NAME } else { random.word(&KEYS) };
    let operator = random.word(&["In", "NotIn", "Exists", "DoesNotExist"]);
    let mut values = Vec::new();
    if operator.ends_with("In") {
        for _ in 0..random.between(1, 3) {
            values.push(match random.pick(names) {
                Some(name) if by_name => name.clone(),
                _ => random.word(&VALUES).to_owned(),
            });
        }
    }
    match values.is_empty() {
        true => json!({"key": key, "operator": operator}),
        false => json!({"key": key, "operator": operator, "values": values}),
    }
}
