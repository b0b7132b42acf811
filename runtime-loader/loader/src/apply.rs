//! `netpol-loader apply`: open, check, observe, switch in one transaction, confirm, clean up, cut.

use crate::compare::same_comments;
use crate::cut::{Cut, Established, cut};
use crate::kernel::Kernel;
use crate::observe::{Observed, observe};
use crate::plan::{self, Goal};
use crate::{Error, routes};
use netpolc_bundle::nft::{Ruleset, Version};
use netpolc_bundle::{Artifact, Bundle};
use std::fmt;
use std::path::Path;

/// What [`apply`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The version in force now.
    pub version: Version,
    /// How it came about.
    pub outcome: Outcome,
    /// How many interfaces of local pods are known.
    pub interfaces: usize,
    /// The established connections that were ended; `None` if they were to live on, or if that could not be done.
    pub cut: Option<Cut>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// What happened to the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The version was in force already, and the interfaces were right.
    Unchanged,
    /// The version was in force already; only interfaces of pods were added or taken out.
    Interfaces,
    /// The version was in force already, but its rules had other comments: a policy was moved, say.
    Comments,
    /// There were no rules, or those of another version.
    Applied,
    /// The rules had been changed by another hand, and now are the bundle's.
    Repaired,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = match self.outcome {
            Outcome::Unchanged => "unchanged",
            Outcome::Interfaces => "interfaces of pods updated",
            Outcome::Comments => "comments updated",
            Outcome::Applied => "applied",
            Outcome::Repaired => "repaired",
        };
        write!(
            f,
            "{done}: version {}, backend nftables, {} interfaces of local pods",
            self.version, self.interfaces
        )?;
        self.cut.iter().try_for_each(|cut| write!(f, ", {cut}"))
    }
}

/// Makes the kernel enforce the bundle in a directory, and ends connections that it would not let begin. That these
/// cannot be ended is a note and no error.
///
/// # Errors
/// If the bundle is not sound, or nft or the kernel refuses; then what was in force still is.
pub fn apply(kernel: &mut dyn Kernel, dir: &Path, established: Established) -> Result<Report, Error> {
    let bundle = Bundle::open(dir)?;
    let none = || Error::Refused("it has no artifacts for nftables".into());
    let version = *bundle.manifest.artifacts.get(&Artifact::Nftables).ok_or_else(none)?;
    let ruleset = bundle.read_back()?.nftables.ok_or_else(none)?;
    refuse(&ruleset)?;
    let bindings = bundle.bindings()?;
    let mut notes: Vec<String> = kernel.lock()?.into_iter().collect();
    let (interfaces, missing) = routes::local_interfaces(&bindings, &kernel.routes()?);
    notes.extend(missing);
    let goal = Goal { script: bundle.script()?, ruleset: &ruleset, interfaces: &interfaces };
    let outcome = converge(kernel, &goal, version, &mut notes)?;
    let cut = match established {
        Established::Cut => cut(kernel, &ruleset, &mut notes),
        Established::Keep => None,
    };
    Ok(Report { version, outcome, interfaces: interfaces.len(), cut, notes })
}

/// What a sound script may still not do.
fn refuse(ruleset: &Ruleset) -> Result<(), Error> {
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
    notes: &mut Vec<String>,
) -> Result<Outcome, Error> {
    let before = observe(kernel)?;
    let in_force = before.in_force();
    if in_force == Some(version) && before.ruleset().is_some_and(|seen| same_comments(goal.ruleset, &seen)) {
        let changes = plan::interfaces(goal, &before);
        if !changes.is_empty() {
            kernel.run(&changes)?;
        }
        clean(kernel, goal, &before, notes);
        return Ok(if changes.is_empty() { Outcome::Unchanged } else { Outcome::Interfaces });
    }
    for reason in before.drift() {
        notes.push(format!("was found: {reason}"));
    }
    let after = replace(kernel, goal, version, &before)?;
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
    let tables = seen.tables.iter().filter(|(family, _)| goal.ruleset.tables.contains_key(family));
    let own = Observed { tables: tables.map(|(family, view)| (*family, view.clone())).collect() };
    own.in_force() == Some(version) && plan::interfaces(goal, &own).is_empty()
}

fn clean(kernel: &mut dyn Kernel, goal: &Goal<'_>, seen: &Observed, notes: &mut Vec<String>) {
    let script = plan::clean(goal.ruleset, seen);
    if script.is_empty() {
        return;
    }
    if let Err(error) = kernel.run(&script) {
        notes.push(format!(
            "leftovers of earlier versions could not be deleted, no packet meets them: {error}"
        ));
    }
}
