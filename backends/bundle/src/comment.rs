//! Comments of rules, which name the policies behind them.

use std::collections::BTreeSet;

/// Stands in the comment of a rule that drops what no policy allows, between the direction (`ingress` or `egress`, as seen
/// from the pod) and the policies that isolate the pod. The loader counts by it.
pub const NOT_ALLOWED: &str = " not allowed by ";

/// Joins with commas as many texts as fit into so many bytes, and says how many did not; if none fits, how many of what
/// there are. `None` if there are none.
pub fn joined(texts: &BTreeSet<String>, limit: usize, what: &str) -> Option<String> {
    let mut joined = String::new();
    for (i, text) in texts.iter().enumerate() {
        let rest = texts.len() - i;
        let room = if rest > 1 { limit.saturating_sub(", +99999".len()) } else { limit };
        let separator = if joined.is_empty() { 0 } else { 2 };
        if joined.len() + separator + text.len() > room {
            joined.push_str(&if joined.is_empty() { format!("{rest} {what}") } else { format!(", +{rest}") });
            break;
        }
        joined.push_str(if separator == 0 { "" } else { ", " });
        joined.push_str(text);
    }
    (!joined.is_empty()).then_some(joined)
}

/// What a rule says that drops what these policies do not allow, in so many bytes.
pub fn not_allowed(direction: &str, policies: &BTreeSet<String>, limit: usize) -> String {
    let start = format!("{direction}{NOT_ALLOWED}");
    let policies = joined(policies, limit.saturating_sub(start.len()), "policies").unwrap_or_default();
    start + &policies
}

/// Direction and policies of such a comment, whatever stands before them.
pub fn denying(comment: &str) -> Option<(&str, &str)> {
    let (before, policies) = comment.split_once(NOT_ALLOWED)?;
    Some((before.rsplit(' ').next().unwrap_or_default(), policies))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_said_is_read_back() {
        let said = not_allowed("ingress", &names(&["shop/db", "shop/all"]), 128);
        assert_eq!(said, "ingress not allowed by shop/all, shop/db");
        assert_eq!(denying(&said), Some(("ingress", "shop/all, shop/db")));
        assert_eq!(denying(&format!("audit: {said}")), Some(("ingress", "shop/all, shop/db")));
        assert_eq!(denying("source is not the pod"), None);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let many = names(&["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"]);
        assert_eq!(joined(&many, 34, "rules").as_deref(), Some("aaaaaaaaaa, bbbbbbbbbb, cccccccccc"));
        assert_eq!(joined(&many, 33, "rules").as_deref(), Some("aaaaaaaaaa, bbbbbbbbbb, +1"));
        assert_eq!(joined(&many, 8, "rules").as_deref(), Some("3 rules"));
        assert_eq!(joined(&BTreeSet::new(), 8, "rules"), None);
    }
}
