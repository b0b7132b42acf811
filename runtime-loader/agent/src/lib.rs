//! The agent of netpolc: it watches the API server, compiles the policies for its node, and hands bundles to the
//! loader. It also answers the CNI plugin, which waits with a new pod until the policies about it are in force.
//!
//! It has no privileges: it speaks HTTP to the API server, and a small format over two Unix sockets to the loader and
//! the plugin. One task, the [`engine`], owns everything that is known; all others tell it what happened.
//!
//! `docs/agent.md` says how it is run and what it does when something fails.

pub mod alike;
pub mod collect;
pub mod compile;
pub mod engine;
mod error;
pub mod events;
pub mod fixed;
pub mod http;
pub mod link;
pub mod log;
pub mod metrics;
pub mod network;
pub mod options;
pub mod relevant;
pub mod sandboxes;
pub mod socket;
pub mod store;
pub mod table;
pub mod trim;
pub mod watch;

pub use error::Error;

use engine::{Engine, Message};
use fixed::Fixed;
use metrics::Metrics;
use options::{Cli, Command, Options};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Messages that may wait for the engine; who has more to say waits, so memory is bounded.
const INBOX: usize = 1024;

/// Runs until it is told to stop.
///
/// # Errors
/// If it cannot start.
pub fn run(mut cli: Cli) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("the runtime", e))?;
    let ended = match cli.command.take() {
        Some(Command::Collect { kubeconfig, policies }) => {
            runtime.block_on(collect::collect(kubeconfig.as_deref(), policies))
        }
        None => cli.resolve().and_then(|options| runtime.block_on(serve(options))),
    };
    // A compilation or a loader that hangs is not waited for: nothing is lost with it.
    runtime.shutdown_background();
    ended
}

async fn serve(options: Options) -> Result<(), Error> {
    let fixed = match (&options.bundle, options.policies.as_slice()) {
        (Some(dir), _) => Some(Fixed::of_bundle(dir, &options.node)?),
        (None, []) => None,
        (None, paths) => Some(Fixed::read(paths)?),
    };
    let client = watch::client(options.kubeconfig.as_deref()).await?;
    let metrics = Arc::new(Metrics::default());
    let (tell, inbox) = mpsc::channel::<Message>(INBOX);
    let (report, faults) = mpsc::channel(INBOX);
    let engine = Engine::new(&options, Arc::clone(&metrics), report);
    let listener = socket::listen(&options.socket).await?;
    let http = http::listen(options.metrics_listen).await?;
    if let Some(fixed) = &fixed {
        log::info("policies come from files", &[("policies", &fixed.count())]);
    }
    watch::start(&client, &tell, &metrics, fixed);
    tokio::spawn(events::publish(client, options.node.clone(), faults));
    tokio::spawn(socket::serve(listener, tell));
    if let Some(http) = http {
        tokio::spawn(http::serve(http, Arc::clone(&metrics)));
    }
    log::info("started", &[("node", &options.node), ("version", &env!("CARGO_PKG_VERSION"))]);
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Error::io("signals", e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| Error::io("signals", e))?;
    tokio::select! {
        () = engine.run(inbox) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // The socket's file stays: a plugin that finds no one behind it fails, as it must.
    log::info("stopped", &[]);
    Ok(())
}
