//! Being root enough: user namespaces and the limit on open files.

use std::fs;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{getegid, geteuid};

use crate::error::Error;

/// Makes an unprivileged process root inside a new user namespace, where it may build sandboxes. Does nothing for root.
///
/// Must be called while the process has one thread, so early in `main`: the kernel refuses it otherwise (EINVAL, see
/// `unshare(2)`, CLONE_NEWUSER).
///
/// # Errors
///
/// [`Error::Privilege`] or [`Error::System`] if the kernel or a security module forbids user namespaces (sysctls
/// `user.max_user_namespaces`, `kernel.unprivileged_userns_clone`, `kernel.apparmor_restrict_unprivileged_userns`), or
/// if the process has several threads.
pub fn enter_user_namespace() -> Result<(), Error> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| match e {
        nix::Error::EINVAL => Error::system(
            "new user namespace (the process must have a single thread, and root must be mappable)",
            e,
        ),
        _ => Error::system("new user namespace", e),
    })?;
    // A process without privilege may map its own group only after giving up setgroups(2): user_namespaces(7).
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", &format!("0 {gid} 1"))
}

/// Gives the calling thread, and what it starts from now on, a bpf file system of its own where `netpol-loader` pins
/// programs. A pinned program keeps its network namespace alive; these pins end with the process, as the namespaces do.
/// Where that may not be done, nobody can load such programs either.
pub(crate) fn own_bpf_file_system() {
    let none: Option<&str> = None;
    let _ = fs::create_dir_all(BPF_FILE_SYSTEM)
        .map_err(|_| nix::Error::EACCES)
        .and_then(|()| unshare(CloneFlags::CLONE_NEWNS))
        .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
        .and_then(|()| mount(Some("bpf"), BPF_FILE_SYSTEM, Some("bpf"), MsFlags::MS_NOSUID, none));
}

/// Where the loader looks first.
const BPF_FILE_SYSTEM: &str = "/run/netpolc/bpf";

fn write(path: &str, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|e| Error::system(format!("write {text:?} to {path}"), e))
}

/// Raises the soft limit on open files so that `needed` more fit, as far as the hard limit allows.
pub(crate) fn allow_open_files(needed: u64) -> Result<(), Error> {
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| Error::system("read the limit on open files", e))?;
    if soft >= needed {
        return Ok(());
    }
    if hard < needed {
        return Err(Error::Spec(format!(
            "a sandbox of this size needs {needed} open files, and the hard limit is {hard} (ulimit -Hn)"
        )));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        .map_err(|e| Error::system("raise the limit on open files", e))
}
