//! `netpol-loader run`: the daemon of a node.
//!
//! It takes bundles from the agent over a socket, brings them into force, and looks every few seconds whether they still
//! are. It ends when it is told to, and leaves the rules in force; so it does when it is killed. What a successor needs
//! to go on is in the kernel, and on disk ([`store`]).
//!
//! Threads: the main one waits, looks and writes down; one accepts connections, each of which has a thread; one ends
//! connections that rules would not let begin; one makes what the next bundle needs; one serves the metrics. What they share
//! is behind one lock ([`state`]).

pub mod ask;
pub mod audit;
pub mod enforcer;
pub mod faults;
pub mod log;
pub mod look;
pub mod metrics;
pub mod serve;
pub mod state;
pub mod store;
pub mod wake;

use crate::Error;
use crate::cut::Established;
use crate::node::{self, CniMode, Node, NodeOptions};
use clap::Args;
use enforcer::Enforcer;
use log::{Level, log};
use netpolc_bundle::wire::LOADER_SOCKET;
use state::{Manner, State};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::Store;
use wake::{Wake, Woken};

/// How often the main loop wakes to write down what has come.
const TICK: Duration = Duration::from_secs(1);

/// The shortest and the longest time between two looks, in seconds.
const INTERVALS: std::ops::RangeInclusive<f64> = 0.05..=3600.0;

/// What the daemon does.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Where to listen for the agent.
    #[arg(long, value_name = "PATH", default_value = LOADER_SOCKET)]
    pub socket: PathBuf,
    /// The number of a group whose members may connect; without it only this user may.
    #[arg(long, value_name = "GID")]
    pub socket_group: Option<u32>,
    /// Where to write down what is in force.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/netpolc")]
    pub state: PathBuf,
    /// How many seconds pass between two looks at the kernel.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = interval)]
    pub interval: Duration,
    /// Count what the rules would drop, and drop nothing.
    #[arg(long)]
    pub audit: bool,
    /// Where to serve /metrics and /healthz; nowhere without it.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take it for the help of the whole")]
    pub node: NodeOptions,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !INTERVALS.contains(&seconds) {
        return Err(format!("not from {} to {}", INTERVALS.start(), INTERVALS.end()));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Runs until it is told to end.
///
/// # Errors
/// If it cannot begin: the socket, the address of the metrics, or another daemon.
pub fn run(options: Options, established: Established, enforcer: Box<dyn Enforcer>) -> Result<(), Error> {
    // Nothing that is denied is dropped in audit mode, so nothing is cut.
    let established = if options.audit { Established::Keep } else { established };
    let node = Node::new(options.node, &options.state);
    let store = Store::new(options.state);
    let _only = store.only()?;
    // A predecessor may have closed addresses that this one would never open.
    if options.audit || node.mode() == CniMode::None {
        for what in node::open_all()? {
            log(Level::Info, "node", &[("changes", &what)]);
        }
    }
    // Before any thread begins, so that none gets the signals.
    let mut wake = Wake::new(node.watched()).map_err(|error| Error::io("signals", error))?;
    let (listener, file) = serve::listen(&options.socket, options.socket_group)?;
    let metrics = match options.metrics_listen {
        Some(address) => Some(TcpListener::bind(address).map_err(|e| Error::io(address.to_string(), e))?),
        None => None,
    };
    let manner = Manner { established, audit: options.audit };
    let state = Arc::new(State::new(enforcer, node, store, manner));
    let version = env!("CARGO_PKG_VERSION");
    log(Level::Info, "started", &[("version", &version), ("socket", &options.socket.display())]);
    state.resume();
    if let Some(metrics) = metrics {
        let (state, most) = (state.clone(), options.interval * 3 + Duration::from_secs(60));
        spawn("metrics", move || metrics::serve(&metrics, &state, most))?;
    }
    let shared = state.clone();
    spawn("settle", move || shared.settle_forever())?;
    let shared = state.clone();
    spawn("provide", move || shared.provide_forever())?;
    let shared = state.clone();
    spawn("accept", move || serve::serve(&listener, &shared))?;
    watch(&mut wake, &state, options.interval);
    state.save();
    drop(file);
    log(Level::Info, "stopped", &[("rules", &"left in force")]);
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let thread = std::thread::Builder::new().name(name.into()).stack_size(512 << 10);
    let work = move || {
        let _end = EndsAll;
        work();
    };
    thread.spawn(work).map(|_| ()).map_err(|error| Error::io(format!("thread {name}"), error))
}

/// Ends the process if its thread panics: a daemon without that thread would look well. A successor starts with all.
struct EndsAll;

impl Drop for EndsAll {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log(Level::Error, "panicked", &[("thread", &std::thread::current().name().unwrap_or_default())]);
            std::process::abort();
        }
    }
}

/// Looks and writes down, until a signal comes.
fn watch(wake: &mut Wake, state: &State, interval: Duration) {
    let mut next = Instant::now();
    loop {
        // Looks take their time.
        state.save();
        let now = Instant::now();
        if now >= next {
            state.look();
            next = Instant::now() + interval;
        } else {
            state.confirm();
        }
        state.save();
        let left = next.saturating_duration_since(Instant::now());
        match wake.wait(left.min(TICK)) {
            Woken::Stop => return,
            Woken::Files => state.look_at_node(),
            Woken::Time => {}
        }
    }
}
