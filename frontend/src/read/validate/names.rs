//! Names: DNS labels and subdomains, qualified names, label values, port names. Each check returns the complaints; there
//! are none for a good name.

/// Longest DNS label, label value and name part of a qualified name (RFC 1123; `validation.LabelValueMaxLength`).
const MAX_LABEL: usize = 63;

/// Longest DNS subdomain (`validation.DNS1123SubdomainMaxLength`).
const MAX_SUBDOMAIN: usize = 253;

/// Longest port name (RFC 6335, `validation.IsValidPortName`).
const MAX_PORT_NAME: usize = 15;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                         and must start and end with an alphanumeric character (e.g. 'example.com')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
                         an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc')";
const LABEL_KEY: &str = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and \
                         end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc') with an \
                         optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                           and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or \
                           '12345')";

fn bounded_by(text: &str, edge: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| edge(*b))
        && bytes.last().is_some_and(|b| edge(*b))
        && bytes.iter().all(|b| edge(*b) || inner(*b))
}

fn lower_or_digit(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_dns_label(text: &str) -> bool {
    bounded_by(text, lower_or_digit, |b| b == b'-')
}

fn is_name_part(text: &str) -> bool {
    bounded_by(text, |b| b.is_ascii_alphanumeric(), |b| matches!(b, b'-' | b'_' | b'.'))
}

/// An object name, or the prefix of a qualified name.
pub(in crate::read) fn subdomain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > MAX_SUBDOMAIN {
        wrong.push(format!("must be no more than {MAX_SUBDOMAIN} characters"));
    }
    if !text.split('.').all(is_dns_label) {
        wrong.push(SUBDOMAIN.into());
    }
    wrong
}

/// A namespace.
pub(in crate::read) fn label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > MAX_LABEL {
        wrong.push(format!("must be no more than {MAX_LABEL} characters"));
    }
    if !is_dns_label(text) {
        wrong.push(LABEL.into());
    }
    wrong
}

/// The key of a label or an annotation.
pub(in crate::read) fn qualified(text: &str) -> Vec<String> {
    let parts: Vec<&str> = text.split('/').collect();
    let mut wrong = Vec::new();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".into());
            } else {
                wrong.extend(subdomain(prefix).into_iter().map(|w| format!("prefix part {w}")));
            }
            name
        }
        _ => return vec![LABEL_KEY.into()],
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".into());
    } else if name.len() > MAX_LABEL {
        wrong.push(format!("name part must be no more than {MAX_LABEL} bytes"));
    }
    if !is_name_part(name) {
        wrong.push(NAME_PART.into());
    }
    wrong
}

/// The value of a label.
pub(in crate::read) fn label_value(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > MAX_LABEL {
        wrong.push(format!("must be no more than {MAX_LABEL} bytes"));
    }
    if !text.is_empty() && !is_name_part(text) {
        wrong.push(LABEL_VALUE.into());
    }
    wrong
}

/// The name of a port.
pub(in crate::read) fn port(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > MAX_PORT_NAME {
        wrong.push(format!("must be no more than {MAX_PORT_NAME} characters"));
    }
    if text.is_empty() || !text.bytes().all(|b| lower_or_digit(b) || b == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".into());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::{label, label_value, port, qualified, subdomain};

    #[test]
    fn good_names_pass_and_bad_ones_do_not() {
        let long = "n".repeat(64);
        let check = |f: fn(&str) -> Vec<String>, good: &[&str], bad: &[&str]| {
            for name in good {
                assert_eq!(f(name), Vec::<String>::new(), "{name}");
            }
            for name in bad {
                assert!(!f(name).is_empty(), "{name}");
            }
        };
        check(label, &["a", "0", "a-b", &long[1..]], &["", "A", "-a", "a-", "a.b", "a_b", "ä", &long]);
        let most = "n".repeat(253);
        let more = "n".repeat(254);
        check(subdomain, &["a", "a.b", "1.2", &most], &["", "a..b", ".a", "a.", "A", "a_b", "../x", &more]);
        check(
            qualified,
            &["a", "A_b.c", "x.y/z", "kubernetes.io/metadata.name", &long[1..]],
            &["", "a/", "/a", "a/b/c", "X/y", "-a", "a!", "a b", &long],
        );
        check(label_value, &["", "a", "A.b_c-d", "1"], &["-", "a-", "x y", "é", &long]);
        check(
            port,
            &["http", "a", "a1-2", "123456789012-ab"],
            &["", "1", "HTTP", "-a", "a-", "a--b", "a_b", "ht tp", "1:20", "1234567890123-ab"],
        );
    }
}
