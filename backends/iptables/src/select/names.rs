//! Objects that are named by their content, and the comments on them.

use super::{Origins, led, rule};
use crate::limits;
use netpolc_bundle::comment::{joined, not_allowed};
use netpolc_bundle::ipt::{Family, PREFIX, Prefix, Rule, Set, SetKind, Target};
use netpolc_ir::unit::{Direction, Origin};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
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

impl Object {
    /// The same, where chains are called otherwise; and so is this one, if it leads to them.
    pub(super) fn leading(&self, names: &HashMap<&str, String>) -> Object {
        let Content::Chain(rules) = &self.content else { return self.clone() };
        let rules: Vec<Rule> =
            rules.iter().map(|rule| Rule { target: led(&rule.target, names), ..rule.clone() }).collect();
        let kind = self.name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        chain(kind.unwrap_or_default(), rules, self.origins.clone())
    }
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
    let labels = origins.into_iter().map(|o| clean(&names.label(o))).filter(|l| !l.is_empty()).collect();
    joined(&labels, limits::IPT_COMMENT_BYTES, "rules")
}

/// The chain that drops what a profile does not allow. Its name, and its comment, are those of the policies, so that it
/// stays while they change, and says for whom it counts.
pub(super) fn denying(names: &dyn Origins, direction: Direction, origins: Rc<Vec<Origin>>) -> Object {
    let policies: BTreeSet<String> = origins.iter().map(|origin| clean(&names.policy(*origin))).collect();
    let name = content_name("DENY", &(direction, &policies));
    let comment = not_allowed(&direction.to_string(), &policies, limits::IPT_COMMENT_BYTES);
    let rule = Rule { comment: Some(comment), ..rule(Vec::new(), Target::Drop) };
    Object { name, content: Content::Chain(Rc::new(vec![rule])), origins }
}

/// Only what stands unchanged between double quotes: iptables-restore takes a backslash and a quote as its own, and ends
/// a rule at the end of a line.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && !matches!(c, '"' | '\\' | '\'')).collect()
}
