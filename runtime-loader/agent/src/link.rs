//! The way to the loader: one connection, kept and made anew when it breaks.

use crate::log;
use netpolc_bundle::rebind::Rebind;
use netpolc_bundle::wire::{self, FromLoader, Network, ToLoader};
use netpolc_bundle::{Artifact, BINDINGS, Backend, Bundle, Version};
use serde_json::Value;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the loader may take for one request: far longer than the largest ruleset needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the loader did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It cannot be reached.
    #[error("the loader at {path} cannot be reached: {source}")]
    Unreachable {
        /// Its socket.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It refused.
    #[error("the loader refused {what}: {message}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        message: String,
    },
    /// It can use no backend.
    #[error("the loader can use no backend: {0}")]
    NoBackend(String),
    /// Another loader than before takes other backends.
    #[error("the loader takes other backends now")]
    Other,
}

/// The connection and what the loader at its other end has done.
#[derive(Debug)]
pub struct Link {
    path: PathBuf,
    stream: Option<UnixStream>,
    /// The last bundle that was compiled.
    bundle: Option<Bundle>,
    /// Whether the loader at the other end of this connection said that it is in force.
    in_force: bool,
    /// What it called that, where it said so.
    version: Option<Version>,
    /// Whether addresses have come and gone since, so that the bundle is not what is in force.
    rebound: bool,
    /// What that is of.
    artifact: Option<Artifact>,
    network: Option<Network>,
    /// Why the loader did not make all of the network.
    no_network: Option<String>,
    /// Whether to compile for what the loader takes.
    auto: bool,
    /// What the loader said last that it takes, the best first.
    usable: Vec<Backend>,
    /// Whether the loader at the other end of this connection said so.
    asked: bool,
}

impl Link {
    /// Not connected yet.
    pub fn new(path: &Path, auto: bool) -> Link {
        Link {
            path: path.to_owned(),
            stream: None,
            bundle: None,
            in_force: false,
            version: None,
            rebound: false,
            artifact: None,
            network: None,
            no_network: None,
            auto,
            usable: Vec::new(),
            asked: false,
        }
    }

    /// The backends that the loader takes, the best first: it is asked once in each connection. While it cannot be reached,
    /// what was said last.
    ///
    /// # Errors
    /// If that is not known, or if it takes none.
    pub fn choice(&mut self) -> Result<Vec<Backend>, LinkError> {
        if let Some(stream) = &self.stream
            && !is_quiet(stream)
        {
            self.disconnect();
        }
        match self.ask_choice() {
            Err(LinkError::Unreachable { .. }) if !self.usable.is_empty() => {}
            result => result?,
        }
        Ok(self.usable.clone())
    }

    fn ask_choice(&mut self) -> Result<(), LinkError> {
        if self.asked {
            return Ok(());
        }
        let mut asked = true;
        let status = match self.exchange(|stream| wire::send(stream, &ToLoader::Status)) {
            Ok(FromLoader::Status(status)) => status,
            // A loader that cannot look at the kernel may still bring a bundle into force, and mend it so.
            Ok(FromLoader::Failed { message }) => {
                log::warn("the loader cannot say what it takes", &[("error", &message)]);
                if !self.usable.is_empty() {
                    return Ok(());
                }
                asked = false;
                Value::Null
            }
            Ok(FromLoader::Done { .. }) => Value::Null,
            Err(source) => {
                self.disconnect();
                return Err(LinkError::Unreachable { path: self.path.display().to_string(), source });
            }
        };
        let (usable, reasons) = backends(&status);
        if usable.is_empty() {
            return Err(LinkError::NoBackend(reasons));
        }
        self.asked = asked;
        if usable != self.usable {
            let names: Vec<String> = usable.iter().map(ToString::to_string).collect();
            log::info("the loader takes", &[("backends", &names.join(",")), ("why", &reasons)]);
            self.usable = usable;
        }
        Ok(())
    }

    /// The loader's socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the loader holds everything that it was last given. A loader that went away does not: the next one must
    /// be told again.
    pub fn is_in_force(&mut self) -> bool {
        if let Some(stream) = &self.stream
            && !is_quiet(stream)
        {
            self.disconnect();
        }
        self.stream.is_some() && self.in_force
    }

    /// The last bundle that was compiled.
    pub fn bundle(&self) -> Option<&Bundle> {
        self.bundle.as_ref()
    }

    /// Whether addresses have come and gone since the last bundle.
    pub fn is_rebound(&self) -> bool {
        self.rebound
    }

    /// Takes what was compiled anew: a bundle, or nothing if it is the last one. If it says what the last one says, and
    /// no addresses have come and gone since, the last one stays.
    pub fn take(&mut self, bundle: Option<Bundle>) {
        let same =
            bundle.as_ref().is_none_or(|new| self.bundle.as_ref().is_some_and(|last| is_same(last, new)));
        if !same || self.rebound {
            self.in_force = false;
        }
        if let Some(bundle) = bundle.filter(|_| !same) {
            self.bundle = Some(bundle);
        }
        self.rebound = false;
    }

    /// The artifact that is in force, if the loader said so.
    pub fn artifact(&mut self) -> Option<Artifact> {
        let version = self.version.filter(|_| self.is_in_force())?;
        if self.rebound {
            return self.artifact;
        }
        let artifacts = &self.bundle.as_ref()?.manifest.artifacts;
        artifacts.iter().find(|(_, v)| **v == version).map(|(artifact, _)| *artifact)
    }

    /// What addresses could come and go in: what is in force, if the loader said which artifact that is of.
    pub fn changeable(&mut self) -> Option<(Artifact, Version)> {
        let artifact = self.artifact()?;
        self.artifact = Some(artifact);
        // The rules of iptables are a tree over addresses.
        self.version.filter(|_| artifact.backend() != Backend::Iptables).map(|version| (artifact, version))
    }

    /// Lets addresses come and go, and waits until that is in force.
    ///
    /// # Errors
    /// If the loader cannot be reached or refuses; then only a bundle helps.
    pub fn rebind(&mut self, change: Rebind) -> Result<(), LinkError> {
        let request = ToLoader::Rebind(change);
        self.version = self.ask("a change of addresses", |stream| wire::send(stream, &request))?;
        self.rebound = true;
        Ok(())
    }

    /// Why the loader did not make all of the network, when it was last given it.
    pub fn no_network(&self) -> Option<&str> {
        self.no_network.as_deref()
    }

    /// Gives the loader what it does not have yet, and waits until that is in force. Says whether a bundle was sent. That the
    /// network cannot be made is no reason to keep policies back: see [`Link::no_network`].
    ///
    /// # Errors
    /// If the loader cannot be reached or refuses; what was in force still is.
    pub fn bring(&mut self, network: Option<&Network>) -> Result<bool, LinkError> {
        // Sees a connection that ended in the meantime.
        let in_force = self.is_in_force();
        if let Some(network) = network
            && self.network.as_ref() != Some(network)
        {
            let request = ToLoader::Network(network.clone());
            match self.ask("the network", |stream| wire::send(stream, &request)) {
                Ok(_) => (self.network, self.no_network) = (Some(network.clone()), None),
                Err(error @ LinkError::Refused { .. }) => self.no_network = Some(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        if in_force {
            return Ok(false);
        }
        // Another loader may be there than the bundle was made for.
        if self.auto && self.bundle.is_some() {
            let before = self.usable.clone();
            self.ask_choice()?;
            if before != self.usable {
                return Err(LinkError::Other);
            }
        }
        let Some(bundle) = self.bundle.take() else { return Ok(false) };
        let answer = self.ask("the bundle", |stream| wire::send_bundle(stream, &bundle));
        self.bundle = Some(bundle);
        // It may take another one, now that it refuses this.
        self.asked &= answer.is_ok();
        self.version = answer?;
        self.in_force = true;
        Ok(true)
    }

    fn disconnect(&mut self) {
        self.stream = None;
        self.in_force = false;
        self.network = None;
        self.asked = false;
    }

    fn ask(
        &mut self,
        what: &'static str,
        send: impl FnOnce(&mut UnixStream) -> io::Result<()>,
    ) -> Result<Option<Version>, LinkError> {
        match self.exchange(send) {
            Ok(FromLoader::Failed { message }) => Err(LinkError::Refused { what, message }),
            Ok(FromLoader::Done { version, .. }) => Ok(version.and_then(|digits| digits.parse().ok())),
            Ok(FromLoader::Status(_)) => Ok(None),
            Err(source) => {
                self.disconnect();
                Err(LinkError::Unreachable { path: self.path.display().to_string(), source })
            }
        }
    }

    fn exchange(&mut self, send: impl FnOnce(&mut UnixStream) -> io::Result<()>) -> io::Result<FromLoader> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = UnixStream::connect(&self.path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                self.stream.insert(stream)
            }
        };
        send(stream)?;
        wire::receive(stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// What a loader's status says that it takes, and why nothing else. One that does not say so is older than the question, and
/// takes nftables wherever an agent of its time did its work.
fn backends(status: &Value) -> (Vec<Backend>, String) {
    let said = |field: &str| status["daemon"]["backends"][field].as_array();
    let Some(usable) = said("usable") else {
        return (vec![Backend::Nftables], "the loader does not say what it takes".to_owned());
    };
    let named = |name: &Value| Backend::ALL.into_iter().find(|b| name.as_str() == Some(&b.to_string()));
    let reasons: Vec<&str> = said("reasons").into_iter().flatten().filter_map(Value::as_str).collect();
    (usable.iter().filter_map(named).collect(), reasons.join("; "))
}

/// Whether two bundles would do the same on their node. They may still name other policies as the reason.
fn is_same(a: &Bundle, b: &Bundle) -> bool {
    a.manifest.artifacts == b.manifest.artifacts
        && a.manifest.node_addresses == b.manifest.node_addresses
        && a.manifest.files.get(BINDINGS) == b.manifest.files.get(BINDINGS)
}

/// Whether a connection is open and silent, as it must be between requests: the loader never speaks unasked.
fn is_quiet(stream: &UnixStream) -> bool {
    let look = || -> io::Result<usize> {
        stream.set_nonblocking(true)?;
        let read = (&mut &*stream).read(&mut [0]);
        stream.set_nonblocking(false)?;
        read
    };
    matches!(look(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
