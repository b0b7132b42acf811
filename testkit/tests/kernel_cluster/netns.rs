//! Network namespaces, and programs and threads inside.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A name that no other test on this machine has.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("netpolc-w{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A network namespace with a name, as runtimes make them for pods; deleted in the end.
pub(crate) struct Netns(pub(crate) String);

impl Netns {
    pub(crate) fn new() -> Netns {
        let netns = Netns(unique());
        let done = Command::new("ip").args(["netns", "add", &netns.0]).status().unwrap();
        assert!(done.success(), "these tests need root");
        netns
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// A program to be started inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    /// Runs a line of shell that must succeed.
    pub(crate) fn sh(&self, line: &str) -> String {
        let output = self.command("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs something inside, in a thread of its own.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.path(), work)
    }
}

/// Runs something in the network namespace of a path, in a thread of its own.
pub(crate) fn inside<T: Send>(path: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(path).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}
