//! What `netpol-loader status` asks a running daemon: the kernel shows what is closed, but not why something is not.

use crate::node::Closing;
use netpolc_bundle::wire::{self, FromLoader, ToLoader};
use serde::Serialize;
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the daemon may take: it may be at work for the agent.
const PATIENCE: Duration = Duration::from_secs(10);

/// The daemon's answer, or that there is one which does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Said {
    /// What it closes.
    Closing(Closing),
    /// Why it did not say so.
    Nothing {
        /// With the path of its socket.
        error: String,
    },
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Said::Closing(closing) => writeln!(f, "addresses that no pod has: {closing}"),
            Said::Nothing { error } => writeln!(f, "addresses that no pod has: not known, {error}"),
        }
    }
}

/// Which addresses the daemon keeps closed while no pod has them; `None` if no daemon listens.
pub fn unknown_addresses(socket: &Path) -> Option<Said> {
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
    let said = match wire::receive(&mut stream)? {
        Some(FromLoader::Status(status)) => status,
        Some(FromLoader::Failed { message }) => return Err(io::Error::other(message)),
        Some(FromLoader::Done { .. }) => return Err(io::ErrorKind::InvalidData.into()),
        None => return Err(io::ErrorKind::UnexpectedEof.into()),
    };
    match said.pointer("/daemon/unknown_addresses") {
        Some(closing) => Ok(Said::Closing(serde_json::from_value(closing.clone())?)),
        None => Err(io::Error::other("it is too old to say")),
    }
}

fn failed(socket: &Path, error: &io::Error) -> Said {
    Said::Nothing { error: format!("{}: {error}", socket.display()) }
}
