//! Policies as they are written, to be handed on: a bundle carries those that it was built of.

use super::scalar::whole;
use super::tree::{Node, Value};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

/// Policies as JSON, each once: by kind, namespace and name, in this order. What is written of an object is its type, its
/// name and its `spec`, as the API server would get it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Written {
    policies: BTreeMap<(String, String, String), Json>,
}

impl Written {
    /// An object that was read without errors. `namespace` is empty where the kind has none.
    pub(super) fn add(
        &mut self,
        node: &Node<'_>,
        (api_version, kind): (&str, &str),
        (namespace, name): (&str, &str),
    ) {
        let mut metadata = json!({ "name": name });
        if !namespace.is_empty() {
            metadata["namespace"] = namespace.into();
        }
        let spec = node.get("spec").map_or(Json::Null, |spec| value(&spec.value));
        let object = json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec });
        let id = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.policies.entry(id).or_insert(object);
    }

    /// What was read later; of two with one name the first stays, as among the objects.
    pub(super) fn absorb(&mut self, later: Written) {
        for (id, object) in later.policies {
            self.policies.entry(id).or_insert(object);
        }
    }

    /// A `List` in JSON that can be read again, one policy a line.
    pub fn list(&self) -> String {
        let items: Vec<String> = self.policies.values().map(Json::to_string).collect();
        let items = if items.is_empty() { String::new() } else { format!("\n{}\n", items.join(",\n")) };
        format!("{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{items}]}}\n")
    }
}

/// A whole object as JSON.
pub(super) fn as_written(node: &Node<'_>) -> String {
    value(&node.value).to_string()
}

/// Trees are not deeper than the reader lets them be.
fn value(of: &Value<'_>) -> Json {
    match of {
        Value::Null => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(n) => Json::from(*n),
        Value::Big(n) => Json::from(*n),
        // JSON has no infinities; where a number counts, one is an error.
        Value::Float(n) => whole(*n).map_or_else(|| Json::from(*n), Json::from),
        Value::Str(text) => Json::String(text.to_string()),
        Value::List(items) => Json::Array(items.iter().map(|item| value(&item.value)).collect()),
        Value::Map(entries) => {
            let entries = entries.iter().map(|entry| (entry.key.to_string(), value(&entry.value.value)));
            Json::Object(entries.collect::<Map<_, _>>())
        }
    }
}
