//! What is done beside the engine: compile, and bring into force.

use crate::compile::Compiler;
use crate::link::Link;
use crate::relevant::Slice;
use netpolc_bundle::Backend;
use netpolc_bundle::wire::Network;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, spawn_blocking};

/// What there is to do.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) compiler: Compiler,
    /// To be compiled; without, the last bundle is brought once more.
    pub(super) slice: Option<Slice>,
    pub(super) network: Option<Network>,
    pub(super) node: String,
    pub(super) backends: Vec<Backend>,
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
    /// The last change that it knew.
    pub(super) generation: u64,
    /// When the first change that it was the first to know was seen.
    pub(super) seen: Option<Instant>,
}

/// A running job.
#[derive(Debug)]
pub(super) struct Job {
    handle: JoinHandle<Done>,
    /// To make a new link if the job dies with its own.
    path: PathBuf,
    generation: u64,
}

impl Job {
    pub(super) fn start(link: Link, task: Task, generation: u64, seen: Option<Instant>) -> Job {
        let path = link.path().to_owned();
        Job { handle: spawn_blocking(move || work(link, task, generation, seen)), path, generation }
    }
}

fn work(mut link: Link, task: Task, generation: u64, seen: Option<Instant>) -> Done {
    let mut compiler = task.compiler;
    let compiled = task.slice.map(|slice| {
        let started = Instant::now();
        let bundle = compiler.bundle(slice, &task.node, &task.backends).map_err(|e| e.to_string())?;
        // Without a new one, the link still has the last.
        if let Some(bundle) = bundle {
            link.take(bundle);
        }
        Ok(started.elapsed())
    });
    let brought = link.bring(task.network.as_ref()).map_err(|e| e.to_string());
    Done { link, compiler, compiled, brought, generation, seen }
}

/// Waits for the job, if there is one.
pub(super) async fn finished(job: &mut Option<Job>) -> Done {
    let Some(running) = job else { return std::future::pending().await };
    let done = (&mut running.handle).await;
    let (path, generation) = (running.path.clone(), running.generation);
    *job = None;
    // A panic is a bug of ours; the last bundle is lost with it, so nothing is sent until something changes.
    done.unwrap_or_else(|error| Done {
        link: Link::new(&path),
        compiler: Compiler::default(),
        compiled: Some(Err(error.to_string())),
        brought: Ok(false),
        generation,
        seen: None,
    })
}
