//! A script whose verdicts `drop` are `accept`.

use super::refused;
use crate::Error;
use netpolc_bundle::Version;
use netpolc_bundle::nft::{self, Elements, Outcome, Ruleset, Verdict};

/// The script of this version, accepting where it drops, with the marker of its own version.
///
/// # Errors
/// If it drops otherwise than by rules that count.
pub(super) fn accepting(script: &str, version: Version) -> Result<String, Error> {
    let text: Vec<String> = script.lines().map(line).collect();
    let text = text.join("\n") + "\n";
    let changed = nft::parse(&text).map_err(|error| refused("the script drops", error))?;
    if drops(&changed) {
        return Err(refused("the script drops", "a verdict without a counter"));
    }
    // The marker's name is no part of what the version is made from.
    Ok(text.replace(&nft::marker(version), &nft::marker(nft::digest(&changed))))
}

/// A line of a script with its verdict changed, if it drops. A comment comes after the verdict.
fn line(line: &str) -> String {
    let rule = line.split('"').next().unwrap_or_default();
    match rule.find("counter drop") {
        Some(at) => {
            let (before, after) = line.split_at(at);
            format!("{before}{}", after.replacen("counter drop", "counter accept", 1))
        }
        None => line.to_owned(),
    }
}

/// Whether there is a verdict `drop`.
pub(super) fn drops(ruleset: &Ruleset) -> bool {
    let tables = || ruleset.tables.values();
    let rules = tables().flat_map(|table| table.chains.values()).flat_map(|chain| &chain.rules);
    let elements = tables().flat_map(|table| table.sets.values()).filter_map(|set| match &set.elements {
        Elements::General(map) => Some(map.values()),
        Elements::Addrs(_) => None,
    });
    rules.into_iter().any(|rule| rule.outcome == Outcome::Verdict(Verdict::Drop))
        || elements.flatten().any(|verdict| *verdict == Some(Verdict::Drop))
}
