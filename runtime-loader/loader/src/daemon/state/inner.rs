//! What is behind the lock of the daemon's state, and what is done with it.

use super::{Counters, settle};
use crate::Error;
use crate::apply::{Outcome, Report};
use crate::cut::Established;
use crate::daemon::enforcer::{Enforcer, Stamp};
use crate::daemon::faults::{Faults, Part};
use crate::daemon::log::{Level, log};
use crate::daemon::look::{Before, Look};
use crate::node::{self, Closing, CniMode, Node};
use crate::status::Status;
use netpolc_bundle::wire::Network;
use netpolc_bundle::{Bindings, Bundle};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

/// The bundle that should be in force.
pub(super) struct Held {
    /// As it is enforced; without the files that the loader does not read.
    pub(super) form: Bundle,
    /// The pods of the node.
    pub(super) pods: Bindings,
    /// Whether addresses have come and gone since `form` was made.
    pub(super) stale: bool,
    pub(super) since: SystemTime,
    /// As it came, until it is written down.
    pub(super) unsaved: Option<Bundle>,
}

pub(super) struct Inner {
    pub(super) enforcer: Box<dyn Enforcer>,
    pub(super) node: Node,
    pub(super) held: Option<Held>,
    /// Addresses that were closed and whose connections are to end.
    pub(super) gone: BTreeSet<IpAddr>,
    /// Those for which that is being done.
    pub(super) ending: BTreeSet<IpAddr>,
    pub(super) network: Option<Network>,
    pub(super) network_unsaved: bool,
    /// When all was last found to be as it should be.
    pub(super) stamp: Option<Stamp>,
    /// Whether the kernel took rules that were not read back since.
    pub(super) unconfirmed: bool,
    /// Whether what was made in advance has been used since it was last made anew.
    pub(super) spent: bool,
    pub(super) counters: Counters,
    pub(super) last_apply: Duration,
    pub(super) status: Option<(Instant, Status)>,
    pub(super) looked: Instant,
    /// When a bundle came last, or addresses that come or go.
    pub(super) came: Instant,
    pub(super) since: Since,
    pub(super) faults: Faults,
    /// What was last said about addresses that no pod has.
    pub(super) closing: Option<Closing>,
}

/// A look that has begun.
pub(super) struct Begun {
    /// As it was then: what changes meanwhile makes the next look differ.
    stamp: Option<Stamp>,
}

/// What there was since something came into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// Nothing.
    Nothing,
    /// A look.
    Look,
    /// A second one, and what can wait until then is done, or being done.
    SecondLook,
}

impl Inner {
    pub(super) fn apply(&mut self, established: Established) -> Result<Report, Error> {
        self.refresh()?;
        let Some(held) = &self.held else { return Err(Error::Incomplete("there is no bundle".into())) };
        self.enforcer.apply(&held.form, established)
    }

    /// Whether there are connections to end.
    pub(super) fn is_unsettled(&self) -> bool {
        self.enforcer.has_uncut() || !self.gone.is_empty()
    }

    /// Has the bundle say what is in force after addresses have come and gone.
    pub(super) fn refresh(&mut self) -> Result<(), Error> {
        if let Some(held) = self.held.as_mut().filter(|held| held.stale) {
            held.form = self.enforcer.bundle(&held.form, &held.pods)?;
            held.stale = false;
        }
        Ok(())
    }

    /// Lets packets of the bundle's pods pass, and no longer those of addresses that have none any more.
    pub(super) fn open(&mut self, audit: bool) -> Result<(), Error> {
        let Some(held) = self.held.as_ref().filter(|_| !audit && self.node.mode() != CniMode::None) else {
            return Ok(());
        };
        let known: BTreeSet<IpAddr> = held.pods.pods.iter().flat_map(|pod| &pod.addresses).copied().collect();
        // The next pod with an address takes up no connection of the last one.
        let again: BTreeSet<IpAddr> =
            self.gone.union(&self.ending).filter(|a| known.contains(a)).copied().collect();
        if !again.is_empty() {
            // Where the kernel does not let them be ended, a pod must start all the same.
            match settle::end_connections(&again) {
                Ok(()) => self.faults.mended(Part::Connections),
                Err(error) => self.faults.fault(Part::Connections, &error),
            }
            self.gone.retain(|addr| !again.contains(addr));
            self.ending.retain(|addr| !again.contains(addr));
        }
        self.gone.extend(self.node.open(known)?);
        Ok(())
    }

    fn is_as_seen(&self, stamp: Option<&Stamp>) -> bool {
        stamp.is_some() && stamp == self.stamp.as_ref()
    }

    /// The stamp that [`look_at_rules`](Inner::look_at_rules) is to remember; `None` if there is nothing to look at, or if nothing
    /// can have changed since the last look.
    pub(super) fn begin_look(&mut self) -> Option<Begun> {
        self.held.as_ref()?;
        let stamp = self.enforcer.stamp();
        (!self.is_as_seen(stamp.as_ref())).then_some(Begun { stamp })
    }

    /// `before` is what was seen without the lock since the look was begun.
    pub(super) fn look_at_rules(
        &mut self,
        established: Established,
        how: Look,
        begun: Begun,
        before: &Before,
    ) {
        let Begun { stamp } = begun;
        if let Err(error) = self.refresh() {
            return self.faults.fault(Part::Rules, &error);
        }
        let Some(held) = &self.held else { return };
        match self.enforcer.look(&held.form, established, how, before) {
            Ok(report) => {
                self.unconfirmed = false;
                let seen = how == Look::Whole && report.outcome == Outcome::Unchanged;
                self.stamp = stamp.filter(|_| seen);
                self.faults.mended(Part::Rules);
                match report.outcome {
                    Outcome::Unchanged => {}
                    Outcome::Interfaces => {
                        self.counters.interface_updates += 1;
                        said(Level::Info, "interfaces", &report);
                    }
                    Outcome::Applied | Outcome::Repaired | Outcome::Comments => {
                        self.counters.repairs += 1;
                        self.spent = true;
                        self.since = Since::Nothing;
                        self.status = None;
                        said(Level::Warn, "repaired", &report);
                    }
                }
            }
            Err(error) => {
                self.stamp = None;
                self.counters.failures += 1;
                self.faults.fault(Part::Rules, &error);
            }
        }
    }

    /// Says what passes by the rules. Nothing here can mend that.
    pub(super) fn look_beside_the_rules(&mut self) {
        match self.enforcer.bypassed().as_slice() {
            [] => self.faults.mended(Part::Bypassed),
            all => self.faults.fault(Part::Bypassed, &all.join("; ")),
        }
    }

    /// Which addresses are closed while no pod has them.
    pub(super) fn closing(&self, audit: bool) -> Closing {
        if audit {
            return Closing { ranges: Vec::new(), not: vec!["in audit mode nothing is closed".to_owned()] };
        }
        self.node.closing()
    }

    /// Says so when that has changed: an address that is open is no fault, but nobody should have to guess.
    pub(super) fn say_closing(&mut self, audit: bool) {
        if self.node.mode() == CniMode::None {
            return;
        }
        let closing = self.closing(audit);
        if self.closing.as_ref() != Some(&closing) {
            // Before the first bundle nothing is expected to be closed.
            let quiet = closing.not.is_empty() || self.held.is_none();
            let level = if quiet { Level::Info } else { Level::Warn };
            log(level, "unknown-addresses", &[("are", &closing)]);
            self.closing = Some(closing);
        }
    }

    pub(super) fn look_at_node(&mut self) {
        match self.node.converge(self.network.as_ref()) {
            Ok(outcome) => self.after_node(&outcome),
            Err(error) => self.faults.fault(Part::Node, &error),
        }
    }

    pub(super) fn after_node(&mut self, outcome: &node::Outcome) {
        self.counters.node_changes += outcome.changes.len() as u64;
        if !outcome.changes.is_empty() {
            log(Level::Info, "node", &[("changes", &outcome.changes.join("; "))]);
        }
        self.counters.node_faults += outcome.faults.len() as u64;
        let all: Vec<&str> = outcome.faults.iter().chain(&outcome.notes).map(String::as_str).collect();
        if all.is_empty() {
            self.faults.mended(Part::Node);
        } else {
            self.faults.fault(Part::Node, &all.join("; "));
        }
    }
}

pub(super) fn said(level: Level, event: &str, report: &Report) {
    let notes = report.notes.join("; ");
    let mut fields: Vec<(&str, &dyn Display)> = vec![("report", report)];
    if !notes.is_empty() {
        fields.push(("notes", &notes));
    }
    log(level, event, &fields);
}
