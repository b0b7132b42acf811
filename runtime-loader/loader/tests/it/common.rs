//! Network namespaces, bundles, and the loader's binary.

use netpolc_bundle::nft::{self, Family, Ruleset, Table};
use netpolc_bundle::{Artifacts, Bindings, Bundle, LocalPod, Parts, store};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) const SHAPE: &str = include_str!("data/shape.nft");
pub(crate) const SHAPE6: &str = include_str!("data/shape6.nft");
pub(crate) const LOADER: &str = env!("CARGO_BIN_EXE_netpol-loader");

pub(crate) fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("netpolc-t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A network namespace, deleted in the end.
pub(crate) struct Netns(pub(crate) String);

impl Netns {
    pub(crate) fn new() -> Netns {
        let netns = Netns(unique());
        let done = Command::new("ip").args(["netns", "add", &netns.0]).status().unwrap();
        assert!(done.success(), "these tests need root");
        netns
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    pub(crate) fn output(&self, line: &str) -> Output {
        self.command("sh").args(["-c", line]).output().unwrap()
    }

    /// Runs a line of shell that must succeed.
    pub(crate) fn sh(&self, line: &str) -> String {
        let output = self.output(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn nft(&self, script: &str) {
        let mut child = self.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{script}");
    }

    pub(crate) fn loader(&self) -> Command {
        self.command(LOADER)
    }

    /// Runs the loader and compares its exit status; the answer is all it printed.
    pub(crate) fn load(&self, args: &[&str], status: i32) -> String {
        let output = self.loader().args(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {text}");
        text
    }

    pub(crate) fn apply(&self, bundle: &Dir, starts: &str) -> String {
        let text = self.load(&["apply", bundle.path()], 0);
        assert!(text.starts_with(starts), "wanted {starts:?}: {text}");
        text
    }

    /// Where the loader's lock file is while there is one.
    pub(crate) fn lock_file(&self) -> PathBuf {
        let inode = self.sh("stat -L -c %i /proc/self/ns/net");
        PathBuf::from(format!("/run/netpol-loader.{}.lock", inode.trim()))
    }

    /// Our tables as the kernel has them; whatever does not parse fails the test. A listing that nft has taken while a
    /// transaction was at work may have an object twice: it is taken again.
    pub(crate) fn tables(&self) -> BTreeMap<Family, Table> {
        let mut ruleset = Ruleset::default();
        for family in [Family::Ip, Family::Ip6] {
            let list = || {
                let output = self.output(&format!("nft -p list table {family} netpolc"));
                let text = String::from_utf8(output.stdout).unwrap();
                nft::parse(&text).map_err(|error| format!("{error}\n{text}"))
            };
            let torn = |listed: &Result<Ruleset, String>| {
                listed
                    .as_ref()
                    .is_err_and(|why| why.lines().next().is_some_and(|l| l.ends_with("declared twice")))
            };
            let mut listed = list();
            for _ in 0..20 {
                if !torn(&listed) {
                    break;
                }
                listed = list();
            }
            ruleset.tables.extend(listed.unwrap_or_else(|why| panic!("{why}")).tables);
        }
        ruleset.tables
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A directory, deleted in the end.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        Path::new(&self.0).join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The script with the markers of its version.
pub(crate) fn marked(script: &str) -> String {
    let version = nft::digest(&nft::parse(script).unwrap());
    script.replace("version_0123456789abcdef", &nft::marker(version))
}

/// A bundle of a script that has the sample's marker, for a node with these pods.
pub(crate) fn bundle_with(script: &str, pods: &[(&str, &[&str])]) -> Dir {
    let pod = |(name, addresses): &(&str, &[&str])| LocalPod {
        name: (*name).to_owned(),
        addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
    };
    let bundle = Bundle::new(Parts {
        compiler: "0.1.0".into(),
        node: "node-1".into(),
        artifacts: Artifacts { nftables: Some(marked(script)), ..Artifacts::default() },
        bindings: Bindings { pods: pods.iter().map(pod).collect() },
        ..Parts::default()
    });
    let dir = Dir(std::env::temp_dir().join(unique()));
    std::fs::create_dir(&dir.0).unwrap();
    store::write(&dir.0, &bundle.unwrap()).unwrap();
    dir
}

pub(crate) fn bundle(script: &str) -> Dir {
    bundle_with(script, &[])
}

/// Three versions of a node's rules.
pub(crate) fn a() -> String {
    format!("{SHAPE}{SHAPE6}")
}

/// Other peers, so another set, another chain that uses it, and other maps that lead there; two are gone.
pub(crate) fn b() -> String {
    unnamed_b()
        .replace("ports_d00d", "ports_bbbb")
        .replace("ranges_beef", "ranges_bbbb")
        .replace("protos_f00d", "protos_bbbb")
}

/// The same, but some maps have the names that they have in A, in spite of their other content.
pub(crate) fn unnamed_b() -> String {
    a().replace("pods_5a5a", "pods_6b6b")
        .replace("from_5a5a", "from_6b6b")
        .replace("in_abcd", "in_bbbb")
        .replace("ingress_1234", "ingress_bbbb")
        .replace("10.0.0.7, 10.0.0.9", "10.0.0.8")
        .replace("\t\tmeta l4proto vmap @protos_f00d\n", "")
        .replace("\t\tmeta l4proto 6 th dport vmap @ranges_beef\n", "")
}

/// Only IPv4, another priority's neighbour, a larger isolated set.
pub(crate) fn c() -> String {
    SHAPE.replace("isolated_11aa22bb", "isolated_cc").replace("local_3f2a9c01", "local_cc").replace(
        "set isolated_cc {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 }",
        "set isolated_cc {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1, 10.0.0.2 }",
    )
}

/// What a fresh namespace has after this script.
pub(crate) fn fresh(script: &str) -> BTreeMap<Family, Table> {
    let netns = Netns::new();
    netns.apply(&bundle(script), "applied");
    netns.tables()
}
