//! The one owner of everything that is known. It takes in what the watches and the plugin tell, compiles when something
//! is different, brings the result into force, and then answers who waits for it.
//!
//! Compiling and talking to the loader happen beside it, one such job at a time, so that nothing that is told in the
//! meantime waits. A job starts from all that is known at its beginning, never from a list that is not complete.

mod job;
mod waiting;

use crate::alike::Verdict;
use crate::compile::Compiler;
use crate::events::Fault;
use crate::link::Link;
use crate::log;
use crate::metrics::Metrics;
use crate::network::{known, network};
use crate::options::{Cni, Options};
use crate::relevant::slice;
use crate::sandboxes::Sandboxes;
use crate::store::{Object, Store, Told};
use crate::trim::{CLUSTER_POLICY_API, POLICY_API};
use job::{Done, Job, Task, Work};
use k8s_openapi::api::core::v1::ObjectReference;
use netpolc_bundle::wire::{FromAgent, ToAgent};
use netpolc_bundle::{Backend, CLASSES, LocalPod};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use waiting::Waiter;

/// After a job the next one waits for as long as that one took, so that changes that come in a stream are compiled together
/// and leave half of a core to others; but no longer than this.
const PAUSE: Duration = Duration::from_millis(100);
/// The first and the longest wait before the loader is tried again.
const WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// After addresses have come and gone, a bundle is compiled once they rest for so long, or at the latest after so long.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(10);
/// How often to look whether the loader is still there.
const TICK: Duration = Duration::from_secs(1);

/// What the engine is told or asked.
#[derive(Debug)]
pub enum Message {
    /// By a watch, and when.
    Told(Told, Instant),
    /// By the plugin, and whom to answer.
    Asked(ToAgent, oneshot::Sender<FromAgent>),
}

/// Changes that are not compiled yet.
#[derive(Debug, Clone, Copy)]
struct Dirty {
    first: Instant,
    /// Someone waits for it.
    urgent: bool,
}

/// What the loader said is in force.
#[derive(Debug, Default)]
struct InForce {
    /// Up to which change.
    generation: u64,
    /// The pod of each address of this node.
    bindings: HashMap<IpAddr, String>,
}

impl InForce {
    /// These pods of this node have other addresses now.
    fn rebind(&mut self, generation: u64, pods: &[LocalPod]) {
        self.generation = generation;
        self.bindings.retain(|_, pod| !pods.iter().any(|changed| changed.name == *pod));
        let pairs = pods.iter().flat_map(|pod| pod.addresses.iter().map(|addr| (*addr, pod.name.clone())));
        self.bindings.extend(pairs);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    node: String,
    cni: Cni,
    backends: Option<Vec<Backend>>,
    add_timeout: Duration,
    store: Store,
    metrics: Arc<Metrics>,
    report: mpsc::Sender<Fault>,
    /// Counts changes.
    generation: u64,
    /// Whether there was a Node object of this name. With a mistaken one no pod would be this node's, and what is in force
    /// would give way to rules for nobody. A node that is taken away later still has its pods.
    joined: bool,
    dirty: Option<Dirty>,
    job: Option<Job>,
    /// Not here while a job has it.
    link: Option<Link>,
    /// Likewise: then a fresh one is here instead, which is never used.
    compiler: Compiler,
    retry: Option<Instant>,
    /// When the next job may begin, unless someone waits for it.
    pause: Instant,
    /// Whether all must be compiled, since something of what has changed never came into force.
    whole: bool,
    /// When addresses have come and gone first and last since the last bundle.
    rebound: Option<(Instant, Instant)>,
    wait: Duration,
    in_force: InForce,
    /// Up to which change the last bundle was compiled.
    compiled: u64,
    /// Why the last compilation failed.
    no_bundle: Option<String>,
    /// Why the loader has not done its work.
    no_loader: Option<String>,
    /// Why the loader has not made all of the node's network.
    no_network: Option<String>,
    /// Whether the list of sandboxes could not be written.
    unsaved: bool,
    waiters: Vec<Waiter>,
    /// Whether it was said that the node has no range of pods yet.
    no_range: bool,
}

impl Engine {
    /// Knows nothing yet but the sandboxes of an earlier agent.
    pub fn new(options: &Options, metrics: Arc<Metrics>, report: mpsc::Sender<Fault>) -> Engine {
        Engine {
            node: options.node.clone(),
            cni: options.cni,
            backends: options.backends.clone(),
            add_timeout: options.add_timeout,
            store: Store::new(&options.node, Sandboxes::load(&options.state)),
            metrics,
            report,
            generation: 0,
            joined: false,
            dirty: None,
            job: None,
            link: Some(Link::new(&options.loader_socket, options.backends.is_none())),
            compiler: Compiler::default(),
            retry: None,
            pause: Instant::now(),
            whole: true,
            rebound: None,
            wait: WAITS.0,
            in_force: InForce::default(),
            compiled: 0,
            no_bundle: None,
            no_loader: None,
            no_network: None,
            unsaved: false,
            waiters: Vec::new(),
            no_range: false,
        }
    }

    /// Works until no one can tell it anything any more.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wake = self.due().into_iter().chain(self.waiters.iter().map(|w| w.deadline)).min();
            tokio::select! {
                biased;
                done = job::finished(&mut self.job) => self.finish(done),
                message = inbox.recv() => match message {
                    Some(Message::Told(told, when)) => self.told(told, when),
                    Some(Message::Asked(request, reply)) => self.asked(request, reply),
                    None => return,
                },
                () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => {}
                _ = tick.tick() => self.look(),
            }
            self.answer_waiters();
            if self.due().is_some_and(|due| due <= Instant::now()) {
                self.start();
            }
        }
    }

    fn told(&mut self, told: Told, when: Instant) {
        let fault = fault(&told);
        let was_complete = self.store.is_complete();
        if !self.store.take(told) {
            return;
        }
        if let Some(fault) = fault {
            let name = fault.object.name.clone().unwrap_or_default();
            let namespace = fault.object.namespace.clone().unwrap_or_default();
            let fields: [(&str, &dyn std::fmt::Display); 3] =
                [("namespace", &namespace), ("policy", &name), ("error", &fault.message)];
            log::error("a policy cannot be compiled; the pods that it selects are isolated", &fields);
            // If many are wrong at once, some events are lost; log and metric have them all.
            let _ = self.report.try_send(fault);
        }
        self.joined |= self.store.knows_its_node();
        if !was_complete && self.store.is_complete() {
            self.metrics.lists_complete.set(1);
            let (pods, policies, _) = self.store.counts();
            log::info("all lists are complete", &[("pods", &pods), ("policies", &policies)]);
            if !self.joined {
                let node = self.store.node();
                log::warn(
                    "no Node object has this name, so nothing is done: is --node right?",
                    &[("node", &node)],
                );
            }
        }
        // A pod that waits may be the one that was told of.
        self.changed(when, !self.waiters.is_empty());
    }

    fn changed(&mut self, when: Instant, urgent: bool) {
        self.generation += 1;
        let dirty = self.dirty.get_or_insert(Dirty { first: when, urgent });
        dirty.urgent |= urgent;
    }

    /// When the next job is to start.
    fn due(&self) -> Option<Instant> {
        if self.job.is_some() || !self.store.is_complete() || !self.joined {
            return None;
        }
        if self.dirty.is_none() && self.retry.is_none() {
            return self.rebound.map(|(first, last)| (last + REST).min(first + LONGEST_REST));
        }
        match (self.dirty, self.retry) {
            // Who asks is worth a try, whenever the last one was.
            (Some(dirty), _) if dirty.urgent => Some(dirty.first),
            (_, Some(retry)) => Some(retry),
            (Some(dirty), None) => Some(dirty.first.max(self.pause)),
            (None, None) => None,
        }
    }

    fn start(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        let dirty = self.dirty.take();
        let rested = dirty.is_none() && self.retry.is_none();
        self.retry = None;
        let work = match self.work(&mut link, dirty.is_some(), rested) {
            Some(work) => work,
            // What has changed is nothing to this node.
            None => {
                self.link = Some(link);
                (self.compiled, self.in_force.generation) = (self.generation, self.generation);
                self.answer_waiters();
                return;
            }
        };
        let network = match self.cni {
            Cni::Ptp => network(&self.node, self.store.nodes()),
            Cni::Chain => Some(known(&self.node, self.store.nodes())),
            Cni::None => None,
        };
        if self.cni == Cni::Ptp && network.is_none() && !self.no_range {
            log::warn("the Node object has no range of pods yet", &[("node", &self.node)]);
        }
        self.no_range = network.is_none();
        let compiler = std::mem::take(&mut self.compiler);
        let task = Task { compiler, work, network, node: self.node.clone(), backends: self.backends.clone() };
        self.job = Some(Job::start(link, task, self.generation, dirty.map(|d| d.first)));
    }

    /// What there is to do; `None` if nothing.
    fn work(&mut self, link: &mut Link, dirty: bool, rested: bool) -> Option<Work> {
        let touched = self.store.take_touched();
        let pods_alone = !touched.every_pod && !touched.others;
        if pods_alone
            && dirty
            && !self.whole
            && let Some(in_force) = link.changeable()
        {
            let changes = self.store.bound(&touched.pods);
            match self.compiler.alike.judge(&changes, |pod| self.store.selecting(pod)) {
                Verdict::Nothing => return None,
                Verdict::Addresses(addresses) => return Some(Work::Rebind(addresses, in_force)),
                Verdict::Compile => {}
            }
        }
        if dirty || self.whole || rested || link.is_rebound() {
            // Until that is in force.
            self.whole = true;
            return Some(Work::Compile(Box::new(slice(&self.store.cluster()))));
        }
        Some(Work::Again)
    }

    fn finish(&mut self, done: Done) {
        let Done { mut link, compiler, compiled, brought, rebound, generation, seen, took } = done;
        if let Some(pods) = &rebound {
            let now = Instant::now();
            self.rebound = Some((self.rebound.map_or(now, |(first, _)| first), now));
            self.compiled = generation;
            self.in_force.rebind(generation, pods);
            self.metrics.rebinds.count();
        }
        let compiles = compiled.is_some();
        self.pause = Instant::now() + took.min(PAUSE);
        if let Some(compiled) = &compiled {
            self.metrics.compile_failed.set(usize::from(compiled.is_err()));
        }
        match compiled {
            Some(Ok(took)) => {
                self.metrics.compile.observe(took);
                self.compiled = generation;
                self.no_bundle = None;
            }
            Some(Err(error)) => {
                self.metrics.compile_errors.count();
                log::error("no bundle; what was in force still is", &[("error", &error)]);
                self.no_bundle = Some(error);
                // To be tried again when something changes.
                self.rebound = None;
            }
            None => {}
        }
        match brought {
            Ok(sent) => {
                self.wait = WAITS.0;
                self.no_loader = None;
                self.of_network(link.no_network());
                if compiles && self.no_bundle.is_none() {
                    (self.whole, self.rebound) = (false, None);
                }
                self.metrics.loader_up.set(usize::from(link.is_in_force()));
                if sent {
                    if rebound.is_none() {
                        self.metrics.bundles.count();
                    }
                    seen.inspect(|seen| self.metrics.programming.observe(seen.elapsed()));
                }
                if rebound.is_none() {
                    self.in_force(&link, sent);
                }
            }
            Err(error) if !compiles && self.retry.is_none() && link.is_in_force() => {
                // Addresses alone would not do: a bundle will, at once.
                log::info("a bundle is needed", &[("why", &error)]);
                self.whole = true;
                self.changed(seen.unwrap_or_else(Instant::now), true);
            }
            Err(error) => {
                self.whole = true;
                self.metrics.loader_up.set(0);
                self.metrics.loader_errors.count();
                let wait = self.wait.as_millis();
                log::warn("not in force yet; trying again", &[("error", &error), ("after_ms", &wait)]);
                self.no_loader = Some(error);
                self.retry = Some(Instant::now() + self.wait);
                self.wait = (self.wait * 2).min(WAITS.1);
            }
        }
        self.link = Some(link);
        self.compiler = compiler;
    }

    fn in_force(&mut self, link: &Link, sent: bool) {
        let Some(bundle) = link.bundle() else { return };
        self.in_force.generation = self.compiled;
        let classes = bundle.manifest.counts.get(CLASSES).copied().unwrap_or_default();
        self.metrics.classes.set(usize::try_from(classes).unwrap_or(usize::MAX));
        // The bundle is ours, so its bindings can be read.
        let bindings = bundle.bindings().unwrap_or_default().pods.into_iter();
        let pairs = bindings.flat_map(|pod| pod.addresses.into_iter().map(move |a| (a, pod.name.clone())));
        self.in_force.bindings = pairs.collect();
        if sent {
            let local = self.in_force.bindings.len();
            let versions: Vec<String> =
                bundle.manifest.artifacts.iter().map(|(a, v)| format!("{}:{v}", a.backend())).collect();
            log::info("in force", &[("versions", &versions.join(",")), ("local_addresses", &local)]);
        }
    }

    /// Takes down what the loader said of the node's network.
    fn of_network(&mut self, refused: Option<&str>) {
        if let Some(error) = refused {
            self.metrics.loader_errors.count();
            if self.no_network.as_deref() != refused {
                log::warn("not all of the node's network is made; trying again", &[("error", &error)]);
            }
        }
        self.no_network = refused.map(str::to_owned);
    }

    /// Looks whether the loader is still there, tries again what nothing else waits for, and updates what is only shown.
    fn look(&mut self) {
        if self.unsaved {
            // Said already.
            let _ = self.save();
        }
        let (pods, policies, faults) = self.store.counts();
        self.metrics.pods.set(pods);
        self.metrics.policies.set(policies);
        self.metrics.uncompilable.set(faults);
        self.metrics
            .local_pods
            .set(self.in_force.bindings.values().collect::<std::collections::HashSet<_>>().len());
        self.metrics.cni_waiting.set(self.waiters.len());
        let Some(link) = &mut self.link else { return };
        if link.bundle().is_some() && !link.is_in_force() && self.retry.is_none() {
            log::warn("the loader went away", &[]);
            self.metrics.loader_up.set(0);
            self.retry = Some(Instant::now());
        } else if self.no_network.is_some() && self.retry.is_none() {
            self.retry = Some(Instant::now());
        }
    }
}

/// The fault of a policy that is told.
fn fault(told: &Told) -> Option<Fault> {
    let object = |api: &str, kind: &str, namespace: Option<&String>, name: &str, uid: &str| ObjectReference {
        api_version: Some(api.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: namespace.cloned(),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    };
    match told {
        Told::Is(Object::Policy(data)) => {
            let policy = &data.policy;
            let object =
                object(POLICY_API, "NetworkPolicy", Some(&policy.namespace), &policy.name, &data.uid);
            Some(Fault { object, message: data.fault.clone()? })
        }
        Told::Is(Object::ClusterPolicy(data)) => {
            let object =
                object(CLUSTER_POLICY_API, "ClusterNetworkPolicy", None, &data.policy.name, &data.uid);
            Some(Fault { object, message: data.fault.clone()? })
        }
        _ => None,
    }
}
