//! What `netpol-loader status` asks a running daemon: the kernel shows what is in force, but not since when, nor what is
//! done about it.

use crate::dataplane::{Denied, InForce};
use crate::node::Closing;
use crate::status::Status;
use netpolc_bundle::Backend;
use netpolc_bundle::wire::{self, FromLoader, ToLoader};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the daemon may take: it may be at work for the agent.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Since when what is in force is; none if nothing is.
    pub since: Option<String>,
    /// Whether what would be dropped only counts.
    pub audit: bool,
    /// Bundles that came into force.
    pub applies: u64,
    /// Bundles and repairs that did not.
    pub failures: u64,
    /// Times that rules were found changed or gone, and made anew.
    pub repairs: u64,
    /// Which addresses it keeps closed while no pod has them.
    pub unknown_addresses: Closing,
    /// What is wrong and lasts, each with the part that it is about. One of an earlier version does not say.
    #[serde(default)]
    pub faults: Vec<String>,
}

/// A daemon's answer, or that there is one which does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// What it says.
    Daemon(Daemon, Vec<Denied>),
    /// Why it did not say anything, with the path of its socket.
    Nothing(String),
}

impl Said {
    /// Adds to what the kernel shows what it does not: for whom programs count.
    pub fn complete(&self, status: &mut Status) {
        let Said::Daemon(_, denied) = self else { return };
        let silent = |found: &&mut InForce| found.backend == Backend::Ebpf && found.denied.is_empty();
        status.dataplanes.iter_mut().filter(silent).for_each(|found| found.denied.clone_from(denied));
    }

    /// As fields of an object.
    ///
    /// # Errors
    /// If they cannot be written as JSON, which is a bug of ours.
    pub fn fields(&self) -> serde_json::Result<Vec<(String, Value)>> {
        let unknown = |value| ("unknown_addresses".to_owned(), value);
        Ok(match self {
            Said::Daemon(daemon, _) => vec![
                ("daemon".to_owned(), serde_json::to_value(daemon)?),
                unknown(serde_json::to_value(&daemon.unknown_addresses)?),
            ],
            Said::Nothing(error) => vec![unknown(serde_json::json!({ "error": error }))],
        })
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Said::Daemon(daemon, _) => {
                let Daemon { since, audit, applies, failures, repairs, unknown_addresses, faults } = daemon;
                let since =
                    since.as_ref().map_or_else(String::new, |since| format!("in force since {since}, "));
                let audit = if *audit { ", audit mode: nothing is dropped" } else { "" };
                writeln!(
                    f,
                    "daemon: {since}{applies} bundles applied, {failures} failures, {repairs} repairs{audit}"
                )?;
                writeln!(f, "addresses that no pod has: {unknown_addresses}")?;
                faults.iter().try_for_each(|fault| writeln!(f, "fault: {fault}"))
            }
            Said::Nothing(error) => writeln!(f, "addresses that no pod has: not known, {error}"),
        }
    }
}

/// What the daemon says that listens here; `None` if none does.
pub fn daemon(socket: &Path) -> Option<Said> {
    let stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return None;
        }
        Err(error) => return Some(failed(socket, &error)),
    };
    Some(asked(stream).unwrap_or_else(|error| failed(socket, &error)))
}

fn asked(mut stream: UnixStream) -> io::Result<Said> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    wire::send(&mut stream, &ToLoader::Status)?;
    let mut said = match wire::receive(&mut stream)? {
        Some(FromLoader::Status(status)) => status,
        Some(FromLoader::Failed { message }) => return Err(io::Error::other(message)),
        Some(FromLoader::Done { .. }) => return Err(io::ErrorKind::InvalidData.into()),
        None => return Err(io::ErrorKind::UnexpectedEof.into()),
    };
    let of = said.get_mut("daemon").map(Value::take);
    let daemon = of.ok_or_else(|| io::Error::other("it does not say"))?;
    let daemon = serde_json::from_value(daemon)
        .map_err(|error| io::Error::other(format!("it is of another version: {error}")))?;
    // Of an older one, nothing.
    let denied = said.get_mut("dataplanes").and_then(Value::as_array_mut).into_iter().flatten();
    let ebpf = Backend::Ebpf.to_string();
    let mut denied = denied.filter(|found| found.get("backend").is_some_and(|backend| *backend == ebpf));
    let denied = denied.next().and_then(|found| found.get_mut("denied")).map(Value::take);
    let denied = denied.and_then(|denied| serde_json::from_value(denied).ok()).unwrap_or_default();
    Ok(Said::Daemon(daemon, denied))
}

fn failed(socket: &Path, error: &io::Error) -> Said {
    Said::Nothing(format!("{}: {error}", socket.display()))
}
