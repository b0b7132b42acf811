//! Rules that return in audit mode where they would drop. They are known by their comment, which is looked after like any
//! other.

use netpolc_bundle::ipt::{Rule, Ruleset, Target};
use netpolc_bundle::limits;

/// What the comment of such a rule begins with. No policy's name has a space.
const MARK: &str = "audit mode: would drop";

/// The comment of such a rule, from the one that it had.
pub fn comment(old: Option<&str>) -> String {
    let mut text = old.map_or_else(|| MARK.to_owned(), |old| format!("{MARK}: {old}"));
    while text.len() > limits::IPT_COMMENT_BYTES {
        text.pop();
    }
    text
}

/// The end of a rule of the loader's own for what is to be dropped.
pub fn target(audit: bool) -> String {
    if audit { format!("-m comment --comment \"{MARK}\" -j RETURN") } else { "-j DROP".to_owned() }
}

/// Whether a rule is one that drops, or would.
pub fn takes(rule: &Rule, audit: bool) -> bool {
    match audit {
        true => rule.target == Target::Return && rule.comment.as_deref().is_some_and(|c| c.starts_with(MARK)),
        false => rule.target == Target::Drop,
    }
}

/// Whether rules are those of audit mode: some would drop, and none does.
pub fn audits(ruleset: &Ruleset) -> bool {
    let rules = || ruleset.tables.values().flat_map(|chains| chains.values()).flatten();
    rules().any(|rule| takes(rule, true)) && !rules().any(|rule| takes(rule, false))
}

/// Whether a line of a listing is a rule that drops, or would in audit mode.
pub fn counts(line: &str) -> bool {
    line.ends_with(" -j DROP")
        || line.ends_with(" -j RETURN") && line.contains(&format!(" -m comment --comment \"{MARK}"))
}
