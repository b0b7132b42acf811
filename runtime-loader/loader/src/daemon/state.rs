//! What the daemon knows, and what it does about it. One operation at a time.

mod inner;
mod settle;

use super::enforcer::Enforcer;
use super::faults::{Faults, Part};
use super::log::{Level, log};
use super::look::{Before, Look};
use super::store::Store;
use crate::Error;
use crate::apply::{Beside, Outcome, Report};
use crate::cut::Established;
use crate::kernel::System;
use crate::nftables::observe::Early;
use crate::node::{CniMode, Node};
use crate::status::Status;
use inner::{Held, Inner, Since, said};
use netpolc_bundle::rebind::{Rebind, Unlike};
use netpolc_bundle::wire::Network;
use netpolc_bundle::{Backend, Bundle, Version};
use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How old the status may be that the metrics are made from.
const FRESH: Duration = Duration::from_secs(5);

/// How long nothing must have come for rules to be listed without the lock.
const CALM: Duration = Duration::from_millis(100);
/// How often that is waited for.
const CALM_TRIES: usize = 5;

/// Figures for the metrics; they only grow.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "the metrics say it")]
pub struct Counters {
    pub applies: u64,
    pub rebinds: u64,
    pub failures: u64,
    pub repairs: u64,
    pub interface_updates: u64,
    pub connections_cut: u64,
    pub node_changes: u64,
    pub node_faults: u64,
    pub store_failures: u64,
    pub refused: u64,
    pub evicted: u64,
}

/// How bundles are brought into force.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// What becomes of established connections.
    pub established: Established,
    /// Whether what would be dropped only counts.
    pub audit: bool,
}

/// The daemon's state, shared by its threads.
pub struct State {
    inner: Mutex<Inner>,
    /// Told when connections may have to end.
    unsettled: Condvar,
    /// Told when a bundle has come into force.
    applied: Condvar,
    manner: Manner,
    store: Store,
}

/// What the metrics show.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields' names say it")]
pub struct View {
    pub counters: Counters,
    pub status: Option<Status>,
    pub since: Option<SystemTime>,
    pub last_apply: Duration,
    /// How long ago the loop that repairs has last looked.
    pub looked: Duration,
    pub audit: bool,
    pub closed_ranges: usize,
    pub faults: Vec<String>,
}

impl State {
    /// Nothing is known yet.
    pub fn new(enforcer: Box<dyn Enforcer>, node: Node, store: Store, manner: Manner) -> State {
        let inner = Inner {
            enforcer,
            node,
            held: None,
            gone: BTreeSet::new(),
            ending: BTreeSet::new(),
            network: None,
            network_unsaved: false,
            stamp: None,
            unconfirmed: false,
            spent: false,
            counters: Counters::default(),
            last_apply: Duration::ZERO,
            status: None,
            looked: Instant::now(),
            came: Instant::now(),
            since: Since::Nothing,
            faults: Faults::default(),
            closing: None,
        };
        State { inner: Mutex::new(inner), unsettled: Condvar::new(), applied: Condvar::new(), manner, store }
    }

    /// A thread that panicked has left nothing half done that the next look would not find.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up what a predecessor has written down. Where whole rules of another version are in force, they are the
    /// later ones: what is written down follows what is in force, and never leads. Then there is nothing to repair by
    /// until the agent sends a bundle.
    pub fn resume(&self) {
        let mut inner = self.lock();
        match self.store.network() {
            Ok(network) => inner.network = network,
            Err(error) => log(Level::Warn, "network-not-resumed", &[("why", &error)]),
        }
        let (bundle, since) = match self.store.bundle() {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => return log(Level::Warn, "bundle-not-resumed", &[("why", &error)]),
        };
        let form = match inner.enforcer.form(&bundle, self.manner.audit) {
            Ok(form) => form,
            Err(error) => return log(Level::Warn, "bundle-not-resumed", &[("why", &error)]),
        };
        let versions: Vec<String> = form.manifest.artifacts.values().map(ToString::to_string).collect();
        // A predecessor in the other mode had the same bundle in force under other versions.
        let other = |inner: &Inner, there: &str| {
            let other = inner.enforcer.form(&bundle, !self.manner.audit);
            other.is_ok_and(|form| form.manifest.artifacts.values().any(|v| v.to_string() == there))
        };
        if let Ok(Status { in_force: true, version: Some(there), .. }) = inner.enforcer.status()
            && !versions.contains(&there)
            && !other(&inner, &there)
        {
            return log(
                Level::Warn,
                "bundle-not-resumed",
                &[("in_force", &there), ("written_down", &versions.join(","))],
            );
        }
        let pods = form.bindings().unwrap_or_default();
        inner.held = Some(Held { form, pods, stale: false, since, unsaved: None });
        match inner.apply(self.manner.established) {
            Ok(report) => {
                inner.spent = true;
                said(Level::Info, "resumed", &report);
                if let Err(error) = inner.open(self.manner.audit) {
                    inner.faults.fault(Part::Node, &error);
                }
            }
            Err(error) => {
                inner.counters.failures += 1;
                inner.faults.fault(Part::Rules, &error);
            }
        }
    }

    /// Brings a bundle into force.
    ///
    /// # Errors
    /// If it is not sound or the kernel refuses it; what was in force still is.
    pub fn apply(&self, bundle: Bundle) -> Result<Report, Error> {
        let mut inner = self.lock();
        let form = inner.enforcer.form(&bundle, self.manner.audit);
        let begun = Instant::now();
        let result = form.and_then(|form| {
            let report = inner.enforcer.apply(&form, self.manner.established)?;
            Ok((form, report))
        });
        inner.last_apply = begun.elapsed();
        inner.since = Since::Nothing;
        inner.came = Instant::now();
        inner.stamp = None;
        inner.status = None;
        let (form, report) = match result {
            Ok(done) => done,
            Err(error) => {
                inner.counters.failures += 1;
                log(Level::Error, "apply-failed", &[("why", &error)]);
                return Err(error);
            }
        };
        inner.counters.applies += 1;
        inner.spent = true;
        inner.unconfirmed |= !report.confirmed;
        let artifacts = &form.manifest.artifacts;
        let same = inner.held.as_ref().filter(|held| held.form.manifest.artifacts == *artifacts);
        let since = same.map_or_else(SystemTime::now, |held| held.since);
        let pods = form.bindings()?;
        inner.held = Some(Held { form, pods, stale: false, since, unsaved: Some(bundle) });
        if report.outcome != Outcome::Unchanged {
            said(Level::Info, "applied", &report);
        }
        // Addresses open after their policies are in force. Whoever waits for that must not be told before.
        if let Err(error) = inner.open(self.manner.audit) {
            inner.counters.failures += 1;
            log(Level::Error, "apply-failed", &[("why", &error)]);
            return Err(error);
        }
        inner.say_closing(self.manner.audit);
        Ok(report)
    }

    /// Lets addresses come and go in what is in force. What is written down stays as it is: whoever reads it finds that
    /// another version is in force, and the agent sends a bundle soon.
    ///
    /// # Errors
    /// If that takes a new bundle, or if the kernel refuses.
    pub fn rebind(&self, change: &Rebind) -> Result<Version, Error> {
        let mut inner = self.lock();
        if self.manner.audit {
            return Err(Unlike("in audit mode".to_owned()).into());
        }
        let begun = Instant::now();
        inner.since = Since::Nothing;
        inner.came = Instant::now();
        inner.stamp = None;
        inner.status = None;
        let held = inner.held.as_ref().ok_or_else(|| Unlike("nothing is in force yet".to_owned()))?;
        let pods = change.bindings(&held.pods)?;
        let version = inner.enforcer.rebind(change, &pods, self.manner.established)?;
        if let Some(held) = inner.held.as_mut() {
            held.pods = pods;
            held.stale = true;
        }
        inner.counters.rebinds += 1;
        inner.open(self.manner.audit)?;
        inner.last_apply = begun.elapsed();
        Ok(version)
    }

    /// Makes the node's network as the agent read it.
    ///
    /// # Errors
    /// If it makes no sense, or not all of it can be made; the rest is, and will be tried again.
    pub fn network(&self, network: Network) -> Result<String, Error> {
        let mut inner = self.lock();
        if inner.node.mode() == CniMode::None {
            return Ok("not done: the loader was started with neither --cni=ptp nor --cni=chain".into());
        }
        let outcome = inner.node.converge(Some(&network))?;
        if inner.network.as_ref() != Some(&network) {
            inner.network = Some(network);
            inner.network_unsaved = true;
        }
        inner.after_node(&outcome);
        inner.say_closing(self.manner.audit);
        // The network is another's in the other mode, and what the agent said did not come to nothing.
        if inner.node.mode() == CniMode::Ptp && !outcome.faults.is_empty() {
            return Err(Error::Incomplete(outcome.faults.join("; ")));
        }
        Ok(match outcome.changes.len() {
            0 => "unchanged".into(),
            number => format!("{number} changes"),
        })
    }

    /// Looks whether all is as it should be, and mends what is not.
    pub fn look(&self) {
        self.look_at_rules(Look::Whole);
        self.wake_settler();
        self.stop_judging();
        let mut inner = self.lock();
        inner.look_beside_the_rules();
        inner.look_at_node();
        inner.say_closing(self.manner.audit);
    }

    /// Looks at the rules if it is not known what the kernel made of the last bundle.
    pub fn confirm(&self) {
        if self.lock().unconfirmed {
            self.look_at_rules(Look::Changes);
            self.wake_settler();
        }
    }

    /// Lists what there is without the lock, so that nobody has to wait for that. Where something has come a moment ago, more is
    /// to be expected, which would make a list of rules worthless, so that waits for a calm moment; not for long.
    fn look_at_rules(&self, how: Look) {
        let mut inner = self.lock();
        if how == Look::Whole {
            inner.looked = Instant::now();
        }
        let Some(begun) = inner.begin_look() else { return };
        let mut before = Before::default();
        if let Some(backend) = inner.enforcer.last() {
            let mut calm = inner.came.elapsed();
            for _ in 0..CALM_TRIES {
                if backend != Backend::Nftables || calm >= CALM {
                    break;
                }
                drop(inner);
                std::thread::sleep(CALM - calm);
                inner = self.lock();
                calm = inner.came.elapsed();
            }
            drop(inner);
            let kernel = &mut System::new();
            if backend == Backend::Nftables && calm >= CALM {
                before.early = Early::look(kernel);
            }
            if how == Look::Whole {
                before.beside = Some(Beside::look(kernel, backend));
            }
            inner = self.lock();
        }
        inner.look_at_rules(self.manner.established, how, begun, &before);
        drop(inner);
        self.wake_provider();
    }

    /// Looks at the node's network alone.
    pub fn look_at_node(&self) {
        let mut inner = self.lock();
        inner.look_at_node();
        inner.say_closing(self.manner.audit);
    }

    /// Writes down what is not yet.
    pub fn save(&self) {
        let (bundle, network) = {
            let mut inner = self.lock();
            let network = inner.network_unsaved.then(|| inner.network.clone()).flatten();
            (inner.held.as_mut().and_then(|held| held.unsaved.take()), network)
        };
        if bundle.is_none() && network.is_none() {
            return;
        }
        // No lock is held meanwhile: disks can be slow.
        let kept = bundle.as_ref().map_or(Ok(()), |bundle| self.store.keep_bundle(bundle));
        let told = network.as_ref().map_or(Ok(()), |network| self.store.keep_network(network));
        let mut inner = self.lock();
        if told.is_ok() && inner.network == network {
            inner.network_unsaved = false;
        }
        match (kept, told) {
            (Ok(()), Ok(())) => inner.faults.mended(Part::Store),
            (Err(error), _) | (_, Err(error)) => {
                inner.counters.store_failures += 1;
                inner.faults.fault(Part::Store, &error);
                // To be tried again, unless another came meanwhile.
                if let (Some(held), Some(bundle)) = (inner.held.as_mut(), bundle) {
                    held.unsaved.get_or_insert(bundle);
                }
            }
        }
    }

    /// After each bundle, does what the next one would else have to wait for.
    pub fn provide_forever(&self) {
        loop {
            let mut inner = self.lock();
            while !std::mem::take(&mut inner.spent) {
                inner = self.applied.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
            let work = inner.enforcer.spare_work(self.manner.established);
            drop(inner);
            if let Some(work) = work {
                work();
            }
        }
    }

    /// A bundle has come into force, and its sender knows.
    pub fn wake_provider(&self) {
        self.applied.notify_one();
    }

    /// Counts a request that was no request.
    pub fn refused(&self) {
        self.lock().counters.refused += 1;
    }

    /// Counts a connection that had to make room.
    pub fn evicted(&self) {
        self.lock().counters.evicted += 1;
    }

    /// What is in force, as an object.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub fn status(&self) -> Result<serde_json::Value, Error> {
        let view = self.view(Duration::ZERO);
        let status = view.status.ok_or_else(|| Error::Incomplete("the kernel cannot be looked at".into()))?;
        let (choice, closing) = {
            let mut inner = self.lock();
            (inner.enforcer.choice(), inner.closing(self.manner.audit))
        };
        let mut value = serde_json::to_value(status).map_err(|error| Error::io("status", error))?;
        if let Some(fields) = value.as_object_mut() {
            let since = view.since.map(super::log::timestamp);
            let counters = view.counters;
            fields.insert(
                "daemon".into(),
                serde_json::json!({
                    "since": since, "audit": view.audit, "applies": counters.applies,
                    "failures": counters.failures, "repairs": counters.repairs, "backends": choice,
                    "unknown_addresses": closing, "faults": view.faults,
                }),
            );
        }
        Ok(value)
    }

    /// What the metrics show.
    pub fn metrics(&self) -> View {
        self.view(FRESH)
    }

    fn view(&self, fresh: Duration) -> View {
        let mut inner = self.lock();
        if inner.status.as_ref().is_none_or(|(when, _)| when.elapsed() >= fresh) {
            inner.status = inner.enforcer.status().ok().map(|status| (Instant::now(), status));
        }
        View {
            counters: inner.counters,
            status: inner.status.as_ref().map(|(_, status)| status.clone()),
            since: inner.held.as_ref().map(|held| held.since),
            last_apply: inner.last_apply,
            looked: inner.looked.elapsed(),
            audit: self.manner.audit,
            closed_ranges: inner.closing(self.manner.audit).ranges.len(),
            faults: inner.faults.all(),
        }
    }
}
