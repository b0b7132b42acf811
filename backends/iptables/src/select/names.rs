//! Objects that are named by their content, and the comments on them.

use super::Origins;
use crate::limits;
use netpolc_bundle::ipt::{Family, PREFIX, Prefix, Rule, Set, SetKind};
use netpolc_ir::unit::Origin;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// An object that several nodes share: objects of equal content are one, and the comment names the policies behind all of
/// its uses on a node.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) name: String,
    pub(super) content: Content,
    pub(super) origins: Rc<Vec<Origin>>,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    Set(Rc<Set>),
    Chain(Rc<Vec<Rule>>),
}

/// A chain. Comments do not count for its name, so that a line that is inserted above a policy renames nothing.
pub(super) fn chain(kind: &str, rules: Vec<Rule>, origins: Rc<Vec<Origin>>) -> Object {
    let bare: Vec<_> = rules.iter().map(|rule| (&rule.matches, &rule.target)).collect();
    Object { name: content_name(kind, &bare), content: Content::Chain(Rc::new(rules)), origins }
}

/// A set. Sets of both families share one space of names; the content tells them apart.
pub(super) fn set_object(
    family: Family,
    kind: SetKind,
    elements: BTreeMap<Prefix, bool>,
    origins: Rc<Vec<Origin>>,
) -> Object {
    let set = Set { family, kind, elements };
    let word = match family {
        Family::V4 => "SET4",
        Family::V6 => "SET6",
    };
    Object { name: content_name(word, &set), content: Content::Set(Rc::new(set)), origins }
}

/// Kind and 48 bits of the hash of the content. Kinds have at most 7 letters, so a name has at most 28 bytes.
fn content_name(kind: &str, content: &impl std::fmt::Debug) -> String {
    debug_assert!(kind.len() <= 7);
    let digest = Sha256::digest(format!("{content:?}").as_bytes());
    let hash: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    format!("{PREFIX}{kind}-{hash}")
}

/// A comment that names origins, as many as fit.
pub(super) fn comment(names: &dyn Origins, origins: impl IntoIterator<Item = Origin>) -> Option<String> {
    let labels: BTreeSet<String> = origins.into_iter().map(|o| clean(&names.label(o))).collect();
    join_within(labels.into_iter().filter(|l| !l.is_empty()).collect(), limits::IPT_COMMENT_BYTES)
}

/// Only what stands unchanged between double quotes: iptables-restore takes a backslash and a quote as its own, and ends
/// a rule at the end of a line.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && !matches!(c, '"' | '\\' | '\'')).collect()
}

/// Joins with commas as many texts as fit, and says how many did not.
fn join_within(texts: Vec<String>, limit: usize) -> Option<String> {
    let mut joined = String::new();
    for (i, text) in texts.iter().enumerate() {
        let rest = texts.len() - i;
        let room = if rest > 1 { limit.saturating_sub(", +99999".len()) } else { limit };
        let separator = if joined.is_empty() { 0 } else { 2 };
        if joined.len() + separator + text.len() > room {
            joined.push_str(&if joined.is_empty() { format!("{rest} rules") } else { format!(", +{rest}") });
            break;
        }
        joined.push_str(if separator == 0 { "" } else { ", " });
        joined.push_str(text);
    }
    (!joined.is_empty()).then_some(joined)
}
