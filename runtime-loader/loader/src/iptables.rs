//! The backend iptables: our chains in `filter` and `mangle` of both families, and ipsets, by way of the programs.
//!
//! The order is that of the compiler's module `emit`: new sets, then the rules, one restore for each family, then old sets
//! go. Both restores are one [`Kernel::sequence`]: if the second fails, the first is taken back, and they come to one of
//! these ends though the loader be killed. The marker chain of each family says which version it has.

pub mod compare;
pub mod counters;
pub mod known;
pub mod named;
pub mod observe;
pub mod passed;
pub mod plan;
pub mod probe;
pub mod variant;

use crate::Error;
use crate::dataplane::{Dataplane, Denied, Goal, InForce, Outcome};
use crate::kernel::{Kernel, Step};
use compare::{differences, same_comments};
use counters::Dropped;
use netpolc_bundle::ipt::{self, Family, Ruleset};
use netpolc_bundle::{Artifact, Backend, Version};
use observe::{Observed, observe, word};
use plan::Wanted;
use probe::RESTORE;
use std::collections::BTreeMap;
use std::time::Duration;
use variant::{Scope, Tools, Variant, View, Views};

/// How often it is tried to destroy a set. The rules of nftables let go of it a moment after they are gone
/// (`nf_tables_trans_destroy_work`, `net/netfilter/nf_tables_api.c`).
const DESTROY_ATTEMPTS: u32 = 10;

/// Our chains of iptables and our ipsets, by way of the programs.
#[derive(Debug)]
pub struct Iptables;

impl Dataplane for Iptables {
    fn backend(&self) -> Backend {
        Backend::Iptables
    }

    /// Looks for programs only; what the kernel has is tried when it comes to it.
    fn missing(&self, kernel: &mut dyn Kernel, goal: Option<&Goal<'_>>) -> Option<String> {
        let tools: Vec<Tools> =
            Variant::ALL.into_iter().filter_map(|variant| Tools::find(kernel, variant)).collect();
        if tools.is_empty() {
            return Some("neither iptables-nft nor iptables-legacy is installed".to_owned());
        }
        if variant::has_ipv6(kernel) && !tools.iter().any(|tools| kernel.has(&tools.restore(Family::V6))) {
            return Some("ip6tables is not installed, and this network namespace has IPv6".to_owned());
        }
        // Only a bundle can need sets.
        let goal = goal?;
        let needs_sets = goal.read.iptables.as_ref().is_some_and(|ruleset| !ruleset.sets.is_empty());
        let without_sets = needs_sets && goal.read.iptables_plain.is_none() && !kernel.has("ipset");
        without_sets.then(|| "ipset is not installed, and the bundle has no rules without sets".to_owned())
    }

    fn apply(
        &self,
        kernel: &mut dyn Kernel,
        goal: &Goal<'_>,
        notes: &mut Vec<String>,
    ) -> Result<(Version, Outcome), Error> {
        let unusable = |reason: String| Error::Unusable { backend: Backend::Iptables, reason };
        let views = Views::take(kernel)?;
        let reasons = views.unusable.join("; ");
        let (view, why, others) = views.choose(kernel).ok_or_else(|| unusable(reasons))?;
        let (families, note) = probe::families(kernel, &view).map_err(unusable)?;
        notes.extend(note);
        let before = observe(kernel, view)?;
        let (artifact, ruleset, reason) = choose(kernel, goal, &before)?;
        let version = *goal
            .bundle
            .manifest
            .artifacts
            .get(&artifact)
            .ok_or_else(|| Error::Refused("it has no artifacts for iptables".into()))?;
        let how = reason.map_or("with ipsets".to_owned(), |reason| format!("without ipsets: {reason}"));
        let how = format!("{}: {why}; {how}", before.tools.variant);
        let wanted = Wanted {
            texts: goal.bundle.iptables(artifact == Artifact::Iptables)?,
            ruleset,
            version,
            interfaces: plan::interfaces(&goal.interfaces.all()),
            half: (families.len() < Family::ALL.len()).then(|| ipt::digest(&half(ruleset))),
            families,
        };
        let outcome = converge(kernel, &wanted, before, notes)?;
        notes.extend(Some(how).filter(|_| outcome != Outcome::Unchanged));
        for view in others.iter().filter(|view| view.has_ours()) {
            take_out(kernel, view)?;
            notes.push(format!("removed our chains of {}", view.tools.variant));
        }
        Ok((version, outcome))
    }

    fn status(&self, kernel: &mut dyn Kernel, goal: Option<&Goal<'_>>) -> Result<Option<InForce>, Error> {
        let mut views = Views::take_ours(kernel, Scope::Counters)?;
        let mut dropped = Dropped::default();
        for text in views.views.iter_mut().flat_map(|view| view.texts.values_mut()) {
            counters::dropped(text, &mut dropped);
            *text = counters::strip(text);
        }
        let Some((view, _, others)) = views.choose(kernel) else { return without_chains(kernel) };
        let seen = observe(kernel, view)?;
        let elsewhere: Vec<&View> = others.iter().filter(|view| view.has_ours()).collect();
        if seen.is_empty() && elsewhere.is_empty() {
            return Ok(None);
        }
        let mut drift = seen.drift();
        if !seen.has_chains() {
            drift.push(NO_CHAINS.to_owned());
        }
        drift.extend(elsewhere.iter().map(|view| format!("{} has chains of ours, too", view.tools.variant)));
        if let Some(goal) = goal {
            drift.extend(against(goal, &seen));
        }
        Ok(Some(in_force(&seen, drift, dropped)))
    }

    fn has_any(&self, kernel: &mut dyn Kernel) -> Result<bool, Error> {
        let views = Views::take_ours(kernel, Scope::Ours)?.views;
        Ok(views.iter().any(View::has_ours) || !observe::set_names(&observe::saved_sets(kernel)?).is_empty())
    }

    fn remove(&self, kernel: &mut dyn Kernel) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        for view in Views::take_ours(kernel, Scope::Ours)?.views {
            if view.has_ours() {
                take_out(kernel, &view)?;
                removed.push(format!("chains of {}", view.tools.variant));
            }
        }
        let sets: Vec<String> = observe::set_names(&observe::saved_sets(kernel)?).into_keys().collect();
        if !sets.is_empty() {
            removed.push(format!("{} ipsets", sets.len()));
            destroy(kernel, sets)?;
        }
        Ok(removed)
    }
}

const NO_CHAINS: &str = "there are sets of ours, but no chains";

/// What is in force where no variant has chains of ours: nothing, unless somebody left our sets.
fn without_chains(kernel: &mut dyn Kernel) -> Result<Option<InForce>, Error> {
    let sets = observe::set_names(&observe::saved_sets(kernel)?).len() as u64;
    Ok((sets > 0).then(|| InForce {
        backend: Backend::Iptables,
        version: None,
        counts: BTreeMap::from([("sets".to_owned(), sets)]),
        interfaces: Vec::new(),
        dropped_packets: BTreeMap::new(),
        denied: Vec::new(),
        drift: vec![NO_CHAINS.to_owned()],
    }))
}

/// The artifact that this kernel takes, its rules, and why it is the one without sets if it is.
fn choose<'a>(
    kernel: &mut dyn Kernel,
    goal: &'a Goal<'_>,
    seen: &Observed,
) -> Result<(Artifact, &'a Ruleset, Option<String>), Error> {
    let plain = goal.read.iptables_plain.as_ref().map(|ruleset| (Artifact::IptablesPlain, ruleset));
    let Some(ruleset) = &goal.read.iptables else {
        let (artifact, ruleset) =
            plain.ok_or_else(|| Error::Refused("it has no artifacts for iptables".into()))?;
        return Ok((artifact, ruleset, Some("the bundle has no others".to_owned())));
    };
    match probe::sets_missing(kernel, &seen.tools, ruleset, Some(seen)) {
        None => Ok((Artifact::Iptables, ruleset, None)),
        Some(reason) => match plain {
            Some((artifact, ruleset)) => Ok((artifact, ruleset, Some(reason))),
            None => Err(Error::Unusable { backend: Backend::Iptables, reason }),
        },
    }
}

/// The rules and sets of IPv4.
fn half(ruleset: &Ruleset) -> Ruleset {
    let mut half = ruleset.clone();
    half.tables.retain(|(family, _), _| *family == Family::V4);
    half.sets.retain(|_, set| set.family == Family::V4);
    half
}

fn look(kernel: &mut dyn Kernel, tools: &Tools) -> Result<Observed, Error> {
    let view = View::take(kernel, tools.clone(), Scope::Ours)?;
    observe(kernel, view)
}

fn converge(
    kernel: &mut dyn Kernel,
    wanted: &Wanted<'_>,
    before: Observed,
    notes: &mut Vec<String>,
) -> Result<Outcome, Error> {
    let in_force = before.in_force();
    let seen = before.ruleset();
    // A half that was in force is another thing than the whole.
    let whole = wanted.families.iter().all(|family| before.has_chains_of(*family));
    let same = in_force == Some(wanted.version) && whole;
    if same && seen.is_some_and(|seen| same_comments(wanted.ruleset, &seen, &wanted.families)) {
        let families = wanted.other_interfaces(&before);
        let texts = families.iter().map(|family| {
            let old = before.interfaces(*family).unwrap_or_default();
            (*family, plan::podif(wanted, &wanted.interfaces), plan::podif(wanted, &old))
        });
        restore(kernel, &before.tools, texts.collect())?;
        clean(kernel, wanted, &before, notes);
        return Ok(if families.is_empty() { Outcome::Unchanged } else { Outcome::Interfaces });
    }
    notes.extend(before.drift().into_iter().map(|reason| format!("was found: {reason}")));
    let after = replace(kernel, wanted, &before)?;
    clean(kernel, wanted, &after, notes);
    Ok(match in_force {
        Some(_) if same => Outcome::Comments,
        None if before.has_chains() => Outcome::Repaired,
        _ => Outcome::Applied,
    })
}

/// Loads texts, each with the text that takes it back.
fn restore(
    kernel: &mut dyn Kernel,
    tools: &Tools,
    texts: Vec<(Family, String, String)>,
) -> Result<(), Error> {
    let programs: Vec<String> = texts.iter().map(|(family, ..)| tools.restore(*family)).collect();
    let steps = programs.iter().zip(&texts).map(|(program, (_, input, undo))| Step {
        program,
        args: &RESTORE,
        input,
        undo,
    });
    let steps: Vec<Step<'_>> = steps.collect();
    if steps.is_empty() { Ok(()) } else { kernel.sequence(&steps) }
}

/// Brings the goal into force; the answer is what is there afterwards.
fn replace(kernel: &mut dyn Kernel, wanted: &Wanted<'_>, before: &Observed) -> Result<Observed, Error> {
    let mut seen = before.clone();
    let mut reason = String::new();
    for attempt in 0..2 {
        let loaded = load(kernel, wanted, &seen);
        let after = look(kernel, &before.tools)?;
        match loaded {
            Ok(()) if settled(&after, wanted) => return Ok(after),
            Ok(()) => reason = shortcomings(&after, wanted),
            // Another program was at the built-in chains meanwhile, so a rule to be deleted was not there any more.
            Err(Error::Program { .. })
                if attempt == 0 && same_rules(&after, &seen) && after.scans != seen.scans => {}
            Err(error) => {
                let back = same_rules(&after, before) || take_back(kernel, wanted, before);
                drop_new_sets(kernel, wanted, before);
                return Err(if back { error } else { Error::NotConfirmed(error.to_string()) });
            }
        }
        seen = after;
    }
    if before.in_force().is_some() && take_back(kernel, wanted, before) {
        drop_new_sets(kernel, wanted, before);
        return Err(Error::Restored(reason));
    }
    Err(Error::NotConfirmed(reason))
}

fn load(kernel: &mut dyn Kernel, wanted: &Wanted<'_>, seen: &Observed) -> Result<(), Error> {
    let sets = plan::sets(wanted, seen);
    if !sets.is_empty() {
        kernel.program("ipset", &["restore"], &sets)?;
    }
    let texts = wanted
        .families
        .iter()
        .map(|family| (*family, plan::switch(wanted, seen, *family), plan::undo(wanted, seen, *family)));
    restore(kernel, &seen.tools, texts.collect())
}

/// Whether the kernel lists the goal's rules and sets, the ways to them, and the interfaces of the pods.
fn settled(seen: &Observed, wanted: &Wanted<'_>) -> bool {
    seen.in_force() == Some(wanted.version) && wanted.other_interfaces(seen).is_empty()
}

fn shortcomings(seen: &Observed, wanted: &Wanted<'_>) -> String {
    let mut reasons = seen.drift();
    reasons.extend(
        seen.ruleset().map(|seen| differences(wanted.ruleset, &seen, &wanted.families)).into_iter().flatten(),
    );
    reasons.truncate(8);
    reasons.join("; ")
}

/// Whether our chains and their rules are the same, whatever leads to them.
fn same_rules(one: &Observed, other: &Observed) -> bool {
    let ours = |seen: &Observed| {
        let scans = seen.scans.iter().map(|(key, scan)| (*key, (scan.chains.clone(), scan.rules.clone())));
        scans.collect::<BTreeMap<_, _>>()
    };
    ours(one) == ours(other)
}

/// Puts the rules back that were seen before; whether that was done.
fn take_back(kernel: &mut dyn Kernel, wanted: &Wanted<'_>, before: &Observed) -> bool {
    for family in &wanted.families {
        let text = plan::undo(wanted, before, *family);
        // Where there is nothing to take back, this is refused.
        let _ = kernel.program(&before.tools.restore(*family), &RESTORE, &text);
    }
    look(kernel, &before.tools).is_ok_and(|now| same_rules(&now, before))
}

/// After a failure: sets that no rule will use.
fn drop_new_sets(kernel: &mut dyn Kernel, wanted: &Wanted<'_>, before: &Observed) {
    let new = wanted.sets().map(|(name, _)| name).filter(|name| !before.set_names.contains_key(*name));
    // What stays is destroyed by the next loader that succeeds.
    let _ = destroy(kernel, new.cloned().collect());
}

/// Takes away leftovers. What cannot be taken away is met by no packet.
fn clean(kernel: &mut dyn Kernel, wanted: &Wanted<'_>, seen: &Observed, notes: &mut Vec<String>) {
    let texts = wanted.families.iter().map(|family| (*family, plan::clean(wanted, seen, *family)));
    let texts: Vec<(Family, String)> = texts.filter(|(_, text)| !text.is_empty()).collect();
    let mut failed: Vec<Error> = Vec::new();
    for (family, text) in texts {
        failed.extend(kernel.program(&seen.tools.restore(family), &RESTORE, &text).err());
    }
    failed.extend(destroy(kernel, plan::stale_sets(wanted, &seen.set_names)).err());
    notes.extend(failed.into_iter().map(|error| {
        format!("leftovers of earlier versions could not be deleted, no packet meets them: {error}")
    }));
}

/// Destroys those of these sets that are there.
fn destroy(kernel: &mut dyn Kernel, mut names: Vec<String>) -> Result<(), Error> {
    for attempt in 1.. {
        if names.is_empty() {
            break;
        }
        let text: String = names.iter().map(|name| format!("destroy {name}\n")).collect();
        let Err(error) = kernel.program("ipset", &["restore"], &text) else { break };
        if attempt == DESTROY_ATTEMPTS {
            return Err(error);
        }
        let there = kernel.program("ipset", &["list", "-name"], "")?;
        let left = names.len();
        names.retain(|name| there.lines().any(|line| line == name));
        if names.len() == left {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Takes out our chains of one variant.
fn take_out(kernel: &mut dyn Kernel, view: &View) -> Result<(), Error> {
    let texts = view.texts.iter().map(|(family, text)| (*family, plan::remove(text), String::new()));
    restore(kernel, &view.tools, texts.filter(|(_, text, _)| !text.is_empty()).collect())
}

/// What the kernel has otherwise than a bundle.
fn against(goal: &Goal<'_>, seen: &Observed) -> Vec<String> {
    let rulesets =
        [(&goal.read.iptables, Artifact::Iptables), (&goal.read.iptables_plain, Artifact::IptablesPlain)];
    let there: Vec<(&Ruleset, Option<&Version>)> = rulesets
        .into_iter()
        .filter_map(|(ruleset, artifact)| {
            Some((ruleset.as_ref()?, goal.bundle.manifest.artifacts.get(&artifact)))
        })
        .collect();
    let version = seen.in_force();
    let wanted = there.iter().find(|(_, of)| of.copied() == version && version.is_some()).or(there.first());
    let Some((wanted, _)) = wanted else { return Vec::new() };
    let mut families = Family::ALL.to_vec();
    if version.is_some() {
        // Where IPv4 alone is in force, that is no drift.
        families.retain(|family| seen.has_chains_of(*family));
    }
    let mut lines = seen.ruleset().map(|seen| differences(wanted, &seen, &families)).unwrap_or_default();
    let witness = seen.reached().filter(|_| !seen.drift().is_empty() || !lines.is_empty());
    let witness = witness.and_then(|seen| named::difference(goal.bundle, wanted, &seen));
    let interfaces = plan::interfaces(&goal.interfaces.all());
    let other =
        families.iter().filter(|family| seen.interfaces(**family).is_some_and(|there| there != interfaces));
    lines.extend(
        other.map(|family| format!("family {}: other interfaces of pods than the routes say", word(*family))),
    );
    lines.extend(witness.map(|witness| witness.to_string()));
    lines
}

fn in_force(seen: &Observed, drift: Vec<String>, dropped: Dropped) -> InForce {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut interfaces = Vec::new();
    for family in seen.tables.keys() {
        let mut count = |what: &str, n: usize| {
            counts.insert(format!("{}.{what}", word(*family)), n as u64);
        };
        let scans = || seen.scans.iter().filter(|((f, _), _)| f == family).map(|(_, scan)| scan);
        count("chains", scans().map(|scan| scan.chains.len()).sum());
        count("rules", scans().map(|scan| scan.rules.len()).sum());
        if let Ok(sets) = &seen.sets {
            let sets = || sets.values().filter(|set| set.family == *family);
            count("sets", sets().count());
            count("elements", sets().map(|set| set.elements.len()).sum());
        }
        interfaces.extend(seen.interfaces(*family).unwrap_or_default());
    }
    interfaces.sort_unstable();
    interfaces.dedup();
    let version = seen.in_force().map(|version| version.to_string());
    let denied = dropped.denied.iter();
    let denied =
        denied.map(|((direction, policies), n)| ((direction.as_str(), policies.as_str()), *n)).collect();
    InForce {
        backend: Backend::Iptables,
        version,
        counts,
        interfaces,
        dropped_packets: dropped.by,
        denied: Denied::list(denied),
        drift,
    }
}
