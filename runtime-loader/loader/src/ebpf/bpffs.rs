//! Where programs, maps and links are pinned, so that they outlive the loader.
//!
//! They need a bpf file system that outlives it too. Mostly that is `/sys/fs/bpf`. Where none is mounted, the loader mounts
//! one at [`OWN`]. `ip netns exec` starts programs in a mount namespace of their own, with a `/sys` of its own, that ends
//! with the program: what is mounted there would be gone. So the file system is looked for, and mounted, in the mount
//! namespace of the loader's parent too. A service manager may give a service a namespace that ends with it, and that the
//! service, with fewer capabilities, may not compare with its parent's: then nothing is mounted.
//!
//! Each network namespace has a directory of its own, named by its cookie, a number that no other namespace gets until the
//! machine is started anew.

use super::sys;
use crate::Error;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, statfs};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Where the loader mounts a bpf file system if there is none.
pub const OWN: &str = "/run/netpolc/bpf";

/// Where distributions mount it.
const USUAL: &str = "/sys/fs/bpf";

/// `BPF_FS_MAGIC`, `include/uapi/linux/magic.h`.
const MAGIC: FsType = FsType(0xcafe_4a11);

/// The directory of this network namespace, whether or not it is there; `None` if there is no bpf file system, so that
/// nothing can be pinned.
///
/// # Errors
/// If the network namespace has no number of its own, before Linux 5.14.
pub fn find() -> Result<Option<PathBuf>, Error> {
    let Some(root) = roots().into_iter().find(|path| is_bpffs(path)) else { return Ok(None) };
    directory(&root).map(Some)
}

/// As [`find`], and mounts a file system if there is none.
pub(super) fn find_or_mount() -> Result<PathBuf, Error> {
    if let Some(found) = find()? {
        return Ok(found);
    }
    mount_own().map_err(|error| Error::io(format!("mounting a bpf file system at {OWN}"), error))?;
    find()?.ok_or_else(|| Error::Kernel {
        what: "to pin programs".to_owned(),
        complaint: format!("no bpf file system at {USUAL} nor at {OWN}"),
    })
}

/// Why nothing could be pinned; `None` if there is a file system for it, which is mounted if need be.
pub(super) fn missing() -> Option<String> {
    let made = find_or_mount().and_then(|dir| {
        let parent = dir.parent().unwrap_or(&dir);
        fs::create_dir_all(parent).map_err(|error| Error::io(parent.display().to_string(), error))
    });
    made.err().map(|error| format!("there is no bpf file system to pin programs in: {error}"))
}

fn directory(root: &Path) -> Result<PathBuf, Error> {
    let cookie = sys::netns_cookie().map_err(|error| Error::io("SO_NETNS_COOKIE", error))?;
    Ok(root.join("netpolc").join(format!("{cookie:016x}")))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == MAGIC)
}

fn roots() -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from(OWN), PathBuf::from(USUAL)];
    let parent = nix::unistd::getppid();
    for pid in [parent.as_raw(), 1] {
        // Through the root of another process its mount namespace is seen.
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        roots.extend([OWN, USUAL].map(|path| root.join(path.trim_start_matches('/'))));
    }
    roots
}

/// Mounts a file system in the mount namespace of the parent, if it has another than this process, else here. Pins in one
/// that ends with this process would take the rules with them.
fn mount_own() -> io::Result<()> {
    // Who is started from outside of its container has no parent there; who is the container's first process ends with it.
    let parent = match nix::unistd::getppid().as_raw() {
        0 => 1,
        parent => parent,
    };
    let theirs = PathBuf::from(format!("/proc/{parent}/ns/mnt"));
    let unknown = |why: String| io::Error::other(format!("a mount might end with this process: {why}"));
    if parent == nix::unistd::getpid().as_raw() {
        return Err(unknown("it is the first one of its container".to_owned()));
    }
    let found = fs::read_link(&theirs).map_err(|error| unknown(format!("{}: {error}", theirs.display())))?;
    if found == fs::read_link("/proc/self/ns/mnt")? {
        return mount_here();
    }
    let namespace = File::open(theirs)?;
    // A thread may leave for another mount namespace once it shares its working directory with no other.
    let thread = std::thread::spawn(move || -> io::Result<()> {
        unshare(CloneFlags::CLONE_FS)?;
        setns(&namespace, CloneFlags::CLONE_NEWNS)?;
        mount_here()
    });
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread failed")))
}

fn mount_here() -> io::Result<()> {
    fs::create_dir_all(OWN)?;
    // Whoever may make a directory there may take the place of ours; by default that is everybody.
    let data = Some("mode=0700");
    mount(Some("bpf"), OWN, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, data)?;
    Ok(())
}

/// Removes a directory of pins and all that is in it.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the directory of all network namespaces, if none has pins there.
pub(super) fn remove_parent(dir: &Path) {
    if let Some(parent) = dir.parent() {
        // It is not empty where others have pins.
        let _ = fs::remove_dir(parent);
    }
}
