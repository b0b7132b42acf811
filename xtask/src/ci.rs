//! `cargo xtask ci`: everything that must hold, in the order in which it is cheapest to find out.

use crate::shell::{cargo, has_program, programs, run};
use crate::{deps, docs};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Programs that tests run, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] = &[
    ("nft", "nftables"),
    ("ip", "iproute2"),
    // One package; the tests of rules beside ours use both names.
    ("iptables", "iptables"),
    ("iptables-nft", "iptables"),
    ("iptables-legacy", "iptables"),
    ("ipset", "ipset"),
    ("strace", "strace"),
    ("bpftool", "bpftool"),
    ("llvm-objdump", "llvm"),
    ("unshare", "util-linux"),
    // Not on any path: runtimes are told where plugins are.
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
];

type Step = (&'static str, fn() -> Result<(), String>);

/// The steps. One that fails does not keep the others from running.
const STEPS: &[Step] = &[
    ("what the tests need", install),
    ("formatting", || run(cargo().args(["fmt", "--all", "--check"]))),
    ("dependencies", deps::run),
    ("docs", docs::check),
    ("lints", || {
        let clippy = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
        run(cargo().args(clippy))
    }),
    ("rustdoc", || {
        let doc = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
        run(cargo().args(doc).env("RUSTDOCFLAGS", "-D warnings"))
    }),
    ("examples in comments", || run(cargo().args(["test", "--locked", "--workspace", "--doc"]))),
    ("tests", tests),
];

/// Runs the task.
pub(crate) fn run_all() -> Result<(), String> {
    let mut done: Vec<(&str, Duration, Result<(), String>)> = Vec::new();
    for (name, step) in STEPS {
        println!("\n=== {name}");
        let started = Instant::now();
        let result = step();
        if let Err(message) = &result {
            eprintln!("error: {message}");
        }
        done.push((name, started.elapsed(), result));
    }
    println!();
    for (name, took, result) in &done {
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("{verdict:>6}  {:>5} s  {name}", took.as_secs());
    }
    let failed = done.iter().filter(|(_, _, result)| result.is_err()).count();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} steps failed", done.len())) }
}

/// Installs what is missing, and says so first.
fn install() -> Result<(), String> {
    let missing: BTreeSet<&str> = PROGRAMS.iter().filter(|p| !has_program(p.0)).map(|p| p.1).collect();
    if !missing.is_empty() {
        let missing: Vec<&str> = missing.into_iter().collect();
        apt_get(&["update"])?;
        apt_get(&[["install", "--yes", "--no-install-recommends"].as_slice(), &missing].concat())?;
    }
    let nextest = cargo().args(["nextest", "--version"]).output();
    if !nextest.is_ok_and(|o| o.status.success()) {
        run(cargo().args(["install", "--locked", "cargo-nextest"]))?;
    }
    if !Path::new(BRIDGES).exists() {
        if !has_program("modprobe") {
            apt_get(&["install", "--yes", "--no-install-recommends", "kmod"])?;
        }
        let lines =
            format!("modprobe br_netfilter && for key in {BRIDGES}/bridge-nf-call-*; do echo 0 > $key; done");
        run(as_root("sh").args(["-c", &lines]))?;
    }
    println!(
        "nft, ip, iptables, ipset, strace, bpftool, llvm-objdump, unshare, the standard CNI plugins and cargo-nextest are here"
    );
    Ok(())
}

/// Where the kernel says what it passes of the packets that cross bridges. Nothing loads the module for that by itself. Its
/// switches are then put where the machine's own bridges are as they were; each network namespace has its own.
const BRIDGES: &str = "/proc/sys/net/bridge";

/// A program, run by root: it needs no sudo, and a container often has none.
fn as_root(program: &str) -> Command {
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    let mut command = Command::new(if root { "env" } else { "sudo" });
    command.arg(program);
    command
}

fn apt_get(args: &[&str]) -> Result<(), String> {
    if !has_program("apt-get") {
        let all: BTreeSet<&str> = PROGRAMS.iter().map(|p| p.1).collect();
        let all: Vec<&str> = all.into_iter().collect();
        return Err(format!("there is no apt-get: install {} yourself", all.join(", ")));
    }
    // It must not ask questions.
    run(as_root("env").args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(args))
}

/// All tests. Those that run the programs are told where they are, so that they need not build them: each program's package
/// has tests that run it, so it is built with them, and by the same features of everything it depends on. To build the
/// programs' packages alone would compile most of those once more.
fn tests() -> Result<(), String> {
    let all = ["nextest", "run", "--locked", "--workspace", "--profile", "ci"];
    run(cargo().args(all).arg("--no-run"))?;
    run(cargo().args(all).env("NETPOLC_BIN_DIR", programs()?))
}
