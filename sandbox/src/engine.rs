//! Many probes at once: a few threads, each with many probes under way.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::namespace::Namespace;
use crate::probe::{Flight, Outcome, Probe};

/// Most threads that send probes.
const MAX_THREADS: usize = 4;

/// Most probes that one thread has under way. Together with [`MAX_THREADS`] it keeps the work for one round trip of all
/// probes far below a sensible timeout, even on a slow machine.
const MAX_FLIGHTS: usize = 128;

/// Most open files that all probes under way need.
pub(crate) const OPEN_FILES: u64 = (MAX_THREADS * MAX_FLIGHTS) as u64;

/// Runs all probes; the outcomes are in the order of the probes.
pub(crate) fn run<'a>(
    probes: &[Probe],
    timeout: Duration,
    namespace: impl Fn(&Probe) -> Option<&'a Namespace> + Sync,
) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_THREADS);
    let worker = || {
        Worker { probes, timeout, next: &next, namespace: &namespace, flights: vec![], done: vec![] }.run()
    };
    let mut outcomes =
        vec![Outcome::Error("the probing thread did not start or failed".into()); probes.len()];
    thread::scope(|scope| {
        let spawn = || thread::Builder::new().name("sandbox-probe".into()).spawn_scoped(scope, worker);
        let handles: Vec<_> = (0..threads).filter_map(|_| spawn().ok()).collect();
        for (index, outcome) in handles.into_iter().flat_map(|handle| handle.join().unwrap_or_default()) {
            outcomes[index] = outcome;
        }
    });
    outcomes
}

struct Worker<'a, F> {
    probes: &'a [Probe],
    timeout: Duration,
    /// The next probe that no thread has taken.
    next: &'a AtomicUsize,
    namespace: &'a F,
    flights: Vec<(usize, Flight)>,
    done: Vec<(usize, Outcome)>,
}

impl<'a, 'n, F: Fn(&Probe) -> Option<&'n Namespace>> Worker<'a, F> {
    fn run(mut self) -> Vec<(usize, Outcome)> {
        loop {
            self.take_off();
            if self.flights.is_empty() {
                return self.done;
            }
            self.wait();
        }
    }

    /// Starts probes until enough are under way or none is left.
    fn take_off(&mut self) {
        while self.flights.len() < MAX_FLIGHTS {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(probe) = self.probes.get(index) else { return };
            let entered = match (self.namespace)(probe) {
                Some(namespace) => namespace.enter().map_err(|e| Outcome::Error(e.to_string())),
                None => Err(Outcome::Error(format!("{} is not in the sandbox", probe.from))),
            };
            match entered.and_then(|()| Flight::start(probe, self.timeout)) {
                Ok(flight) => self.flights.push((index, flight)),
                Err(outcome) => self.done.push((index, outcome)),
            }
        }
    }

    /// Waits until a probe hears something or its time is up, and puts away those that have an outcome.
    fn wait(&mut self) {
        let now = Instant::now();
        let first = self.flights.iter().map(|(_, flight)| flight.deadline()).min();
        let wait = first.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(now));
        // One more millisecond, since a timeout of poll(2) is whole milliseconds rounded down.
        let wait = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds: Vec<PollFd<'_>> = self
            .flights
            .iter()
            .map(|(_, flight)| flight.interest())
            .map(|(fd, flags)| PollFd::new(fd, flags))
            .collect();
        // An interrupted or failed poll reports nothing; deadlines still end the wait.
        let _ = poll(&mut fds, wait);
        let heard: Vec<bool> =
            fds.iter().map(|fd| fd.revents().is_some_and(|flags| flags != PollFlags::empty())).collect();
        let now = Instant::now();
        for ((index, mut flight), heard) in std::mem::take(&mut self.flights).into_iter().zip(heard) {
            // What has come in counts, even if this thread was too slow to look before the deadline.
            match if heard { flight.step() } else { None } {
                Some(outcome) => self.done.push((index, outcome)),
                None if now >= flight.deadline() => self.done.push((index, flight.expire())),
                None => self.flights.push((index, flight)),
            }
        }
    }
}
