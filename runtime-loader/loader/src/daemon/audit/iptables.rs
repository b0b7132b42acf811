//! Rules for iptables that return where they drop.
//!
//! They return and do not accept: `ACCEPT` would lead past the rules of others. So a packet goes on through ours, and one
//! that several of them would drop counts for each. What tells them from other rules that return is their comment.

use super::refused;
use crate::Error;
use crate::iptables::passed;
use netpolc_bundle::Version;
use netpolc_bundle::ipt::{self, Ruleset, Table, Target, Texts};

/// Both families' rules of this version, returning where they drop, with the marker of their own version.
///
/// # Errors
/// If a rule drops that does not stand on a line of the compiler's shape, or if more would change than that.
pub(super) fn returning(
    texts: &Texts<'_>,
    rules: &Ruleset,
    version: Version,
) -> Result<(String, String), Error> {
    let mut wanted = rules.clone();
    let all = wanted.tables.values_mut().flat_map(|chains| chains.values_mut()).flatten();
    for rule in all.filter(|rule| rule.target == Target::Drop) {
        rule.target = Target::Return;
        rule.comment = Some(passed::comment(rule.comment.as_deref()));
    }
    // The markers' names are no part of what the version is made from.
    let (old, new) = (ipt::marker(version), ipt::marker(ipt::digest(&wanted)));
    for (_, chains) in wanted.tables.iter_mut().filter(|((_, table), _)| *table == Table::Filter) {
        if let Some(rules) = chains.remove(&old) {
            chains.insert(new.clone(), rules);
        }
    }
    let text = |text: &str| text.lines().map(line).collect::<String>().replace(&old, &new);
    let (v4, v6) = (text(texts.v4), text(texts.v6));
    let changed = ipt::parse(&Texts { sets: texts.sets, v4: &v4, v6: &v6 });
    match changed.map_err(|error| refused("rules for iptables drop", error))? {
        changed if changed == wanted => Ok((v4, v6)),
        _ => Err(refused("rules for iptables drop", "not only by lines that end with `-j DROP`")),
    }
}

/// A line with its end, returning if it drops. The compiler writes a comment right before the target.
fn line(line: &str) -> String {
    const COMMENT: &str = " -m comment --comment ";
    let dropping = line.strip_prefix("-A ").and_then(|_| line.strip_suffix(" -j DROP"));
    let Some(matches) = dropping else { return format!("{line}\n") };
    let quoted = matches.strip_suffix('"').and_then(|rest| rest.rsplit_once('"'));
    let (matches, old) = match quoted.and_then(|(head, old)| Some((head.strip_suffix(COMMENT)?, old))) {
        Some((head, old)) => (head, Some(old)),
        None => (matches, None),
    };
    format!("{matches}{COMMENT}\"{}\" -j RETURN\n", passed::comment(old))
}
