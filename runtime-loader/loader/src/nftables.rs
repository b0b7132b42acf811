//! The backend nftables.

pub mod compare;
pub mod delta;
pub mod filled;
pub mod named;
pub mod observe;
pub mod plan;

use crate::Error;
use crate::dataplane::{Dataplane, Denied, InForce, Outcome};
use crate::kernel::Kernel;
use compare::{differences, same_comments};
use filled::filling;
use netpolc_bundle::comment::denying;
use netpolc_bundle::nft::{FILLED, Family, Ruleset};
use netpolc_bundle::{Artifact, Backend, Version};
use observe::{Observed, observe};
use plan::Goal;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// Our tables of nftables, by way of the program nft.
#[derive(Debug)]
pub struct Nftables;

impl Dataplane for Nftables {
    fn backend(&self) -> Backend {
        Backend::Nftables
    }

    fn missing(&self, kernel: &mut dyn Kernel, _: Option<&crate::dataplane::Goal<'_>>) -> Option<String> {
        if !kernel.has("nft") {
            return Some("nft is not installed".to_owned());
        }
        // Who may not ask hears of the capability that is missing when the rules are to be loaded.
        let refused = kernel.has_nftables().err().filter(|e| e.kind() != io::ErrorKind::PermissionDenied)?;
        Some(format!("this kernel has no nftables, or does not let it be used: {refused}"))
    }

    fn apply(
        &self,
        kernel: &mut dyn Kernel,
        goal: &crate::dataplane::Goal<'_>,
        notes: &mut Vec<String>,
    ) -> Result<(Version, Outcome), Error> {
        let none = || Error::Refused("it has no artifacts for nftables".into());
        let version = *goal.bundle.manifest.artifacts.get(&Artifact::Nftables).ok_or_else(none)?;
        let ruleset = goal.read.nftables.as_ref().ok_or_else(none)?;
        refuse(ruleset)?;
        let seen = goal.seen;
        let goal = Goal { script: goal.bundle.script()?, ruleset, interfaces: &goal.interfaces.behind };
        let outcome = match seen {
            Some(seen) => converge(kernel, &goal, version, seen, notes),
            None => {
                let seen = observe(kernel)?;
                converge(kernel, &goal, version, &seen, notes)
            }
        }?;
        Ok((version, outcome))
    }

    fn status(
        &self,
        kernel: &mut dyn Kernel,
        goal: Option<&crate::dataplane::Goal<'_>>,
    ) -> Result<Option<InForce>, Error> {
        let seen = match observe(kernel) {
            Ok(seen) => seen,
            // Where there is no nft, nobody has made tables.
            Err(Error::NoProgram { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if seen.tables.is_empty() {
            return Ok(None);
        }
        let mut drift = seen.drift();
        if let Some(wanted) = goal.and_then(|goal| Some((goal, goal.read.nftables.as_ref()?))) {
            let (goal, wanted) = wanted;
            let there = seen.ruleset();
            drift.extend(there.as_ref().map(|there| differences(wanted, there)).into_iter().flatten());
            for (family, view) in &seen.tables {
                let other = |set: &&str| {
                    let there = view.filling(set);
                    there.is_some_and(|there| there != filling(set, *family, &goal.interfaces.behind))
                };
                if FILLED.iter().any(other) {
                    drift.push(format!("table {family}: other interfaces of pods than the routes say"));
                }
            }
            let witness = there.filter(|_| !drift.is_empty());
            let witness = witness.and_then(|there| named::difference(goal.bundle, wanted, &there));
            drift.extend(witness.map(|witness| witness.to_string()));
        }
        Ok(Some(in_force(&seen, drift)))
    }

    fn has_any(&self, kernel: &mut dyn Kernel) -> Result<bool, Error> {
        Ok(!tables(kernel)?.is_empty())
    }

    fn remove(&self, kernel: &mut dyn Kernel) -> Result<Vec<String>, Error> {
        let tables = tables(kernel)?;
        if !tables.is_empty() {
            kernel.run(&plan::remove(tables.iter()))?;
        }
        Ok(tables.iter().map(|family| format!("table {family} netpolc")).collect())
    }
}

/// Our tables; none where there is no nft.
fn tables(kernel: &mut dyn Kernel) -> Result<BTreeSet<Family>, Error> {
    match kernel.tables() {
        Err(Error::NoProgram { .. }) => Ok(BTreeSet::new()),
        found => found,
    }
}

fn in_force(seen: &Observed, drift: Vec<String>) -> InForce {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut interfaces = Vec::new();
    let mut dropped_packets = BTreeMap::new();
    let mut denied: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (family, view) in &seen.tables {
        let mut count = |what: &str, n: usize| {
            counts.insert(format!("{family}.{what}"), n as u64);
        };
        count("chains", view.names.chains.len());
        count("sets", view.names.sets.len() + view.names.maps.len());
        if let Ok(table) = &view.table {
            count("rules", table.chains.values().map(|chain| chain.rules.len()).sum());
            count("elements", table.sets.values().map(|set| set.elements.len()).sum());
        }
        interfaces.extend(view.interfaces().unwrap_or_default());
        for drops in drops(&view.text) {
            let kind = drops.chain.split('_').next().unwrap_or_default();
            let sum: &mut u64 = dropped_packets.entry(kind.to_owned()).or_default();
            *sum = sum.saturating_add(drops.packets);
            if let Some(whose) = denying(drops.comment) {
                let sum: &mut u64 = denied.entry(whose).or_default();
                *sum = sum.saturating_add(drops.packets);
            }
        }
    }
    let denied = Denied::list(denied);
    interfaces.sort_unstable();
    interfaces.dedup();
    let version = seen.in_force().map(|version| version.to_string());
    InForce { backend: Backend::Nftables, version, counts, interfaces, dropped_packets, denied, drift }
}

/// What a sound script may still not do.
pub(crate) fn refuse(ruleset: &Ruleset) -> Result<(), Error> {
    if ruleset.tables.is_empty() {
        return Err(Error::Refused("the script has no table".into()));
    }
    // Without a flush its rules would come after those in force.
    match ruleset.tables.iter().find(|(_, table)| !table.flush) {
        Some((family, _)) => Err(Error::Refused(format!("the script does not flush table {family} netpolc"))),
        None => Ok(()),
    }
}

fn converge(
    kernel: &mut dyn Kernel,
    goal: &Goal<'_>,
    version: Version,
    before: &Observed,
    notes: &mut Vec<String>,
) -> Result<Outcome, Error> {
    let in_force = before.in_force();
    if in_force == Some(version) && same_comments(goal.ruleset, before) {
        let changes = plan::interfaces(goal, before);
        if !changes.is_empty() {
            kernel.run(&changes)?;
        }
        clean(kernel, goal, before, notes);
        return Ok(if changes.is_empty() { Outcome::Unchanged } else { Outcome::Interfaces });
    }
    for reason in before.drift() {
        notes.push(format!("was found: {reason}"));
    }
    let after = replace(kernel, goal, version, before)?;
    clean(kernel, goal, &after, notes);
    Ok(match in_force {
        Some(before) if before == version => Outcome::Comments,
        None if !before.tables.is_empty() => Outcome::Repaired,
        _ => Outcome::Applied,
    })
}

/// Brings the goal into force, beside the old if that can be, else in tables made anew; the answer is what is there
/// afterwards.
fn replace(
    kernel: &mut dyn Kernel,
    goal: &Goal<'_>,
    version: Version,
    before: &Observed,
) -> Result<Observed, Error> {
    let beside = !plan::conflict(goal, before);
    if beside {
        match kernel.run(&plan::switch(goal, before)) {
            Ok(()) => {
                let after = observe(kernel)?;
                if settled(&after, goal, version) {
                    return Ok(after);
                }
            }
            // Where nothing has drifted, nothing can be in the way: the script itself is what the kernel cannot take.
            Err(error @ Error::Nft(_)) if before.drift().is_empty() => return Err(error),
            Err(Error::Nft(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let middle = observe(kernel)?;
    kernel.run(&plan::rebuild(goal, &middle))?;
    let after = observe(kernel)?;
    if settled(&after, goal, version) {
        return Ok(after);
    }
    let reason = after.drift().join("; ");
    if before.in_force().is_some() && kernel.run(&plan::restore(before, &after)).is_ok() {
        return Err(Error::Restored(reason));
    }
    Err(Error::NotConfirmed(reason))
}

/// Whether the kernel lists the goal's rules, and the interfaces of the pods.
fn settled(seen: &Observed, goal: &Goal<'_>, version: Version) -> bool {
    // A table that the goal does not have is empty by now; it is deleted with the other leftovers.
    let own = |family: Family| goal.ruleset.tables.contains_key(&family);
    seen.in_force_of(&own) == Some(version) && plan::interfaces(goal, seen).is_empty()
}

fn clean(kernel: &mut dyn Kernel, goal: &Goal<'_>, seen: &Observed, notes: &mut Vec<String>) {
    let script = plan::clean(goal.ruleset, seen);
    if script.is_empty() {
        return;
    }
    // What the kernel refuses to this process it may not refuse to nft, which looks at everything first.
    let told = plan::clean_batch(goal.ruleset, seen).is_some_and(|batch| batch.commit().is_ok());
    if told {
        return;
    }
    if let Err(error) = kernel.run(&script) {
        notes.push(format!(
            "leftovers of earlier versions could not be deleted, no packet meets them: {error}"
        ));
    }
}

/// What a rule dropped.
struct Drops<'a> {
    chain: &'a str,
    packets: u64,
    comment: &'a str,
}

/// The figures of `counter packets N bytes N drop` (or `accept`), which the parser leaves out.
fn drops(listing: &str) -> Vec<Drops<'_>> {
    let mut found = Vec::new();
    let mut chain = "";
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["chain", name, "{"] = words.as_slice() {
            chain = name;
        }
        let figures = words.windows(6).find_map(|window| match window {
            // In audit mode a rule that would drop accepts; no other rule that accepts counts.
            ["counter", "packets", number, "bytes", _, "drop" | "accept"] => number.parse::<u64>().ok(),
            _ => None,
        });
        let comment = line.split_once(" comment \"").and_then(|(_, text)| text.trim_end().strip_suffix('"'));
        found.extend(figures.map(|packets| Drops { chain, packets, comment: comment.unwrap_or_default() }));
    }
    found
}
