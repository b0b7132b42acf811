//! The iptables backend in the running kernel: both variants of iptables, with sets and without, real packets.
//!
//! These need `ip`, `ipset`, `iptables` (legacy and nft), and root or unprivileged user namespaces.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../it/common.rs"]
mod common;
mod generated;
mod load;
mod world;

use std::process::Command;

/// Runs `body` as root: here if this is root, else in this same program started again in a user namespace.
fn as_root(test: &str, body: impl FnOnce()) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    if ids.split_whitespace().nth(1) == Some("0") {
        return body();
    }
    let this = std::env::current_exe().unwrap();
    let output =
        Command::new("unshare").arg("-r").arg(this).args(["--exact", test, "--nocapture"]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
