//! What the CNI plugin says to the agent.

use crate::loader::PATIENCE;
use crate::rig::Rig;
use netpolc_bundle::wire::{self, FromAgent, Sandbox, ToAgent};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

pub(crate) fn sandbox(container: &str, pod: &str, addresses: &[&str]) -> Sandbox {
    Sandbox {
        container: container.into(),
        interface: "eth0".into(),
        pod: pod.into(),
        uid: None,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    }
}

impl Rig {
    pub(crate) fn ask(&self, request: &ToAgent) -> FromAgent {
        ask(&self.path("agent.sock"), request)
    }

    /// Asks on another thread, since the answer may be long in coming.
    pub(crate) fn asking(&self, request: ToAgent) -> JoinHandle<FromAgent> {
        let path = self.path("agent.sock");
        std::thread::spawn(move || ask(&path, &request))
    }

    pub(crate) fn until_ready(&self) {
        let ready = || self.path("agent.sock").exists() && self.ask(&ToAgent::Status) == FromAgent::Done;
        self.until("a ready agent", ready);
    }
}

fn ask(path: &std::path::Path, request: &ToAgent) -> FromAgent {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    wire::send(&mut stream, request).unwrap();
    wire::receive(&mut stream).unwrap().unwrap()
}
