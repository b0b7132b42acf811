//! A ruleset under names that people can follow from one version to the next.
//!
//! The artifact names its objects by their content, so every change of a policy renames what it touches, and a
//! line-by-line comparison shows whole sets as new. For review the same rules get names from the policies behind them
//! (without places): `pods_shop/db-test`. Objects that would get the same name are numbered in the
//! order of their content. The marker of the version is left out, since it changes with everything.

use crate::select::{Origins, Plan, comment};
use netpolc_bundle::nft::{Chain, Elements, Outcome, Ruleset, Set, Table, Verdict};
use std::collections::BTreeMap;

/// The longest name of an object before its number.
const NAME_LENGTH: usize = 100;

/// The rules of a plan for review, and the artifact's name of each object by its name for review. `origins` should give
/// labels without places.
pub fn for_review(plan: &Plan, origins: &dyn Origins) -> (Ruleset, BTreeMap<String, String>) {
    let mut review = Ruleset::default();
    let mut back = BTreeMap::new();
    let label = |name: &String| comment(origins, plan.provenance.get(name).into_iter().flatten().copied());
    for (family, table) in &plan.ruleset.tables {
        let names = names(table, &label);
        let rename = |name: &String| names.get(name).cloned().unwrap_or_else(|| name.clone());
        let mut renamed = Table { flush: table.flush, ..Table::default() };
        for (name, set) in &table.sets {
            let mut set = rename_set(set, &rename);
            set.comment = set.comment.or_else(|| label(name));
            renamed.sets.insert(rename(name), set);
        }
        for (name, chain) in table.chains.iter().filter(|(name, _)| !name.starts_with("version_")) {
            renamed.chains.insert(rename(name), rename_chain(chain, &rename));
        }
        review.tables.insert(*family, renamed);
        back.extend(names.into_iter().map(|(artifact, review)| (review, artifact)));
    }
    (review, back)
}

/// The names for review of the objects that are named by content.
fn names(table: &Table, label: &impl Fn(&String) -> Option<String>) -> BTreeMap<String, String> {
    let mut groups: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for name in table.sets.keys().chain(table.chains.keys()) {
        let Some((kind, _)) = name.rsplit_once('_').filter(|(_, hash)| is_hash(hash)) else { continue };
        let slug = slug(&label(name).unwrap_or_default());
        let base = if slug.is_empty() { kind.to_owned() } else { format!("{kind}_{slug}") };
        groups.entry(base).or_default().push(name);
    }
    let mut names = BTreeMap::new();
    for (base, artifacts) in groups {
        for (i, artifact) in artifacts.into_iter().enumerate() {
            let number = if i == 0 { String::new() } else { format!(".{}", i + 1) };
            names.insert(artifact.clone(), format!("{base}{number}"));
        }
    }
    names
}

fn is_hash(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A comment as part of a name: what nft does not take in an identifier becomes `-`.
fn slug(comment: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_') { c } else { '-' };
    let mut slug: String = comment.chars().take(NAME_LENGTH).map(fits).collect();
    while slug.contains("--") {
        slug = slug.replace("--", "-");
    }
    slug.trim_end_matches('-').to_owned()
}

fn rename_verdict(verdict: &Verdict, rename: &impl Fn(&String) -> String) -> Verdict {
    match verdict {
        Verdict::Jump(chain) => Verdict::Jump(rename(chain)),
        Verdict::Goto(chain) => Verdict::Goto(rename(chain)),
        other => other.clone(),
    }
}

fn rename_set(set: &Set, rename: &impl Fn(&String) -> String) -> Set {
    let elements = match &set.elements {
        Elements::Addrs(addrs) => Elements::Addrs(addrs.clone()),
        Elements::General(map) => {
            let renamed = map.iter().map(|(k, v)| (k.clone(), v.as_ref().map(|v| rename_verdict(v, rename))));
            Elements::General(renamed.collect())
        }
    };
    Set { elements, ..set.clone() }
}

fn rename_chain(chain: &Chain, rename: &impl Fn(&String) -> String) -> Chain {
    use netpolc_bundle::nft::Match;
    let mut chain = chain.clone();
    for rule in &mut chain.rules {
        for condition in &mut rule.matches {
            if let Match::InSet(_, set) = condition {
                *set = rename(set);
            }
        }
        rule.outcome = match &rule.outcome {
            Outcome::Verdict(verdict) => Outcome::Verdict(rename_verdict(verdict, rename)),
            Outcome::Vmap(fields, map) => Outcome::Vmap(fields.clone(), rename(map)),
        };
    }
    chain
}
