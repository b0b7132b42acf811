//! The server: a thread that accepts, and one for each connection.

use crate::http::{self, Request};
use crate::state::{Resource, State};
use serde_json::{Value, json};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often is looked whether someone wants to connect.
const LOOK: Duration = Duration::from_millis(2);
/// How long a connection waits for its client.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something holds; `None` if the server stops or refuses before.
    fn wait_for(&self, holds: impl Fn(&State) -> bool) -> Option<MutexGuard<'_, State>> {
        let mut state = self.lock();
        while !state.stopping && !holds(&state) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (!state.stopping).then_some(state)
    }
}

/// A running server.
#[derive(Debug)]
pub struct Standin {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Standin {
    /// Starts a server without objects on the loopback interface.
    ///
    /// # Errors
    /// If the loopback interface cannot be used.
    pub fn start() -> io::Result<Standin> {
        Standin::start_on(Ipv4Addr::LOCALHOST.into())
    }

    /// Starts a server without objects on an address of the calling thread's network namespace.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn start_on(address: IpAddr) -> io::Result<Standin> {
        let listener = TcpListener::bind((address, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || accept(&listener, &for_thread));
        Ok(Standin { shared, address, accepting: Some(accepting) })
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig that leads to it into a directory.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn kubeconfig(&self, dir: &Path) -> io::Result<PathBuf> {
        self.kubeconfig_for(self.address.ip(), dir)
    }

    /// The same for clients that reach it at another of its addresses.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn kubeconfig_for(&self, address: IpAddr, dir: &Path) -> io::Result<PathBuf> {
        let server = format!("http://{}", SocketAddr::new(address, self.address.port()));
        let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": server } }],
            "users": [{ "name": "c", "user": {} }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "c" } }] });
        let path = dir.join("kubeconfig");
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let out = change(&mut self.shared.lock());
        self.shared.changed.notify_all();
        out
    }

    /// Adds or replaces an object.
    ///
    /// # Panics
    /// If it is of a kind that is not served.
    pub fn apply(&self, object: Value) {
        self.change(|s| s.apply(object));
    }

    /// Takes an object away; says whether it was there.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> bool {
        self.change(|s| s.delete(resource, namespace, name))
    }

    /// Sends bookmarks to all watches.
    pub fn bookmark(&self) {
        self.change(State::bookmark);
    }

    /// Makes every version so far too old: watches end with 410 and must begin with a list. `as_status` says whether a
    /// new watch from an old version is answered by a status 410 or by an event within the stream; servers do both.
    pub fn expire(&self, as_status: bool) {
        self.change(|s| {
            s.gone_as_status = as_status;
            s.expire();
        });
    }

    /// Cuts all watches in mid-stream.
    pub fn disconnect(&self) {
        self.change(|s| s.epoch += 1);
    }

    /// Lets lists of a resource wait, or go on.
    pub fn hold_lists(&self, resource: Resource, hold: bool) {
        self.change(|s| if hold { s.held_lists.insert(resource) } else { s.held_lists.remove(&resource) });
    }

    /// Holds changes of a resource back from watches, so that they come late and behind those of others.
    pub fn hold_watches(&self, resource: Resource, hold: bool) {
        self.change(
            |s| {
                if hold { s.held_watches.insert(resource) } else { s.held_watches.remove(&resource) }
            },
        );
    }

    /// Answers everything with 503 and cuts all watches, or serves again.
    pub fn refuse(&self, refuse: bool) {
        self.change(|s| {
            s.refusing = refuse;
            s.epoch += 1;
        });
    }

    /// Serves ClusterNetworkPolicies, as a cluster with that CRD does.
    pub fn serve_cluster_policies(&self) {
        self.change(|s| s.cluster_policies = true);
    }

    /// How many requests began with this path.
    pub fn requests(&self, path: &str) -> usize {
        self.shared.lock().requests.iter().filter(|r| r.starts_with(path)).count()
    }

    /// What clients created: path and body.
    pub fn created(&self) -> Vec<(String, Value)> {
        self.shared.lock().created.clone()
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.change(|s| s.stopping = true);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while !shared.lock().stopping {
        // Nobody who stops the server can wake this thread by a connection: it may live in another network namespace.
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(LOOK);
            continue;
        };
        threads.retain(|t| !t.is_finished());
        let shared = Arc::clone(shared);
        threads.push(std::thread::spawn(move || {
            // A client that went away is its own affair.
            let _ = connection(&stream, &shared);
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn connection(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let request = http::read(stream)?;
    if request.method.is_empty() {
        return Ok(());
    }
    let refusing = {
        let mut state = shared.lock();
        state.requests.push(request.path.clone());
        state.refusing
    };
    if refusing {
        return fail(stream, 503, "Service Unavailable", "ServiceUnavailable", "refusing");
    }
    if request.method == "POST" || request.method == "PATCH" {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let text = body.to_string();
        shared.lock().created.push((request.path, body));
        return http::answer(stream, "201 Created", &text);
    }
    if request.path == "/apis/policy.networking.k8s.io/v1alpha2" && shared.lock().cluster_policies {
        return http::answer(stream, "200 OK", &cluster_policy_resources().to_string());
    }
    let served = |r: &Resource| *r != Resource::ClusterNetworkPolicies || shared.lock().cluster_policies;
    match Resource::of_path(&request.path).filter(served) {
        None => {
            fail(stream, 404, "Not Found", "NotFound", "the server could not find the requested resource")
        }
        Some(resource) if matches!(request.query.get("watch").map(String::as_str), Some("true" | "1")) => {
            watch(stream, shared, resource, &request)
        }
        Some(resource) => list(stream, shared, resource, &request),
    }
}

fn cluster_policy_resources() -> Value {
    json!({ "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": "policy.networking.k8s.io/v1alpha2",
        "resources": [{ "name": "clusternetworkpolicies", "singularName": "clusternetworkpolicy",
            "namespaced": false, "kind": "ClusterNetworkPolicy", "verbs": ["list", "watch"] }] })
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code })
}

fn fail(stream: &TcpStream, code: u16, line: &str, reason: &str, message: &str) -> io::Result<()> {
    http::answer(stream, &format!("{code} {line}"), &status(code, reason, message).to_string())
}

fn list(stream: &TcpStream, shared: &Shared, resource: Resource, request: &Request) -> io::Result<()> {
    let number = |name: &str| request.query.get(name).and_then(|n| n.parse().ok());
    let limit = number("limit").filter(|n| *n > 0).unwrap_or(usize::MAX);
    let from = request.query.get("continue").map(String::as_str);
    let Some(state) = shared.wait_for(|s| !s.held_lists.contains(&resource)) else { return Ok(()) };
    let page = state.list(resource, limit, from);
    drop(state);
    http::answer(stream, "200 OK", &page.to_string())
}

/// Sends every change after the version that was asked for, until the watch is cut or too old.
fn watch(stream: &TcpStream, shared: &Shared, resource: Resource, request: &Request) -> io::Result<()> {
    let from = request.query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
    let (epoch, too_old, as_status, mut sent) = {
        let state = shared.lock();
        let too_old = from < state.oldest;
        let sent = state.history.iter().take_while(|e| e.version <= from).count();
        (state.epoch, too_old, state.gone_as_status, sent)
    };
    let message = format!("too old resource version: {from}");
    if too_old && as_status {
        return fail(stream, 410, "Gone", "Expired", &message);
    }
    http::begin_chunks(stream)?;
    let gone = || {
        let event = json!({ "type": "ERROR", "object": status(410, "Expired", &message) });
        http::chunk(stream, format!("{event}\n").as_bytes())?;
        http::chunk(stream, b"")
    };
    if too_old {
        return gone();
    }
    loop {
        let next = |s: &State| s.history.len() > sent && !s.held_watches.contains(&resource);
        let Some(state) = shared.wait_for(|s| s.epoch != epoch || next(s)) else { return Ok(()) };
        if state.epoch != epoch {
            let expired = state.oldest > from && state.oldest == state.version();
            drop(state);
            // Cut in mid-stream: no last chunk.
            return if expired { gone() } else { Ok(()) };
        }
        let lines: Vec<Vec<u8>> = state
            .history
            .get(sent..)
            .unwrap_or_default()
            .iter()
            .filter(|e| e.resource == resource)
            .map(|e| e.line.clone())
            .collect();
        sent = state.history.len();
        drop(state);
        for line in lines {
            http::chunk(stream, &line)?;
        }
    }
}
