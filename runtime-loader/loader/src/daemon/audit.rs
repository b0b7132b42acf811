//! Audit mode: the same rules, but what they would drop passes and is counted.

use crate::Error;
use netpolc_bundle::nft::{self, Elements, Outcome, Ruleset, Verdict};
use netpolc_bundle::{Artifact, Artifacts, Bundle, Parts};

/// The bundle whose rules accept where those of this one drop. All rules that drop count, so the counters say what would
/// have been dropped. It has rules for nftables alone.
///
/// # Errors
/// If the bundle is not sound, or drops in a way that this module does not know.
pub fn audited(bundle: &Bundle) -> Result<Bundle, Error> {
    let Some(version) = bundle.manifest.artifacts.get(&Artifact::Nftables) else {
        return Err(Error::Refused("audit mode needs rules for nftables, and it has none".into()));
    };
    let old = nft::marker(*version);
    let text: Vec<String> = bundle.script()?.lines().map(accepting).collect();
    let text = text.join("\n") + "\n";
    let changed = nft::parse(&text).map_err(|error| Error::Refused(format!("in audit mode: {error}")))?;
    if drops(&changed) {
        return Err(Error::Refused("audit mode does not know how this script drops".into()));
    }
    // The marker's name is no part of what the version is made from.
    let script = text.replace(&old, &nft::marker(nft::digest(&changed)));
    let manifest = &bundle.manifest;
    Ok(Bundle::new(Parts {
        compiler: manifest.compiler.clone(),
        node: manifest.node.clone(),
        node_addresses: manifest.node_addresses.clone(),
        artifacts: Artifacts { nftables: Some(script), ..Artifacts::default() },
        bindings: bundle.bindings()?,
        ..Parts::default()
    })?)
}

/// A line of a script with its verdict changed, if it drops. A comment comes after the verdict.
fn accepting(line: &str) -> String {
    let rule = line.split('"').next().unwrap_or_default();
    match rule.find("counter drop") {
        Some(at) => {
            let (before, after) = line.split_at(at);
            format!("{before}{}", after.replacen("counter drop", "counter accept", 1))
        }
        None => line.to_owned(),
    }
}

fn drops(ruleset: &Ruleset) -> bool {
    let tables = || ruleset.tables.values();
    let rules = tables().flat_map(|table| table.chains.values()).flat_map(|chain| &chain.rules);
    let elements = tables().flat_map(|table| table.sets.values()).filter_map(|set| match &set.elements {
        Elements::General(map) => Some(map.values()),
        Elements::Addrs(_) => None,
    });
    rules.into_iter().any(|rule| rule.outcome == Outcome::Verdict(Verdict::Drop))
        || elements.flatten().any(|verdict| *verdict == Some(Verdict::Drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(script: &str) -> Bundle {
        let version = nft::digest(&nft::parse(script).unwrap());
        let script = script.replace("version_0123456789abcdef", &nft::marker(version));
        let artifacts = Artifacts { nftables: Some(script), ..Artifacts::default() };
        Bundle::new(Parts { compiler: "0".into(), node: "n".into(), artifacts, ..Parts::default() }).unwrap()
    }

    #[test]
    fn nothing_is_dropped_and_all_else_is_as_it_was() {
        let sample = include_str!("../../tests/it/data/shape.nft");
        let before = bundle(sample);
        let after = audited(&before).unwrap();
        assert_ne!(after.manifest.artifacts, before.manifest.artifacts);
        let (old, new) = (before.script().unwrap(), after.script().unwrap());
        assert_eq!(old.lines().count(), new.lines().count());
        let other: Vec<&str> = old.lines().zip(new.lines()).filter(|(a, b)| a != b).map(|(a, _)| a).collect();
        assert!(other.iter().all(|l| l.contains("counter drop") || l.contains("version_")), "{other:?}");
        let rules = |bundle: &Bundle| bundle.read_back().unwrap().nftables.unwrap();
        assert!(drops(&rules(&before)) && !drops(&rules(&after)));
    }

    #[test]
    fn what_it_does_not_know_is_refused() {
        let sample = include_str!("../../tests/it/data/shape.nft");
        let uncounted = sample.replace("iifname @podif counter drop", "iifname @podif drop");
        assert!(audited(&bundle(&uncounted)).is_err());
        let in_map = sample.replace("17 . 53 : return", "17 . 53 : drop");
        assert!(audited(&bundle(&in_map)).is_err());
        let comment = sample.replace(
            "goto deny_c0c0\n\t}\n\tchain in",
            "goto deny_c0c0 comment \"counter drop\"\n\t}\n\tchain in",
        );
        let after = audited(&bundle(&comment)).unwrap();
        assert!(after.script().unwrap().contains("comment \"counter drop\""));
    }
}
