//! A stand-in for `netpol-loader run`: it checks and records bundles, and answers as it is told to.

use netpolc_bundle::Bundle;
use netpolc_bundle::wire::{self, FromLoader, Network, ToLoader};
use serde_json::json;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest that any test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct State {
    bundles: Vec<Bundle>,
    /// How many of the bundles are others after addresses have come and gone.
    rebinds: usize,
    networks: Vec<Network>,
    hold: bool,
    /// What its status says that it takes; nothing, as an older loader.
    takes: Option<Vec<&'static str>>,
    /// It cannot look at the kernel, so it has no status.
    blind: bool,
    refuse: bool,
    /// Only the network cannot be made.
    refuse_network: bool,
    stopping: bool,
    streams: Vec<UnixStream>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

pub(crate) struct Loader {
    shared: Arc<Shared>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    pub(crate) fn start(path: &Path) -> Loader {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || accept(&listener, &for_thread));
        Loader { shared, path: path.to_owned(), thread: Some(thread) }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock().unwrap());
        self.shared.changed.notify_all();
    }

    /// Lets requests wait for their answer, or answers them.
    pub(crate) fn hold(&self, hold: bool) {
        self.change(|s| s.hold = hold);
    }

    /// Says from now on that it takes these.
    pub(crate) fn takes(&self, backends: &[&'static str]) {
        self.change(|s| s.takes = Some(backends.to_vec()));
    }

    /// Can no longer say anything of its kernel, or can again.
    pub(crate) fn blind(&self, blind: bool) {
        self.change(|s| s.blind = blind);
    }

    /// Breaks all connections.
    pub(crate) fn hang_up(&self) {
        self.change(|s| s.streams.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both))));
    }

    /// Answers that nothing can be done, or does it.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.change(|s| s.refuse = refuse);
    }

    /// Answers that the network cannot be made, or makes it.
    pub(crate) fn refuse_network(&self, refuse: bool) {
        self.change(|s| s.refuse_network = refuse);
    }

    /// How many bundles came.
    pub(crate) fn count(&self) -> usize {
        self.shared.state.lock().unwrap().bundles.len()
    }

    /// Waits until the last bundle that came is as wanted.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&Bundle) -> bool) -> Bundle {
        self.wait_for(what, |s| s.bundles.last().filter(|b| wanted(b)).cloned())
    }

    pub(crate) fn wait_network(&self, what: &str, wanted: impl Fn(&Network) -> bool) -> Network {
        self.wait_for(what, |s| s.networks.last().filter(|n| wanted(n)).cloned())
    }

    fn wait_for<T>(&self, what: &str, look: impl Fn(&State) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut state = self.shared.state.lock().unwrap();
        loop {
            if let Some(found) = look(&state) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited for {what}; {} bundles came", state.bundles.len());
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.change(|s| {
            s.stopping = true;
            for stream in &s.streams {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    let mut threads = Vec::new();
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        let mut state = shared.state.lock().unwrap();
        if state.stopping {
            break;
        }
        state.streams.push(stream.try_clone().unwrap());
        drop(state);
        let shared = Arc::clone(shared);
        threads.push(std::thread::spawn(move || {
            // An agent that is killed breaks its connection.
            let _ = serve(stream, &shared);
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn serve(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    while let Some(request) = wire::receive::<ToLoader>(&mut stream)? {
        let mut version = None;
        let is_question = matches!(request, ToLoader::Status);
        let is_network = matches!(request, ToLoader::Network(_));
        let mut state;
        match request {
            ToLoader::Apply { files } => {
                let bundle = wire::receive_bundle(&mut stream, &files)?.unwrap();
                bundle.read_back().unwrap();
                version = bundle.manifest.artifacts.values().next().map(ToString::to_string);
                state = shared.state.lock().unwrap();
                state.bundles.push(bundle);
            }
            ToLoader::Rebind(change) => {
                state = shared.state.lock().unwrap();
                let bundle = state.bundles.last().unwrap().rebound(&change).unwrap();
                version = bundle.manifest.artifacts.values().next().map(ToString::to_string);
                state.bundles.push(bundle);
                state.rebinds += 1;
            }
            ToLoader::Network(network) => {
                state = shared.state.lock().unwrap();
                state.networks.push(network);
            }
            ToLoader::Status => state = shared.state.lock().unwrap(),
        }
        shared.changed.notify_all();
        while state.hold && !state.stopping {
            state = shared.changed.wait(state).unwrap();
        }
        let answer = if is_network && state.refuse_network {
            FromLoader::Failed { message: "no space left for the network".into() }
        } else if state.refuse || is_question && state.blind {
            FromLoader::Failed { message: "told to refuse".into() }
        } else if is_question {
            let takes = state.takes.as_ref();
            let backends = takes.map(|usable| json!({ "usable": usable, "reasons": ["not said"] }));
            FromLoader::Status(json!({ "daemon": { "backends": backends } }))
        } else {
            FromLoader::Done { report: "recorded".into(), version }
        };
        drop(state);
        wire::send(&mut stream, &answer)?;
    }
    Ok(())
}
