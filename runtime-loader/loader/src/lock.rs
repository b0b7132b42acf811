//! One loader at a time in a network namespace.
//!
//! The lock is an advisory `flock` on a file named after the namespace's inode. The programs that the loader starts
//! inherit a duplicate of the open file: if the loader is killed meanwhile, the lock lasts until they have ended, so a
//! successor never looks at rules that are about to change.
//!
//! The file goes with its lock: whoever holds the lock unlinks the file before letting go. So a file that was opened may
//! be another than the one that the path names once the lock is held; then it is opened anew. A loader that is killed
//! leaves its file behind, and the next loader of the namespace takes it over and removes it.

use crate::Error;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, OFlag, fcntl};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to wait for another loader.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A held lock, or the reason why there is none.
#[derive(Debug)]
pub struct Lock {
    held: Option<Held>,
    note: Option<String>,
}

/// The locked file, and its path as long as nobody removes it.
#[derive(Debug)]
struct Held {
    /// Always there until it is dropped.
    file: Option<Flock<File>>,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock of this network namespace. Where no lock file can be made, there is none, and a note.
    ///
    /// # Errors
    /// [`Error::Busy`] after [`PATIENCE`].
    pub fn acquire() -> Result<Lock, Error> {
        let inode = fs::metadata("/proc/thread-self/ns/net").map(|data| data.ino());
        let inode = inode.map_err(|error| Error::io("/proc/thread-self/ns/net", error))?;
        acquire_in(&[Path::new("/run"), &std::env::temp_dir()], &format!("netpol-loader.{inode}.lock"))
    }

    /// Why there is no lock, if there is none.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// A duplicate of the locked file that programs inherit which are started while it is there: they share the lock. `None`
    /// if there is no lock, or no more room for open files.
    pub(crate) fn share(&self) -> Option<File> {
        let file = self.held.as_ref()?.file.as_ref()?.try_clone().ok()?;
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).ok()?;
        Some(file)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        if std::thread::panicking() {
            // A process that shares the lock may still be at work, and dropping this file would unlock it for all. The
            // loader is about to end; the file stays for a successor to wait at.
            std::mem::forget(file);
        } else if names(&self.path, &file) {
            // If it cannot be removed, it stays, and is used again.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Waits for the lock of this name in the first directory where its file can be made.
fn acquire_in(dirs: &[&Path], name: &str) -> Result<Lock, Error> {
    let start = Instant::now();
    loop {
        let (path, file) = match open(dirs, name) {
            Ok(opened) => opened,
            Err(error) => {
                let note = format!("no lock file can be made, going on without: {error}");
                return Ok(Lock { held: None, note: Some(note) });
            }
        };
        let file = wait(file, &path, start)?;
        if names(&path, &file) {
            return Ok(Lock { held: Some(Held { file: Some(file), path }), note: None });
        }
        // Its last holder has removed it. Others may be about to lock its successor.
        if start.elapsed() >= PATIENCE {
            return Err(Error::Busy(path.display().to_string()));
        }
    }
}

fn wait(mut file: File, path: &Path, start: Instant) -> Result<Flock<File>, Error> {
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(held),
            Err((again, Errno::EWOULDBLOCK | Errno::EINTR)) if start.elapsed() < PATIENCE => {
                file = again;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err((_, Errno::EWOULDBLOCK)) => return Err(Error::Busy(path.display().to_string())),
            Err((_, errno)) => return Err(Error::io(format!("flock {}", path.display()), errno)),
        }
    }
}

/// Whether the path names this very file.
fn names(path: &Path, file: &File) -> bool {
    let (Ok(there), Ok(here)) = (fs::symlink_metadata(path), file.metadata()) else { return false };
    (there.dev(), there.ino()) == (here.dev(), here.ino())
}

/// Opens the lock file, or makes it: in `/run`, where only root can write; else in the directory for temporary files.
fn open(dirs: &[&Path], name: &str) -> io::Result<(PathBuf, File)> {
    let mut result = Err(io::Error::other("no directory"));
    for dir in dirs {
        let path = dir.join(name);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory, deleted in the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let path = std::env::temp_dir().join(format!("netpol-lock-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Dir(path)
        }

        fn lock(&self) -> Lock {
            acquire_in(&[&self.0], "lock").unwrap()
        }

        fn files(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn one_at_a_time_and_no_file_in_the_end() {
        let dir = Dir::new("one");
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let lock = dir.lock();
                        assert!(lock.note().is_none());
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                    }
                });
            }
        });
        assert_eq!(dir.files(), 0);
    }

    /// Whoever waits at a file that its holder removes must not take that file for the lock.
    #[test]
    fn a_removed_file_is_no_lock() {
        let dir = Dir::new("removed");
        let first = dir.lock();
        let (path, waiting) = open(&[&dir.0], "lock").unwrap();
        drop(first);
        let second = dir.lock();
        let stale = wait(waiting, &path, Instant::now()).unwrap();
        assert!(!names(&path, &stale));
        drop(second);
        assert_eq!(dir.files(), 0);
    }
}
