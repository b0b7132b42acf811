//! What the daemon writes down, so that its successor can go on before the agent is back.
//!
//! `bundle` is a symbolic link to a directory beside it, so that a bundle is replaced as a whole by turning the link.

use super::log::{Level, log};
use crate::Error;
use crate::node::files;
use netpolc_bundle::wire::{FRAME_BYTES, Network};
use netpolc_bundle::{Bundle, store};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The link, and how the names of the directories begin that it can lead to.
const BUNDLE: &str = "bundle";
const PREFIX: &str = "bundle.";

/// The file that a running daemon holds a lock on.
const LOCK: &str = "lock";

/// The file of the node's network.
const NETWORK: &str = "network.json";

/// A directory for what is written down.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// A store in a directory, which is made when something is written.
    pub fn new(dir: PathBuf) -> Store {
        Store { dir }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps others from being a daemon with this directory, as long as the answer is there. Where that cannot be done, as on a
    /// full disk, `None`: a daemon is worth more than the certainty that it is alone.
    ///
    /// # Errors
    /// [`Error::Busy`] if there is one.
    pub fn only(&self) -> Result<Option<Flock<File>>, Error> {
        let path = self.dir.join(LOCK);
        let made = self.make_dir().and_then(|()| {
            let made = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
            made.map_err(|error| Error::io(path.display().to_string(), error))
        });
        match made.map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock)) {
            Ok(Ok(held)) => Ok(Some(held)),
            Ok(Err((_, Errno::EWOULDBLOCK))) => Err(Error::Busy(path.display().to_string())),
            Ok(Err((_, errno))) => Ok(unsure(&Error::io(path.display().to_string(), errno))),
            Err(error) => Ok(unsure(&error)),
        }
    }

    /// The bundle, and when it was written; `None` if there is none.
    ///
    /// # Errors
    /// If it is not sound.
    pub fn bundle(&self) -> Result<Option<(Bundle, SystemTime)>, Error> {
        let path = self.dir.join(BUNDLE);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path.display().to_string(), error)),
            Ok(data) => {
                let written = data.modified().unwrap_or_else(|_| SystemTime::now());
                Ok(Some((Bundle::open(&path)?, written)))
            }
        }
    }

    /// Writes a bundle down in the place of the one before.
    ///
    /// # Errors
    /// If that cannot be done; then the one before is still there.
    pub fn keep_bundle(&self, bundle: &Bundle) -> Result<(), Error> {
        self.make_dir()?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let name = format!("{PREFIX}{}-{}", since.as_nanos(), std::process::id());
        let dir = self.dir.join(&name);
        // By the name that lasts: a fault that is the same is not logged at each try.
        let fail = |error: io::Error| Error::io(self.dir.join(BUNDLE).display().to_string(), error);
        let result = fs::DirBuilder::new().mode(0o700).create(&dir).map_err(fail).and_then(|()| {
            store::write(&dir, bundle).map_err(|error| fail(io::Error::other(error)))?;
            let link = self.dir.join(format!(".{name}"));
            symlink(&name, &link).map_err(fail)?;
            fs::rename(&link, self.dir.join(BUNDLE)).map_err(|error| {
                let _ = fs::remove_file(&link);
                fail(error)
            })?;
            // The link is on disk when its directory is.
            File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(fail)
        });
        // What the link does not lead to is old, or the beginning of what could not be written.
        self.sweep();
        result
    }

    /// The node's network; `None` if it was never told.
    ///
    /// # Errors
    /// If the file cannot be read or understood.
    pub fn network(&self) -> Result<Option<Network>, Error> {
        let path = self.dir.join(NETWORK);
        let Some(bytes) = files::read(&path, u64::from(FRAME_BYTES))? else { return Ok(None) };
        let network = serde_json::from_slice(&bytes);
        network.map(Some).map_err(|error| Error::io(path.display().to_string(), error))
    }

    /// Writes the node's network down.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn keep_network(&self, network: &Network) -> Result<(), Error> {
        self.make_dir()?;
        let path = self.dir.join(NETWORK);
        let bytes = serde_json::to_vec(network).map_err(|e| Error::io(path.display().to_string(), e))?;
        files::write(&path, &bytes, 0o600).map(|_| ())
    }

    /// Forgets everything; what there was.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn forget(&self) -> Result<Vec<String>, Error> {
        let mut done = Vec::new();
        for name in [BUNDLE, NETWORK] {
            let path = self.dir.join(name);
            if files::remove(&path)? {
                done.push(format!("{} removed", path.display()));
            }
        }
        self.sweep();
        let _ = fs::remove_file(self.dir.join(LOCK));
        let _ = fs::remove_dir(&self.dir);
        Ok(done)
    }

    fn make_dir(&self) -> Result<(), Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(|error| Error::io(self.dir.display().to_string(), error))
    }

    /// Removes all bundles but the one that the link leads to. What cannot be removed is tried again the next time.
    fn sweep(&self) {
        let current = fs::read_link(self.dir.join(BUNDLE)).unwrap_or_default();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let ours = name.to_string_lossy().starts_with(PREFIX);
            if ours && Path::new(&name) != current {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn unsure(error: &Error) -> Option<Flock<File>> {
    log(Level::Warn, "perhaps-not-alone", &[("why", error)]);
    None
}
