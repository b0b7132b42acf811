//! A stand-in for the agent: records requests and answers as it is told to.

use netpolc_bundle::wire::{self, FromAgent, ToAgent};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub(crate) struct Agent {
    pub(crate) path: PathBuf,
    asked: Arc<Mutex<Vec<ToAgent>>>,
    answer: Arc<Mutex<Option<FromAgent>>>,
    stopping: Arc<Mutex<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn start(dir: &Path) -> Agent {
        let path = dir.join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(Mutex::new(Some(FromAgent::Done)));
        let stopping = Arc::new(Mutex::new(false));
        let thread = {
            let (asked, answer, stopping) = (Arc::clone(&asked), Arc::clone(&answer), Arc::clone(&stopping));
            std::thread::spawn(move || {
                // Those that get no answer stay open, as with an agent that hangs.
                let mut open = Vec::new();
                for stream in listener.incoming() {
                    if *stopping.lock().unwrap() {
                        return;
                    }
                    let mut stream = stream.unwrap();
                    let Ok(Some(request)) = wire::receive::<ToAgent>(&mut stream) else { continue };
                    asked.lock().unwrap().push(request);
                    if let Some(answer) = &*answer.lock().unwrap() {
                        let _ = wire::send(&mut stream, answer);
                    } else {
                        open.push(stream);
                    }
                }
            })
        };
        Agent { path, asked, answer, stopping, thread: Some(thread) }
    }

    /// What it answers from now on; `None` is silence.
    pub(crate) fn answers(&self, answer: Option<FromAgent>) {
        *self.answer.lock().unwrap() = answer;
    }

    /// What it was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<ToAgent> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        *self.stopping.lock().unwrap() = true;
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
