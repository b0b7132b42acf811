//! One loader at a time in a network namespace.
//!
//! The lock is an advisory `flock` on a file named after the namespace's inode. The process of nft that changes rules
//! gets a duplicate of the open file: if the loader is killed meanwhile, the lock lasts until nft has ended, so a
//! successor never looks at rules that are about to change.

use crate::Error;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How long to wait for another loader.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A held lock, or the reason why there is none.
#[derive(Debug)]
pub struct Lock {
    file: Option<Flock<File>>,
    note: Option<String>,
}

impl Lock {
    /// Waits for the lock of this network namespace. Where no lock file can be made, there is none, and a note.
    ///
    /// # Errors
    /// [`Error::Busy`] after [`PATIENCE`].
    pub fn acquire() -> Result<Lock, Error> {
        let (path, mut file) = match open() {
            Ok(opened) => opened,
            Err(error) => {
                let note = format!("no lock file can be made, going on without: {error}");
                return Ok(Lock { file: None, note: Some(note) });
            }
        };
        let start = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(held) => return Ok(Lock { file: Some(held), note: None }),
                Err((again, Errno::EWOULDBLOCK | Errno::EINTR)) if start.elapsed() < PATIENCE => {
                    file = again;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err((_, Errno::EWOULDBLOCK)) => return Err(Error::Busy(path.display().to_string())),
                Err((_, errno)) => return Err(Error::io(format!("flock {}", path.display()), errno)),
            }
        }
    }

    /// Why there is no lock, if there is none.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The standard output of a process that is to share the lock. nft prints nothing there when it reads a script.
    pub(crate) fn share(&self) -> Stdio {
        self.file.as_ref().and_then(|file| file.try_clone().ok()).map_or_else(Stdio::null, Stdio::from)
    }
}

/// The lock file of this network namespace: in `/run`, where only root can write; else in the directory for temporary
/// files.
fn open() -> io::Result<(PathBuf, File)> {
    let inode = fs::metadata("/proc/thread-self/ns/net")?.ino();
    let name = format!("netpol-loader.{inode}.lock");
    let mut result = Err(io::Error::other("no directory"));
    for dir in [Path::new("/run"), &std::env::temp_dir()] {
        let path = dir.join(&name);
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600).custom_flags(flags);
        result = options.open(&path).map(|file| (path, file));
        if result.is_ok() {
            break;
        }
    }
    result
}
