//! JSON values as YAML in block style, as `kubectl` prints them. Only for values that this crate makes: keys and most
//! strings are plain.

use serde_json::Value;
use std::fmt::Write as _;

/// Appends a document.
pub(crate) fn document(out: &mut String, value: &Value) {
    out.push_str("---\n");
    block(out, value, 0, false);
}

/// Writes a value whose first line may stand behind `- ` already.
fn block(out: &mut String, value: &Value, indent: usize, mut begun: bool) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                lead(out, indent, &mut begun);
                out.push_str(key);
                out.push(':');
                match value {
                    Value::Object(inner) if !inner.is_empty() => {
                        out.push('\n');
                        block(out, value, indent + 2, false);
                    }
                    // kubectl does not indent a list below its key.
                    Value::Array(inner) if !inner.is_empty() => {
                        out.push('\n');
                        block(out, value, indent, false);
                    }
                    _ => scalar(out, value),
                }
            }
        }
        Value::Array(list) => {
            for value in list {
                lead(out, indent, &mut begun);
                out.push('-');
                match value {
                    Value::Object(inner) if !inner.is_empty() => {
                        out.push(' ');
                        block(out, value, indent + 2, true);
                    }
                    _ => scalar(out, value),
                }
            }
        }
        _ => scalar(out, value),
    }
}

fn lead(out: &mut String, indent: usize, begun: &mut bool) {
    if !std::mem::take(begun) {
        out.extend(std::iter::repeat_n(' ', indent));
    }
}

/// A scalar, `{}` or `[]`, after a space. Writing to a string cannot fail.
fn scalar(out: &mut String, value: &Value) {
    let _ = match value.as_str() {
        Some(text) if plain(text) => writeln!(out, " {text}"),
        _ => writeln!(out, " {value}"),
    };
}

/// Whether a string is read back as one without quotes.
fn plain(text: &str) -> bool {
    let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/' | b'_' | b'-');
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(known)
        && text.parse::<f64>().is_err()
        && !words.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn looks_as_kubectl_prints_it() {
        let mut out = String::new();
        let ports = json!([{ "port": 80, "protocol": "TCP" }, { "port": "http" }]);
        document(
            &mut out,
            &json!({ "a": { "b": "True", "c": "10.0.0.1", "d": {} }, "ports": ports, "t": ["x"] }),
        );
        let expected = "---\na:\n  b: \"True\"\n  c: 10.0.0.1\n  d: {}\nports:\n- port: 80\n  protocol: TCP\n- port: http\nt:\n- x\n";
        assert_eq!(out, expected);
    }
}
