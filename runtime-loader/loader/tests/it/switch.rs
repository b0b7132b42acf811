//! From one version of nftables rules to another by what differs between them.

use crate::audit::{SHORT, World, applied, connection, lives, status};
use crate::cluster::{self, BLOCKS};
use crate::common::Netns;
use crate::daemon::{Daemon, wait};
use crate::lan::{crowd, inside, meet, meets};
use netpol_loader::nftables::compare::{differences, same_comments};
use netpol_loader::nftables::delta::{self, There};
use netpol_loader::nftables::observe::{Early, Observed, observe};
use netpol_loader::nftables::plan;
use netpolc_bundle::nft::{self, Family, Ruleset};
use netpolc_bundle::{Artifact, Backend, Bundle};
use netpolc_testkit::generate::{Options, generate};
use netpolc_testkit::pipeline::{compile, model};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// The scripts of all nodes of generated clusters.
fn scripts(seeds: u64) -> Vec<String> {
    let mut scripts = Vec::new();
    for seed in 0..seeds {
        let cluster = generate(seed, Options { buildable: true, ..Options::default() });
        let compiled = compile(model(&[("cluster.yaml", cluster.yaml())]).unwrap()).unwrap();
        let bundles = netpolc_testkit::bundles::build(&compiled, &[Backend::Nftables]).unwrap();
        scripts.extend(bundles.iter().map(|bundle| bundle.script().unwrap().to_owned()));
    }
    scripts
}

/// What nft lists of a table, object by object: it lists them in the order in which they were made.
fn objects(netns: &Netns, family: Family) -> BTreeSet<String> {
    let text = netns.sh(&format!("nft -s list table {family} netpolc"));
    let objects = text.split("\t}\n").map(|object| object.trim_start_matches('\n').to_owned());
    objects
        .map(|object| object.trim_start_matches(&format!("table {family} netpolc {{\n")).to_owned())
        .collect()
}

fn seen(netns: &Netns) -> Observed {
    inside(netns, || observe(&mut netpol_loader::kernel::System::new()).unwrap())
}

/// What was seen before the lock was taken does not count once anybody has changed any rules.
#[test]
fn what_was_seen_early_counts_until_a_transaction() {
    let netns = Netns::new();
    netns.sh("nft add table ip netpolc");
    let early = inside(&netns, || Early::look(&mut netpol_loader::kernel::System::new()).unwrap());
    let tables = || inside(&netns, || early.still().map(|seen| seen.tables.len()));
    assert_eq!(tables(), Some(1));
    netns.sh("nft list ruleset");
    assert_eq!(tables(), Some(1));
    netns.sh("nft add table ip another");
    assert_eq!(tables(), None);
}

/// The goal with what is left beside it.
fn union(goal: &Ruleset, left: &Ruleset) -> Ruleset {
    let mut union = goal.clone();
    for (family, table) in &mut union.tables {
        if let Some(left) = left.tables.get(family) {
            table.chains.extend(left.chains.clone());
            table.sets.extend(left.sets.clone());
        }
    }
    union
}

/// From each generated node's rules to the next one's. What nft lists is, word for word, what it lists where it has
/// loaded the script itself.
#[test]
fn what_is_told_is_what_nft_would_have_loaded() {
    let scripts = scripts(40);
    let netns = Netns::new();
    let (mut before, mut left, mut told) = (Ruleset::default(), Ruleset::default(), 0);
    for script in &scripts {
        let goal = nft::parse(script).unwrap();
        let version = nft::digest(&goal);
        let there = There { version: &before, left: &left };
        let batch = delta::switch(there, &goal);
        let other = Netns::new();
        other.nft(script);
        match batch {
            None => {
                netns.sh("nft flush ruleset");
                netns.nft(script);
                left = Ruleset::default();
            }
            Some(batch) => {
                told += 1;
                inside(&netns, || batch.commit().map(drop)).unwrap();
                left = there.left_by(&goal);
                let seen = seen(&netns).ruleset().unwrap();
                assert_eq!(differences(&union(&goal, &left), &seen), Vec::<String>::new());
            }
        }
        let observed = seen(&netns);
        assert_eq!(observed.in_force(), Some(version), "{:?}", observed.drift());
        assert!(same_comments(&goal, &observed));
        let clean = plan::clean(&goal, &observed);
        if told % 2 == 0 && !clean.is_empty() {
            // By what is told, and by the program, in turns.
            match plan::clean_batch(&goal, &observed).filter(|_| told % 4 == 0) {
                Some(batch) => inside(&netns, || batch.commit().map(drop)).unwrap(),
                None => netns.nft(&clean),
            }
            left = Ruleset::default();
        }
        let listed = goal.tables.keys().map(|family| (objects(&netns, *family), objects(&other, *family)));
        for (ours, nfts) in listed {
            let missing: Vec<&String> = nfts.difference(&ours).collect();
            assert!(missing.is_empty(), "{missing:#?}\n{ours:#?}");
        }
        before = goal;
    }
    // Nodes without IPv6 have one table less, and some have blocks as intervals.
    assert!(told * 2 > scripts.len(), "{told} of {}", scripts.len());
}

fn version(bundle: &Bundle) -> String {
    bundle.manifest.artifacts[&Artifact::Nftables].to_string()
}

/// Only the client may reach the server; only the open pod; nobody.
pub(crate) fn bundles(backend: Backend) -> [Bundle; 3] {
    let from =
        |app: &str| format!("[{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}, {BLOCKS}]}}]");
    [from("client"), from("open"), "[]".to_owned()]
        .map(|ingress| cluster::compiled_for(&cluster::server(&ingress), &[backend]))
}

/// Who reaches the server, of client and open pod.
pub(crate) fn reach(world: &World) -> [bool; 2] {
    [&world.client, &world.open].map(|from| meets(from, &world.server, "10.1.0.2", SHORT).is_some())
}

/// The chains and sets of our tables.
fn names(world: &World) -> BTreeSet<String> {
    let text = world.node.sh("nft list ruleset");
    let lines = text.lines().filter(|line| line.starts_with('\t') && line.ends_with('{'));
    lines.filter(|line| !line.starts_with("\t\t")).map(str::to_owned).collect()
}

/// That a bundle is in force, and never anything had to be repaired.
fn in_force(daemon: &Daemon, bundle: &Bundle) {
    let status = status(daemon);
    let (log, version) = (daemon.log(), version(bundle));
    assert_eq!((&status["in_force"], &status["version"]), (&true.into(), &version.into()), "{status}\n{log}");
    assert_eq!(status["drift"], Value::Array(vec![]), "{status}\n{log}");
    assert_eq!(status["daemon"]["repairs"], 0, "{status}\n{log}");
}

/// Bundles in many orders, each from what the last has left: what nobody uses stays until a look, and is used again.
#[test]
fn bundles_take_turns() {
    let world = World::new(Netns::new());
    let bundles = bundles(Backend::Nftables);
    let daemon = Daemon::start(&world.node, &world.dir, &["--backend=nftables", "--interval=3600"]);
    meet(&world.client, &world.server, "10.1.0.2");
    meet(&world.open, &world.server, "10.1.0.2");
    applied(&daemon, &bundles[0]);
    let first = names(&world);
    let mut most = 0;
    for turn in [1, 2, 0, 2, 1, 0, 1, 0] {
        applied(&daemon, &bundles[turn]);
        most = most.max(names(&world).len());
        in_force(&daemon, &bundles[turn]);
        assert_eq!(reach(&world), [turn == 0, turn == 1]);
    }
    assert!(most > first.len(), "something is left beside what is in force");
    // What was told is looked at within a second, and what is left goes.
    wait("leftovers are gone", || names(&world) == first);
    in_force(&daemon, &bundles[0]);
    assert_eq!(reach(&world), [true, false]);
}

/// What began under the old rules and would not begin under the new ones ends, and nothing else.
#[test]
fn connections_end_after_the_switch() {
    let world = World::new(Netns::new());
    let bundles = bundles(Backend::Nftables);
    let daemon = Daemon::start(&world.node, &world.dir, &["--backend=nftables", "--interval=3600"]);
    meet(&world.client, &world.server, "10.1.0.2");
    only_the_denied_ends(&world, &daemon, &bundles);
}

/// The first bundle lets the client reach the server, the second does not.
pub(crate) fn only_the_denied_ends(world: &World, daemon: &Daemon, bundles: &[Bundle]) {
    applied(daemon, &bundles[0]);
    let mut denied = connection(&world.client, &world.server, "10.1.0.2");
    let mut allowed = connection(&world.server, &world.open, "10.1.0.3");
    assert!(lives(&mut denied) && lives(&mut allowed));
    applied(daemon, &bundles[1]);
    wait("it is cut", || daemon.log().contains("cut 1 of "));
    assert_eq!([lives(&mut denied), lives(&mut allowed)], [false, true], "{}", daemon.log());
}

/// While a walk for one bundle lasts, the next one lets a connection begin: the walk must not end it.
#[test]
fn a_walk_judges_by_what_is_in_force() {
    let world = World::new(Netns::new());
    let bundles = bundles(Backend::Nftables);
    let daemon = Daemon::start(&world.node, &world.dir, &["--backend=nftables", "--interval=3600"]);
    meet(&world.client, &world.server, "10.1.0.2");
    applied(&daemon, &bundles[0]);
    crowd(&world.node, 50_000);
    // The last walk is over, and its rest.
    let rest = || std::thread::sleep(Duration::from_millis(500));
    for turn in 0..8 {
        rest();
        applied(&daemon, &bundles[1]);
        // The walk begins when packets are through that met the rules before, which is some milliseconds from now.
        std::thread::sleep(Duration::from_millis(5 * turn));
        applied(&daemon, &bundles[0]);
        let mut ends = connection(&world.client, &world.server, "10.1.0.2");
        rest();
        assert!(lives(&mut ends), "{}", daemon.log());
    }
    let mut ends = connection(&world.client, &world.server, "10.1.0.2");
    applied(&daemon, &bundles[1]);
    wait("it is cut", || !lives(&mut ends));
}

/// Where our table is gone, or something in it is not as it was left, the next bundle is applied as a whole, or the next
/// look finds it.
#[test]
fn what_another_hand_has_done_is_made_good() {
    let world = World::new(Netns::new());
    let bundles = bundles(Backend::Nftables);
    let daemon = Daemon::start(&world.node, &world.dir, &["--backend=nftables", "--interval=3600"]);
    meet(&world.open, &world.server, "10.1.0.2");
    applied(&daemon, &bundles[0]);
    wait("it was looked at", || status(&daemon)["in_force"] == true);
    world.node.sh("nft delete table ip netpolc");
    applied(&daemon, &bundles[1]);
    in_force(&daemon, &bundles[1]);
    assert_eq!(reach(&world), [false, true]);

    applied(&daemon, &bundles[2]);
    world.node.sh(&format!("nft flush chain ip netpolc {}", cluster::denying()[1]));
    assert_eq!(reach(&world), [true, true], "what is flushed denies nothing");
    // The chain is not among what changes.
    applied(&daemon, &bundles[0]);
    wait("it is repaired", || status(&daemon)["daemon"]["repairs"] == 1);
    assert_eq!(reach(&world), [true, false]);
}

/// The look within a second of a change is at nftables alone. What other backends would have is for the next whole look.
#[test]
fn what_other_backends_would_have_goes_at_a_whole_look() {
    let world = World::new(Netns::new());
    let bundles = bundles(Backend::Nftables);
    let daemon = Daemon::start(&world.node, &world.dir, &["--backend=nftables", "--interval=4"]);
    applied(&daemon, &bundles[0]);
    wait("it was looked at", || status(&daemon)["in_force"] == true);
    // Nothing of nftables has changed by that, so no look is due.
    world.node.sh("ipset create NETPOLC-SET4-left hash:ip");
    applied(&daemon, &bundles[1]);
    wait("the set is gone", || !world.node.sh("ipset list -name").contains("NETPOLC-SET4-left"));
    in_force(&daemon, &bundles[1]);
}
