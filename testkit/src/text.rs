//! Documents as text: YAML in block style, JSON, and a `v1` List.

use serde_json::{Value, json};

/// Several documents as a stream of YAML.
pub fn yaml<'a>(documents: impl IntoIterator<Item = &'a Value>) -> String {
    let mut out = String::new();
    for document in documents {
        out.push_str("---\n");
        node(&mut out, document, 0);
    }
    out
}

/// Several documents as a stream of JSON, one a line.
pub fn json<'a>(documents: impl IntoIterator<Item = &'a Value>) -> String {
    documents.into_iter().map(|d| format!("{d}\n")).collect()
}

/// Several documents as one `v1` List in YAML.
pub fn list<'a>(documents: impl IntoIterator<Item = &'a Value>) -> String {
    let items: Vec<&Value> = documents.into_iter().collect();
    yaml([&json!({"apiVersion": "v1", "kind": "List", "items": items})])
}

fn node(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let mut child = |head: String, value: &Value| {
        out.push_str(&indent);
        out.push_str(&head);
        if is_block(value) {
            out.push('\n');
            node(out, value, depth + 1);
        } else {
            // Scalars and empty collections of JSON mean the same in YAML.
            out.push_str(&format!(" {value}\n"));
        }
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(k, v)| child(format!("{}:", key(k)), v))
        }
        Value::Array(items) if !items.is_empty() => items.iter().for_each(|v| child("-".to_owned(), v)),
        scalar => out.push_str(&format!("{indent}{scalar}\n")),
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// A key as people write it, where that is safe.
fn key(key: &str) -> String {
    let plain = key.len() > 3 && key.bytes().all(|b| b.is_ascii_alphabetic());
    if plain && !["true", "false", "null"].contains(&key) {
        key.to_owned()
    } else {
        Value::from(key).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_of_a_document_is_in_block_style() {
        let document =
            json!({"kind": "Pod", "on": {"a": [1, {"b": []}], "c": null}, "labels": {"x/y": "\"\n"}});
        let expected = "---\nkind: \"Pod\"\n\"on\":\n  \"a\":\n    - 1\n    -\n      \"b\": []\n  \"c\": null\nlabels:\n  \
                        \"x/y\": \"\\\"\\n\"\n";
        assert_eq!(yaml([&document]), expected);
    }
}
