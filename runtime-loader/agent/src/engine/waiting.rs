//! The plugin's requests, and who waits for what.

use super::Engine;
use crate::log;
use crate::store::Known;
use netpolc_bundle::wire::{FromAgent, Sandbox, ToAgent};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long the end of a sandbox waits for the loader. After that it is answered all the same: the address cannot be
/// used by another pod before that pod's own request was answered, and that one waits until the loader did its work.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Someone who waits for an answer.
#[derive(Debug)]
pub(super) struct Waiter {
    what: What,
    reply: oneshot::Sender<FromAgent>,
    pub(super) deadline: Instant,
    /// The change that must be in force.
    generation: u64,
}

#[derive(Debug)]
enum What {
    Add(Sandbox),
    End,
}

fn failed(message: impl Into<String>, retry: bool) -> FromAgent {
    FromAgent::Failed { message: message.into(), retry }
}

impl Engine {
    pub(super) fn asked(&mut self, request: ToAgent, reply: oneshot::Sender<FromAgent>) {
        let answer = match request {
            ToAgent::Add(sandbox) => match self.add(&sandbox) {
                Ok(()) => return self.wait_for(What::Add(sandbox), reply, self.add_timeout),
                Err((message, retry)) => failed(message, retry),
            },
            ToAgent::Del(sandbox) => {
                let changed = self.store.end(&sandbox);
                return self.ended(changed, &sandbox, reply);
            }
            ToAgent::Gc { valid } => {
                let changed = self.store.keep(&valid);
                let none = Sandbox {
                    container: String::new(),
                    interface: String::new(),
                    pod: String::new(),
                    uid: None,
                    addresses: Vec::new(),
                };
                return self.ended(changed, &none, reply);
            }
            ToAgent::Check(sandbox) => self.check(&sandbox),
            ToAgent::Status => self.status(),
        };
        // If the plugin is gone, no one needs the answer.
        let _ = reply.send(answer);
    }

    /// What is wrong, and whether it makes sense to try again.
    fn add(&mut self, sandbox: &Sandbox) -> Result<(), (String, bool)> {
        if sandbox.addresses.is_empty() {
            return Err(("the pod has no address".to_owned(), false));
        }
        self.store.add(sandbox.clone()).map_err(|message| (message, false))?;
        self.changed(Instant::now(), true);
        // A later agent would take an older list for the truth, and this pod's address for that of the pod which had it
        // before: that one may be allowed more.
        self.save().map_err(|message| (message, true))
    }

    fn ended(&mut self, changed: bool, sandbox: &Sandbox, reply: oneshot::Sender<FromAgent>) {
        if changed {
            self.changed(Instant::now(), true);
            // That is tried again. A pod with the address has to be announced first, which fails until then.
            let _ = self.save();
        }
        let bound = |a: &std::net::IpAddr| self.in_force.bindings.get(a) == Some(&sandbox.pod);
        let nothing_to_do = !changed && self.job.is_none() && !sandbox.addresses.iter().any(bound);
        if nothing_to_do {
            let _ = reply.send(FromAgent::Done);
        } else {
            self.wait_for(What::End, reply, END_PATIENCE);
        }
    }

    /// Writes the list of sandboxes; says so when that begins or ceases to fail.
    ///
    /// # Errors
    /// If it cannot be written: with the path. It is tried again, until it is done.
    pub(super) fn save(&mut self) -> Result<(), String> {
        let result = self.store.save().map_err(|error| format!("the list of sandboxes: {error}"));
        match &result {
            Err(error) if !self.unsaved => log::error("cannot be written", &[("error", error)]),
            Ok(()) if self.unsaved => log::info("the list of sandboxes is written again", &[]),
            _ => {}
        }
        self.unsaved = result.is_err();
        result
    }

    fn check(&self, sandbox: &Sandbox) -> FromAgent {
        let Some(known) = self.store.sandboxes().get(&sandbox.container, &sandbox.interface) else {
            return failed("the agent does not know this sandbox", false);
        };
        if known.pod != sandbox.pod || sandbox.addresses.iter().any(|a| !known.addresses.contains(a)) {
            return failed("the sandbox was announced with another pod or other addresses", false);
        }
        if self.is_bound(known) { FromAgent::Done } else { failed("its addresses are not in force", true) }
    }

    fn status(&self) -> FromAgent {
        let incomplete = self.store.incomplete();
        if !incomplete.is_empty() {
            let kinds: Vec<&str> = incomplete.iter().map(|k| k.plural()).collect();
            return failed(format!("the API server has not told all {} yet", kinds.join(", ")), true);
        }
        match self.trouble().or(self.no_network.as_deref()) {
            Some(trouble) => failed(trouble, true),
            None if self.in_force.generation == 0 => failed("nothing is in force yet", true),
            None => FromAgent::Done,
        }
    }

    fn wait_for(&mut self, what: What, reply: oneshot::Sender<FromAgent>, patience: Duration) {
        let deadline = Instant::now() + patience;
        self.waiters.push(Waiter { what, reply, deadline, generation: self.generation });
    }

    fn is_bound(&self, sandbox: &Sandbox) -> bool {
        sandbox.addresses.iter().all(|a| self.in_force.bindings.get(a) == Some(&sandbox.pod))
    }

    /// Answers everyone whose wait is over.
    pub(super) fn answer_waiters(&mut self) {
        let now = Instant::now();
        for waiter in std::mem::take(&mut self.waiters) {
            if waiter.reply.is_closed() {
                continue;
            }
            match self.verdict(&waiter, now) {
                Some(answer) => {
                    let _ = waiter.reply.send(answer);
                }
                None => self.waiters.push(waiter),
            }
        }
    }

    fn verdict(&self, waiter: &Waiter, now: Instant) -> Option<FromAgent> {
        let in_force = self.in_force.generation >= waiter.generation;
        let late = now >= waiter.deadline;
        let sandbox = match &waiter.what {
            What::End if in_force => return Some(FromAgent::Done),
            What::End if late => {
                log::warn("the end of a sandbox is not in force yet", &[("error", &self.excuse())]);
                return Some(FromAgent::Done);
            }
            What::End => return None,
            What::Add(sandbox) => sandbox,
        };
        // The labels of its namespace decide which policies are about it.
        let knows_namespace = self.store.knows_namespace(sandbox);
        let known = self.store.known(sandbox);
        if known == Known::Finished {
            return Some(failed("the pod has ended", false));
        }
        if in_force && knows_namespace && self.is_bound(sandbox) {
            return Some(FromAgent::Done);
        }
        if self.store.sandboxes().get(&sandbox.container, &sandbox.interface) != Some(sandbox) {
            return Some(failed("the sandbox has ended, or another one has its pod or address", false));
        }
        if !late {
            return None;
        }
        let incomplete = !self.store.is_complete();
        Some(match known {
            _ if incomplete => failed("the agent is still reading the cluster's objects", true),
            Known::No => failed(format!("the API server has not told of pod {} yet", sandbox.pod), true),
            Known::Yes | Known::Finished if !knows_namespace => failed(
                format!("the API server has not told of the namespace of pod {} yet", sandbox.pod),
                true,
            ),
            Known::Yes | Known::Finished => failed(self.excuse(), true),
        })
    }

    fn excuse(&self) -> String {
        self.trouble().map_or_else(|| "the loader has not answered yet".to_owned(), str::to_owned)
    }

    fn trouble(&self) -> Option<&str> {
        self.no_loader.as_deref().or(self.no_bundle.as_deref())
    }
}
