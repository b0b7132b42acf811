//! Anonymous network namespaces: a file descriptor and nothing else.
//!
//! A namespace lives while something refers to it: here a descriptor of this process and the sockets made inside. There
//! is no name in `/run/netns` and no process to end, so the kernel removes everything when this process ends,
//! however it ends (`network_namespaces(7)`).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::Error;

/// One network namespace, kept alive by its descriptor.
#[derive(Debug)]
pub(crate) struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// Makes an empty namespace. The calling thread stays where it is.
    pub(crate) fn create() -> Result<Namespace, Error> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::system("new network namespace", e))?;
            let path = "/proc/thread-self/ns/net";
            let file = File::open(path).map_err(|e| Error::system(format!("open {path}"), e))?;
            Ok(Namespace { fd: file.into() })
        })
    }

    /// Moves the calling thread into this namespace, for good. Only for threads that end soon or move on.
    pub(crate) fn enter(&self) -> Result<(), Error> {
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::system("enter a network namespace", e))
    }

    /// Runs `f` on a new thread inside this namespace and waits for it. Sockets that `f` opens and programs that it
    /// starts belong to this namespace.
    pub(crate) fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R, Error> {
        in_thread(|| {
            self.enter()?;
            Ok(f())
        })
    }

    /// A path to this namespace that child processes can open while this process lives. It holds slashes, which is how
    /// `ip link ... netns` tells a path from a name.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }
}

/// Runs `f` on a thread of its own: a change of namespace then cannot outlive `f`.
fn in_thread<R: Send>(f: impl FnOnce() -> Result<R, Error> + Send) -> Result<R, Error> {
    thread::scope(|scope| {
        let handle = thread::Builder::new()
            .name("sandbox-ns".into())
            .spawn_scoped(scope, f)
            .map_err(|e| Error::system("start a thread", e))?;
        handle.join().unwrap_or(Err(Error::Panicked))
    })
}
