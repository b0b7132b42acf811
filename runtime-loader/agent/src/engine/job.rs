//! What is done beside the engine: compile, and bring into force.

use crate::alike::Addresses;
use crate::compile::{Compiler, Wanted, Which};
use crate::link::Link;
use crate::relevant::Slice;
use netpolc_bundle::rebind::Rebind;
use netpolc_bundle::wire::Network;
use netpolc_bundle::{Artifact, Backend, LocalPod, Version};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, spawn_blocking};

/// What there is to do.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) compiler: Compiler,
    pub(super) work: Work,
    pub(super) network: Option<Network>,
    pub(super) node: String,
    /// `None` is what the loader takes.
    pub(super) backends: Option<Vec<Backend>>,
}

/// The three kinds of jobs.
#[derive(Debug)]
pub(super) enum Work {
    /// Compile this and bring it into force.
    Compile(Box<Slice>),
    /// Bring the last bundle once more.
    Again,
    /// Let addresses come and go in what is in force, which is of this version.
    Rebind(Addresses, (Artifact, Version)),
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) link: Link,
    pub(super) compiler: Compiler,
    /// How long compiling took, or why it failed.
    pub(super) compiled: Option<Result<Duration, String>>,
    /// Whether a bundle was sent, or why none could be.
    pub(super) brought: Result<bool, String>,
    /// The pods that have other addresses now, and that are in force.
    pub(super) rebound: Option<Vec<LocalPod>>,
    /// The last change that it knew.
    pub(super) generation: u64,
    /// How long it took.
    pub(super) took: Duration,
    /// When the first change that it was the first to know was seen.
    pub(super) seen: Option<Instant>,
}

/// A running job.
#[derive(Debug)]
pub(super) struct Job {
    handle: JoinHandle<Done>,
    /// To make a new link if the job dies with its own.
    path: PathBuf,
    auto: bool,
    generation: u64,
}

impl Job {
    pub(super) fn start(link: Link, task: Task, generation: u64, seen: Option<Instant>) -> Job {
        let (path, auto) = (link.path().to_owned(), task.backends.is_none());
        Job { handle: spawn_blocking(move || work(link, task, generation, seen)), path, auto, generation }
    }
}

fn work(mut link: Link, task: Task, generation: u64, seen: Option<Instant>) -> Done {
    let begun = Instant::now();
    let mut compiler = task.compiler;
    let (mut compiled, mut rebound) = (None, None);
    let bring = |link: &mut Link| link.bring(task.network.as_ref()).map_err(|e| e.to_string());
    let brought = match task.work {
        Work::Compile(slice) => {
            let started = Instant::now();
            let backends = match task.backends {
                Some(listed) => Ok((Which::All, listed)),
                None => link.choice().map(|usable| (Which::First, usable)).map_err(|e| e.to_string()),
            };
            match backends {
                Ok((which, backends)) => {
                    let form = link.artifact().filter(|form| form.backend() == Backend::Iptables);
                    let wanted = Wanted { backends, which, form };
                    let bundle = compiler.bundle(*slice, &task.node, &wanted);
                    compiled = Some(bundle.map_err(|e| e.to_string()).map(|bundle| {
                        link.take(bundle);
                        started.elapsed()
                    }));
                    bring(&mut link)
                }
                // Nothing could be brought into force anyway.
                Err(error) => Err(error),
            }
        }
        Work::Again => bring(&mut link),
        Work::Rebind(addresses, (artifact, from)) => {
            let Addresses { gone, like, pods, .. } = addresses.clone();
            let change = Rebind { artifact, from, gone, like, pods };
            match link.rebind(change) {
                Ok(()) => {
                    rebound = Some(addresses.pods.clone());
                    compiler.alike.done(addresses);
                    Ok(true)
                }
                Err(error) => Err(error.to_string()),
            }
        }
    };
    compiler.tidy();
    Done { link, compiler, compiled, brought, rebound, generation, took: begun.elapsed(), seen }
}

/// Waits for the job, if there is one.
pub(super) async fn finished(job: &mut Option<Job>) -> Done {
    let Some(running) = job else { return std::future::pending().await };
    let done = (&mut running.handle).await;
    let (path, auto, generation) = (running.path.clone(), running.auto, running.generation);
    *job = None;
    // A panic is a bug of ours; the last bundle is lost with it, so nothing is sent until something changes.
    done.unwrap_or_else(|error| Done {
        link: Link::new(&path, auto),
        compiler: Compiler::default(),
        compiled: Some(Err(error.to_string())),
        brought: Ok(false),
        rebound: None,
        generation,
        took: Duration::ZERO,
        seen: None,
    })
}
