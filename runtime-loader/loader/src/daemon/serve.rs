//! The daemon's socket.
//!
//! A few connections at a time, each with a thread. A connection may rest between requests as long as it likes, but not
//! within one: from its first byte a request has ten seconds, a bundle a minute. Where all places are taken, the
//! connection that has rested longest makes room; where none rests, the newcomer waits until one is done. One bundle or
//! large request at a time is received, so that memory is bounded by the limits of one.

use super::log::{Level, log};
use super::state::State;
use crate::Error;
use netpolc_bundle::wire::{self, AGENT_SOCKET, AGENT_STATE, FromLoader, ToLoader};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Connections at a time.
const PLACES: usize = 8;

/// How long a request may take to arrive, from its first byte on.
const REQUEST: Duration = Duration::from_secs(10);

/// How long the files of a bundle may take to arrive.
const TRANSFER: Duration = Duration::from_secs(60);

/// Bytes of a request that may be received beside others; a larger one waits for its turn.
const SMALL: usize = 64 << 10;

/// How long an answer may take to be taken.
const ANSWER: Duration = Duration::from_secs(10);

/// How long to wait before another try to accept, or to make room.
const PAUSE: Duration = Duration::from_millis(50);

/// The stack of a connection's thread. A parser of scripts does not recurse.
const STACK_BYTES: usize = 512 << 10;

/// The file of the socket, removed in the end.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A successor may have put its own there.
        if fs::symlink_metadata(&self.path).is_ok_and(|data| data.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the socket. With a group its members may connect, and make sockets of their own in its directory, but not
/// remove ours. What an agent of this user's own left there goes, unless one listens.
///
/// # Errors
/// If another daemon answers there, if something else is there, or if it cannot be made.
pub fn listen(path: &Path, group: Option<u32>) -> Result<(UnixListener, SocketFile), Error> {
    let fail = |error: io::Error| Error::io(path.display().to_string(), error);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(fail)?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
        Ok(data) if !data.file_type().is_socket() => {
            return Err(fail(io::Error::other("something else than a socket is there")));
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(Error::Busy(path.display().to_string())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(fail(error)),
        },
    }
    // Under another name until its permissions are right; the name then changes hands in one step.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let made = UnixListener::bind(&temporary).and_then(|listener| {
        fs::set_permissions(&temporary, Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
        if group.is_some() {
            make_room(dir)?;
            chown(&temporary, None, group)?;
            chown(dir, None, group)?;
            fs::set_permissions(dir, Permissions::from_mode(0o1775))?;
        }
        let inode = fs::symlink_metadata(&temporary)?.ino();
        fs::rename(&temporary, path)?;
        Ok((listener, SocketFile { path: path.to_owned(), inode }))
    });
    made.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        fail(error)
    })
}

/// Takes out what an agent left that was the user whose directory this is: one of another user could not replace it there. What
/// it remembered of pods goes, too; the next one takes the API server's word for them.
fn make_room(dir: &Path) -> io::Result<()> {
    let owner = fs::metadata(dir)?.uid();
    let mut left = Vec::new();
    let names =
        [AGENT_SOCKET, AGENT_STATE].into_iter().filter_map(|path| Path::new(path).file_name()?.to_str());
    // Both are made beside their place first.
    for path in names.flat_map(|name| [dir.join(name), dir.join(format!("{name}.new"))]) {
        let data = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            data => data?,
        };
        if data.uid() != owner || data.is_dir() {
            continue;
        }
        if data.file_type().is_socket() && UnixStream::connect(&path).is_ok() {
            return Ok(());
        }
        left.push(path);
    }
    for path in left {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => log(Level::Warn, "agent-replaced", &[("removed", &path.display())]),
        }
    }
    Ok(())
}

/// Serves for as long as the process lives.
pub fn serve(listener: &UnixListener, state: &Arc<State>) {
    let desk = Arc::new(Desk::default());
    let mut number = 0;
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Out of descriptors, most likely.
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        while desk.full() {
            if desk.evict() {
                state.evicted();
            }
            std::thread::sleep(PAUSE);
        }
        number += 1;
        let Some(guest) = Guest::new(&desk, number, &stream) else { continue };
        let state = state.clone();
        let thread = std::thread::Builder::new().name("connection".into()).stack_size(STACK_BYTES);
        // Without a thread the connection is closed; the client tries again.
        let _ = thread.spawn(move || converse(stream, &guest, &state));
    }
}

/// Who is connected, and since when who rests.
#[derive(Debug, Default)]
struct Desk {
    guests: Mutex<BTreeMap<u64, (UnixStream, Option<Instant>)>>,
    /// Held while a bundle, or a request that is not small, is received and done.
    turn: Mutex<()>,
}

impl Desk {
    fn guests(&self) -> MutexGuard<'_, BTreeMap<u64, (UnixStream, Option<Instant>)>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full(&self) -> bool {
        self.guests().len() >= PLACES
    }

    /// Ends the connection that has rested longest, if one rests; its thread then gives its place up. One that has said
    /// something already, or is closed, only waits for its thread.
    fn evict(&self) -> bool {
        let guests = self.guests();
        let resting = guests.values().filter_map(|(stream, since)| Some((since.as_ref()?, stream)));
        let resting = resting.filter(|(_, stream)| is_silent(stream));
        resting.min_by_key(|(since, _)| **since).is_some_and(|(_, s)| s.shutdown(Shutdown::Both).is_ok())
    }
}

fn is_silent(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(0)
}

/// A place at the desk.
struct Guest {
    desk: Arc<Desk>,
    number: u64,
}

impl Guest {
    fn new(desk: &Arc<Desk>, number: u64, stream: &UnixStream) -> Option<Guest> {
        let stream = stream.try_clone().ok()?;
        desk.guests().insert(number, (stream, Some(Instant::now())));
        Some(Guest { desk: desk.clone(), number })
    }

    fn rests(&self, since: Option<Instant>) {
        if let Some(guest) = self.desk.guests().get_mut(&self.number) {
            guest.1 = since;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.desk.guests().remove(&self.number);
    }
}

/// A stream whose reads end at a deadline, which begins with the first byte if it is not set.
struct Timed<'a> {
    stream: &'a UnixStream,
    guest: &'a Guest,
    deadline: Option<Instant>,
    /// Bytes so far.
    bytes: usize,
    turn: Option<MutexGuard<'a, ()>>,
}

impl Timed<'_> {
    /// Waits until nobody else receives anything large.
    fn take_turn(&mut self) {
        let turn = &self.guest.desk.turn;
        self.turn.get_or_insert_with(|| turn.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = match self.deadline {
            None => None,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Some(left)
            }
        };
        self.stream.set_read_timeout(left)?;
        let read = self.stream.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })?;
        if self.deadline.is_none() {
            self.deadline = Some(Instant::now() + REQUEST);
            self.guest.rests(None);
        }
        self.bytes += read;
        if self.bytes > SMALL && self.turn.is_none() {
            self.take_turn();
            // The wait is not the client's.
            self.deadline = Some(Instant::now() + REQUEST);
        }
        Ok(read)
    }
}

fn converse(stream: UnixStream, guest: &Guest, state: &State) {
    if stream.set_write_timeout(Some(ANSWER)).is_err() {
        return;
    }
    loop {
        guest.rests(Some(Instant::now()));
        let mut timed = Timed { stream: &stream, guest, deadline: None, bytes: 0, turn: None };
        let request = match wire::receive::<ToLoader>(&mut timed) {
            Ok(None) => return,
            Ok(Some(request)) => request,
            Err(error) => return refuse(&stream, state, &error),
        };
        let answer = match request {
            ToLoader::Apply { files } => {
                timed.take_turn();
                timed.deadline = Some(Instant::now() + TRANSFER);
                let bundle = match wire::receive_bundle(&mut timed, &files) {
                    Ok(Ok(bundle)) => state.apply(bundle),
                    Ok(Err(error)) => {
                        state.refused();
                        Err(error.into())
                    }
                    // Where the next request would begin is not known.
                    Err(error) => return refuse(&stream, state, &error),
                };
                bundle.map(|report| FromLoader::Done {
                    version: Some(report.version.to_string()),
                    report: report.to_string(),
                })
            }
            ToLoader::Rebind(change) => state.rebind(&change).map(|version| FromLoader::Done {
                version: Some(version.to_string()),
                report: "addresses came and went".to_owned(),
            }),
            ToLoader::Network(network) => {
                state.network(network).map(|report| FromLoader::Done { report, version: None })
            }
            ToLoader::Status => state.status().map(FromLoader::Status),
        };
        drop(timed);
        let answer = answer.unwrap_or_else(|error| FromLoader::Failed { message: error.to_string() });
        let answered = answer_with(&stream, &answer);
        state.wake_settler();
        state.wake_provider();
        if answered.is_err() {
            return;
        }
    }
}

/// Says why, and ends the connection.
fn refuse(stream: &UnixStream, state: &State, error: &io::Error) {
    state.refused();
    log(Level::Warn, "refused", &[("why", error)]);
    let _ = answer_with(stream, &FromLoader::Failed { message: error.to_string() });
}

fn answer_with(mut stream: &UnixStream, answer: &FromLoader) -> io::Result<()> {
    let mut bytes = Vec::new();
    wire::send(&mut bytes, answer)?;
    stream.write_all(&bytes)
}
