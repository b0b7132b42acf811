//! A disk that is full, below what the loader writes down and below what the agent remembers, while policies change, pods
//! come and go, and both are killed: what is denied stays denied, the newest policies are in force, what could not be
//! written is said, and once there is space again all is as if nothing had been.

use crate::chaos::{Found, watch};
use crate::node::{Node, Sandbox};
use crate::objects;
use crate::rig::{Cluster, PATIENCE};
use crate::server::{PORTS, Port};
use netpolc_bundle::Backend;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What there is at most in either directory when nobody writes: a bundle, the link to it, and the node's network.
const ENTRIES: usize = 3;

/// A small file system of its own. It is mounted where only this test sees it, so nothing is left of it even if the test is
/// killed.
struct Small(PathBuf);

impl Small {
    fn mount(node: &Node, name: &str) -> Small {
        let dir = PathBuf::from(node.path(name));
        fs::create_dir_all(&dir).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m,mode=755", "small"]).arg(&dir));
        Small(dir)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        // The last page may have had room for less.
        while file.write_all(&[0]).is_ok() {}
    }

    fn entries(&self) -> usize {
        // The daemon holds a lock on an empty file there.
        fs::read_dir(&self.0).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != "lock").count()
    }

    fn empty(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// Mounts of this thread and what it starts are its own from now on.
fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    run(Command::new("mount").args(["--make-rprivate", "/"]));
}

fn until(what: &str, cluster: &Cluster, holds: impl Fn(&Node) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds(&cluster.nodes[0]) {
        assert!(Instant::now() < end, "waited in vain: {what}\n{}", cluster.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Who may reach the database: its node, and whom the policy names.
fn allowed(who: &'static [&'static str]) -> impl Fn(&str, &str, Port) -> bool {
    move |from: &str, to: &str, _: Port| to != "shop/db" || from == "n1" || who.contains(&from)
}

/// The first policy is about these, and what is written down when the disk is full is of then; a later one is about that.
const FIRST: &[&str] = &["shop/good", "shop/friend"];
const LAST: &[&str] = &["other/probe"];

fn ingress(peer: &Value) -> Value {
    objects::policy("db", "db", &json!({ "ingress": [{ "from": [peer] }] }))
}

fn restart(node: &mut Node, agent: bool) {
    node.kill_agent();
    node.kill_loader();
    node.start_loader();
    if agent {
        node.start_agent();
    }
}

fn check(backend: Backend) {
    own_mounts();
    let name = backend.to_string();
    let mut cluster = Cluster::without_daemons(1, "ptp", (&name, &name));
    let disks = ["state", "run"].map(|name| Small::mount(&cluster.nodes[0], name));
    cluster.nodes[0].start_loader();
    cluster.nodes[0].start_agent();
    let good = json!({ "podSelector": { "matchLabels": { "app": "good" } } });
    cluster.api.apply(ingress(&good));
    for (pod, app) in [
        ("shop/db", "db"),
        ("shop/good", "good"),
        ("shop/friend", "good"),
        ("shop/stranger", "stranger"),
        ("other/probe", "probe"),
    ] {
        cluster.start(pod, &json!({ "app": app }), 0);
    }
    cluster.agrees("space", &cluster.questions(&PORTS, &allowed(FIRST)));
    cluster.nodes[0].wrote_down(cluster.pod("other/probe").sandbox.addrs[0]);
    // What the newest bundle took the place of would leave space behind.
    until("the bundles before are removed", &cluster, |_| disks[0].entries() <= ENTRIES);

    let (stop, asked, found) = (AtomicBool::new(false), AtomicUsize::new(0), Found::default());
    let (netns, node) = (cluster.pod("shop/stranger").sandbox.netns.path(), cluster.nodes[0].netns.path());
    let db = cluster.pod("shop/db").sandbox.addrs.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&node, &netns, &db, false, &stop, &asked, &found));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| full(&mut cluster, &disks)));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let wrong = found.wrong.into_inner().unwrap();
    println!("{backend}: {} questions of the stranger, {} answered", asked.into_inner(), wrong.len());
    assert!(wrong.is_empty(), "{wrong:?}\n{}", cluster.logs());

    // As after a boot, without an agent, and full again: what was last written down comes into force. The control is what
    // passes in between, without rules of ours.
    disks.iter().for_each(Small::fill);
    cluster.nodes[0].kill_agent();
    cluster.nodes[0].kill_loader();
    cluster.nodes[0].loader(&["remove"]);
    cluster.agrees("control: no rules", &cluster.questions(&PORTS, &|_, _, _| true));
    restart(&mut cluster.nodes[0], false);
    cluster.agrees("after a boot", &cluster.questions(&PORTS, &allowed(LAST)));
}

/// Whether the loader that runs has tried to write something down, in vain.
fn could_not_write(node: &Node) -> bool {
    node.metric("netpolc_loader_store_failures_total").is_some_and(|failures| failures > 0.0)
}

/// What happens while there is no space, and until all is well again.
fn full(cluster: &mut Cluster, disks: &[Small]) {
    disks.iter().for_each(Small::fill);
    let nobody = json!({ "podSelector": { "matchLabels": { "app": "nobody" } } });
    cluster.api.apply(ingress(&nobody));
    cluster.agrees("policies on a full disk", &cluster.questions(&PORTS, &allowed(&[])));
    until("the loader says so", cluster, |node| {
        let said = |line: &str| {
            line.contains("event=fault part=store")
                && line.contains(&node.path("state/bundle"))
                && line.contains("No space left on device")
        };
        node.logs().lines().any(said)
    });
    until("the metric", cluster, could_not_write);

    // A pod that comes has to wait, and the runtime is told why.
    let node = &cluster.nodes[0];
    let labels = json!({ "app": "late" });
    cluster.api.apply(objects::pod("shop/late", "uid-of-late", &labels, &node.name, &[]));
    let late = Sandbox::new("shop/late", "uid-of-late");
    let refused = node.cni("ADD", &late).unwrap_err();
    let state = node.path("run/agent-state.json");
    assert!(refused.contains(&state) && refused.contains("No space left on device"), "{refused}");
    node.cni("DEL", &late).unwrap();
    cluster.api.delete(netpolc_standin::Resource::Pods, "shop", "late");
    until("the agent says so", cluster, |node| {
        node.logs().lines().any(|line| line.contains("cannot be written") && line.contains(&state))
    });
    // That one has ended can be remembered even now.
    cluster.end("shop/good");
    let sandbox_of_good = || fs::read_to_string(&state).unwrap().contains("\"pod\":\"shop/good\"");
    until("the end is written down", cluster, |_| !sandbox_of_good());

    // What is written down is older than what is in force, and does not take its place.
    restart(&mut cluster.nodes[0], false);
    cluster.agrees("without an agent", &cluster.questions(&PORTS, &allowed(&[])));
    until("the older bundle is passed over", cluster, |node| {
        node.logs().contains("event=bundle-not-resumed")
    });
    restart(&mut cluster.nodes[0], true);
    cluster.agrees("killed on a full disk", &cluster.questions(&PORTS, &allowed(&[])));
    let red = json!({ "namespaceSelector": { "matchLabels": { "team": "red" } } });
    cluster.api.apply(ingress(&red));
    cluster.agrees("newer policies", &cluster.questions(&PORTS, &allowed(LAST)));

    // This loader has not met the full disk as long as it has not tried to write.
    until("the metric again", cluster, could_not_write);
    disks.iter().for_each(Small::empty);
    until("the loader writes again", cluster, |node| node.logs().contains("event=mended part=store"));
    cluster.start("shop/late", &labels, 0);
    cluster.agrees("space again", &cluster.questions(&PORTS, &allowed(LAST)));
    cluster.nodes[0].wrote_down(cluster.pod("shop/late").sandbox.addrs[0]);
    let remembered = fs::read_to_string(&state).unwrap();
    assert!(remembered.contains("shop/late") && !remembered.contains("shop/good"), "{remembered}");
    until("nothing half written is left", cluster, |_| disks.iter().all(|disk| disk.entries() <= ENTRIES));
}

#[test]
fn full_disk_with_nftables() {
    check(Backend::Nftables);
}

#[test]
fn full_disk_with_iptables() {
    check(Backend::Iptables);
}

#[test]
fn full_disk_with_ebpf() {
    check(Backend::Ebpf);
}
