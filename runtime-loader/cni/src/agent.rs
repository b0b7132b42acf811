//! The agent at the other end of its socket.

use netpolc_bundle::wire::{self, FromAgent, ToAgent};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// Asks the agent.
///
/// # Errors
/// If it cannot be reached or has no answer in time.
pub(crate) fn ask(socket: &Path, request: ToAgent, patience: Duration) -> io::Result<FromAgent> {
    let socket = socket.to_owned();
    let (done, wait) = mpsc::channel();
    // On a thread of its own, since connecting to a socket whose queue is full knows no time limit. If the time is up,
    // the process ends, and the thread with it.
    std::thread::spawn(move || {
        let exchange = || {
            let mut stream = UnixStream::connect(&socket)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            wire::send(&mut stream, &request)?;
            wire::receive(&mut stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        // No one waits any more if the time is up.
        let _ = done.send(exchange());
    });
    wait.recv_timeout(patience).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
