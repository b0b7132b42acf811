//! What is particular to the backend eBPF in the loader.

use crate::audit::{World, applied, status};
use crate::cluster;
use crate::common::{Dir, LOADER, Netns, unique};
use crate::daemon::{Daemon, wait};
use crate::lan::meet;
use crate::switch::{bundles, reach};
use netpolc_bundle::wire::{self, FromLoader};
use netpolc_bundle::{Artifacts, Backend, Bundle, EBPF_CUT, EBPF_KEEP, EBPF_MAPS, EbpfFiles, Parts, store};
use nix::sched::{CloneFlags, setns};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn bundle(policies: &str) -> Dir {
    let dir = Dir(std::env::temp_dir().join(unique()));
    std::fs::create_dir(&dir.0).unwrap();
    store::write(&dir.0, &cluster::compiled_for(policies, &Backend::ALL)).unwrap();
    dir
}

/// Where no bpf file system is and none may be mounted, nothing can be pinned: another backend is taken. So it is where one may be
/// mounted, but perhaps only where it ends with the loader, as in a service of systemd.
#[test]
fn without_a_bpf_file_system_another_backend_is_taken() {
    for lacking in ["-sys_admin,-sys_ptrace", "-sys_ptrace"] {
        another_backend_is_taken(lacking);
    }
}

fn another_backend_is_taken(lacking: &str) {
    let netns = Netns::new();
    netns.sh("ip link set lo up");
    let dir = bundle(&cluster::a());
    // `ip netns exec` gives a mount namespace of its own with a fresh `/sys`; what may be below `/run` is hidden. Without
    // CAP_SYS_PTRACE the file systems of other processes are out of reach.
    let apply = |backend: &str| {
        let line = format!(
            "mount -t tmpfs netpolc-t /run && exec setpriv --bounding-set {lacking} \
             --inh-caps {lacking} {LOADER} apply --backend {backend} {}",
            dir.path()
        );
        let output = netns.output(&line);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text)
    };
    let reason = "there is no bpf file system to pin programs in: mounting a bpf file system";
    let (status, text) = apply("auto");
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("backend nftables") && text.contains(&format!("not ebpf: {reason}")), "{text}");
    assert!(text.contains("a mount might end with this process"), "{text}");
    assert!(netns.load(&["status"], 0).contains("backend nftables"));
    // The one that was asked for by name is not replaced, and what is in force stays.
    let (status, text) = apply("ebpf");
    assert_eq!(status, Some(3), "{text}");
    assert!(text.contains(&format!("ebpf cannot be used here: {reason}")), "{text}");
    assert!(netns.load(&["status"], 0).contains("backend nftables"));
}

/// A kernel may take the program that it is asked with, and not what a version needs. Here it refuses maps, programs or links
/// because the process may have no more open files.
#[test]
fn what_the_kernel_refuses_another_backend_does() {
    let dir = bundle(&cluster::a());
    let mut outcomes = Vec::new();
    for files in 8..=64 {
        let netns = Netns::new();
        netns.sh("ip link set lo up");
        let apply = format!("prlimit --nofile={files} {LOADER} apply {} 2>&1", dir.path());
        let output = netns.output(&apply);
        let text = String::from_utf8(output.stdout).unwrap();
        if text.contains("error: ") && text.contains("nft: Too many") {
            // Too few even for nftables.
            continue;
        }
        let backend = if text.contains("not ebpf: the kernel refused") { "nftables" } else { "ebpf" };
        // It may have come into force and be too much to be read back, which is no reason to take it out again.
        let said =
            if output.status.success() { format!("backend {backend}") } else { "cannot be read".into() };
        assert!(text.contains(&said), "{files}: {text}");
        assert!(netns.load(&["status", "--bundle", dir.path()], 0).contains(&format!("backend {backend}")));
        netns.load(&["remove"], 0);
        outcomes.push(text);
        if output.status.success() && backend == "ebpf" {
            break;
        }
    }
    for outcome in ["map ", "the program", "a link", "cannot be read", "backend ebpf"] {
        assert!(outcomes.iter().any(|text| text.contains(outcome)), "{outcome}: {outcomes:?}");
    }
    // What was asked for by name is not replaced, and what is in force stays.
    let netns = Netns::new();
    netns.sh("ip link set lo up");
    let apply = format!("prlimit --nofile=12 {LOADER} apply --backend ebpf {} 2>&1", dir.path());
    let output = netns.output(&apply);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(3) && text.contains("the kernel refused"), "{text}");
    netns.load(&["apply", "--backend", "ebpf", dir.path()], 0);
    let other = bundle(&cluster::b());
    let apply = format!("prlimit --nofile=12 {LOADER} apply {} 2>&1", other.path());
    assert!(!netns.output(&apply).status.success());
    assert!(!netns.load(&["status", "--bundle", dir.path()], 0).contains("drift"));
    netns.load(&["remove"], 0);
}

/// An agent compiles for what the daemon says that it takes. What the kernel has refused it does not say again.
#[test]
fn what_the_kernel_has_refused_is_not_offered_again() {
    let world = World::new(Netns::new());
    let daemon = Daemon::start(&world.node, &world.dir, &[]);
    let usable = || status(&daemon)["daemon"]["backends"].to_string();
    assert!(usable().contains(r#""usable":["ebpf","nftables""#), "{}", usable());
    let limit = |files: &str| {
        let set = Command::new("prlimit").args(["--pid", &daemon.pid().to_string(), files]).status();
        assert!(set.unwrap().success());
    };
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let policies = cluster::a();
    let send = |backend| {
        let mut stream = daemon.connect();
        wire::send_bundle(&mut stream, &cluster::compiled_for(&policies, &[backend])).unwrap();
        wire::receive::<FromLoader>(&mut stream).unwrap().unwrap()
    };
    // Enough for a connection and the lock and for programs that are run, and not for all of the maps.
    let refused = (4..24).any(|more| {
        limit(&format!("--nofile={}:1024", open + more));
        let FromLoader::Failed { message } = send(Backend::Ebpf) else { panic!("it was taken") };
        assert!(message.contains("Too many open files"), "{message}");
        message.contains("not ebpf: the kernel refused")
    });
    assert!(refused, "{}", daemon.log());
    limit("--nofile=1024");
    let now = usable();
    assert!(now.contains(r#""usable":["nftables""#) && now.contains("the kernel refused"), "{now}");
    assert!(matches!(send(Backend::Nftables), FromLoader::Done { .. }), "{}", daemon.log());
    assert!(status(&daemon)["backend"] == "nftables", "{}", daemon.log());
}

/// The pins of the version in force in a network namespace.
pub(crate) fn pins(netns: &Netns) -> PathBuf {
    let namespace = std::fs::File::open(Path::new("/run/netns").join(&netns.0)).unwrap();
    let find = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        netpol_loader::ebpf::bpffs::find().unwrap().unwrap()
    };
    // A thread of its own, since it does not come back.
    let dir = std::thread::spawn(find).join().unwrap();
    let versions = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    versions.into_iter().find(|path| path.join("pods4").exists()).unwrap()
}

pub(crate) fn bpftool(arguments: &str) {
    let output = Command::new("bpftool").args(arguments.split_whitespace()).output();
    let output = output.unwrap_or_else(|error| panic!("bpftool (Debian package bpftool): {error}"));
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn drift_of_maps_is_shown_by_a_packet() {
    let netns = Netns::new();
    netns.sh("ip link set lo up");
    let dir = bundle(&cluster::a());
    netns.load(&["apply", "--backend", "ebpf", dir.path()], 0);
    let status = |status: i32| netns.load(&["status", "--bundle", dir.path()], status);
    assert!(!status(0).contains("drift"));
    let pins = pins(&netns);
    let map = |name: &str| pins.join(name).display().to_string();
    // The server is no longer known: nothing is denied to anybody.
    let server = "key hex 0a 01 00 02";
    bpftool(&format!("map delete pinned {} {server}", map("pods4")));
    let text = status(1);
    assert!(text.contains("the maps hold something else than they were filled with"), "{text}");
    let witness = text.lines().find(|line| line.starts_with("drift: e.g. ")).unwrap_or_default();
    assert!(
        witness.contains("-> 10.1.0.2 ")
            && witness.ends_with("the bundle denies it, the kernel lets it pass"),
        "{text}"
    );
    netns.load(&["apply", "--backend", "ebpf", dir.path()], 0);
    assert!(!status(0).contains("drift"));
    // The only row allows nothing any more.
    let pairs = self::pins(&netns).join("pairs").display().to_string();
    for index in 0..2 {
        bpftool(&format!("map update pinned {pairs} key {index} 0 0 0 value{}", " 0".repeat(16)));
    }
    let text = status(1);
    let witness = text.lines().find(|line| line.starts_with("drift: e.g. ")).unwrap_or_default();
    assert!(witness.ends_with(" 80/TCP: the bundle lets it pass, the kernel denies it"), "{text}");
    netns.load(&["remove"], 0);
}

/// A bundle of another version is compared too; of another program nothing is said but that it is one.
#[test]
fn drift_from_another_bundle_is_shown_by_a_packet_if_the_program_is_the_same() {
    let netns = Netns::new();
    netns.sh("ip link set lo up");
    netns.load(&["apply", "--backend", "ebpf", bundle(&cluster::a()).path()], 0);
    let text = netns.load(&["status", "--bundle", bundle(&cluster::c()).path()], 1);
    let witness = text.lines().find(|line| line.starts_with("drift: e.g. ")).unwrap_or_default();
    assert!(witness.ends_with(" 80/TCP: the bundle denies it, the kernel lets it pass"), "{text}");
    assert!(!text.contains("another program"), "{text}");
    let text = netns.load(&["status", "--bundle", patched(&cluster::a()).path()], 1);
    assert!(text.contains("another program than the bundle's is in force"), "{text}");
    assert!(!text.contains("e.g. "), "{text}");
    netns.load(&["remove"], 0);
}

/// The numbers of the programs that a daemon holds, other than for a moment while it looks.
fn held(daemon: &Daemon) -> BTreeSet<u64> {
    let now = || -> BTreeSet<u64> {
        let files = std::fs::read_dir(format!("/proc/{}/fdinfo", daemon.child.id())).unwrap();
        // Files come and go.
        let texts = files.flatten().filter_map(|file| std::fs::read_to_string(file.path()).ok());
        let number =
            |text: String| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
        texts.filter_map(number).collect()
    };
    let mut held = now();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(20));
        held = &held & &now();
    }
    held
}

/// The number of a pinned program of the version in force.
fn pinned(netns: &Netns, name: &str) -> Option<u64> {
    let pin = pins(netns).join(name).display().to_string();
    let output = Command::new("bpftool").args(["-j", "prog", "show", "pinned", &pin]).output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    shown["id"].as_u64()
}

/// The number of the program that the version in force began with.
fn in_force(netns: &Netns) -> u64 {
    pinned(netns, "program").unwrap()
}

/// While nobody waits, the daemon has a program verified for the next version, if its maps have the same shapes.
#[test]
fn the_next_version_finds_its_program_made() {
    let world = World::new(Netns::new());
    meet(&world.client, &world.server, "10.1.0.2");
    meet(&world.open, &world.server, "10.1.0.2");
    let bundles = bundles(Backend::Ebpf);
    let daemon = Daemon::start(&world.node, &world.dir, &["--backend=ebpf"]);
    // Looks open what is pinned again and again.
    let spare = || -> BTreeSet<u64> {
        let pinned = ["program", "settled"].into_iter().filter_map(|name| pinned(&world.node, name));
        &held(&daemon) - &pinned.collect()
    };
    let another = |before: &BTreeSet<u64>| {
        wait("another is made", || spare().difference(before).count() == 1);
        spare()
    };
    let mut made = BTreeSet::new();
    for (bundle, reached) in [(0, [true, false]), (1, [false, true]), (0, [true, false])] {
        applied(&daemon, &bundles[bundle]);
        let found = made.contains(&in_force(&world.node));
        assert!(made.is_empty() || found, "{made:?}\n{}", daemon.log());
        assert_eq!(reach(&world), reached);
        made = another(&made);
    }
    // There are fewer columns, so what is there does not fit, and is given up.
    applied(&daemon, &bundles[2]);
    assert!(!made.contains(&in_force(&world.node)));
    assert_eq!(reach(&world), [false, false]);
    assert!(another(&made).is_disjoint(&made));
    assert_eq!(status(&daemon)["in_force"], true);
}

/// Without that rule conntrack would be off in this namespace, and every reply would look like something that opens no connection.
#[test]
fn the_rule_that_keeps_conntrack_on_is_made_anew() {
    let world = World::new(Netns::new());
    let daemon = Daemon::start(&world.node, &world.dir, &["--backend=ebpf", "--interval=0.2"]);
    applied(&daemon, &bundles(Backend::Ebpf)[0]);
    let stands = || {
        let rules = ["ip", "ip6"].map(|family| {
            let listing = format!("nft list table {family} netpolc_conntrack 2>/dev/null || true");
            world.node.sh(&listing).contains("ct state new")
        });
        rules == [true, true]
    };
    for by in
        ["delete table ip netpolc_conntrack", "flush chain ip6 netpolc_conntrack inert", "flush ruleset"]
    {
        wait("it stands, and a look found nothing", || stands() && status(&daemon)["in_force"] == true);
        std::thread::sleep(Duration::from_millis(500));
        world.node.sh(&format!("nft {by}"));
        wait(by, stands);
    }
}

/// The kernel would take it: it ends and stays within its bounds, as would one that reads any memory of the kernel.
#[test]
fn a_program_that_is_none_of_ours_is_not_loaded() {
    let netns = Netns::new();
    netns.sh("ip link set lo up");
    netns.load(&["apply", "--backend", "ebpf", bundle(&cluster::a()).path()], 0);
    let before = netns.load(&["status"], 0);
    let text = netns.load(&["apply", patched(&cluster::a()).path()], 2);
    assert!(text.contains("is none that this loader knows"), "{text}");
    assert_eq!(netns.load(&["status"], 0), before);
    netns.load(&["remove"], 0);
}

/// A bundle whose programs say "drop" where they should say "accept".
fn patched(policies: &str) -> Dir {
    let dir = Dir(std::env::temp_dir().join(unique()));
    std::fs::create_dir(&dir.0).unwrap();
    store::write(&dir.0, &patched_bundle(policies)).unwrap();
    dir
}

fn patched_bundle(policies: &str) -> Bundle {
    let mut bundle = cluster::compiled_for(policies, &[Backend::Ebpf]);
    let mut artifacts = Artifacts::default();
    let patch = |name: &str, files: &BTreeMap<String, Vec<u8>>| {
        let (accept, drop) = ([0xb7, 0, 0, 0, 1, 0, 0, 0, 0x95], [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95]);
        let mut object = files[name].clone();
        let at = object.windows(9).position(|window| window == accept).unwrap();
        object[at..at + 9].copy_from_slice(&drop);
        object
    };
    let files = std::mem::take(&mut bundle.files);
    let maps = String::from_utf8(files[EBPF_MAPS].clone()).unwrap();
    artifacts.ebpf = Some(EbpfFiles { cut: patch(EBPF_CUT, &files), keep: patch(EBPF_KEEP, &files), maps });
    Bundle::new(Parts { compiler: "test".into(), node: "alpha".into(), artifacts, ..Parts::default() })
        .unwrap()
}
