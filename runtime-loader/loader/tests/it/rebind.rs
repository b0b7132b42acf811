//! Addresses that come and go without a new bundle, with real packets, under each backend that can do it.

use crate::audit::{SHORT, World, applied, connection, lives, pod, status};
use crate::cluster;
use crate::common::{Dir, Netns};
use crate::daemon::{Daemon, dir, wait};
use crate::lan::{inside, meet, meets};
use netpolc_bundle::rebind::Rebind;
use netpolc_bundle::wire::{FromLoader, ToLoader};
use netpolc_bundle::{Artifact, Backend, Bundle, LocalPod, Version, store};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// Five looks of the daemon.
pub(crate) const LOOKS: Duration = Duration::from_secs(1);

/// The pods 1 to 3 are client, server and open. Only clients may reach the server.
pub(crate) fn bundle(backends: &[Backend]) -> Bundle {
    let policy = cluster::server("[{from: [{podSelector: {matchLabels: {app: client}}}]}]");
    cluster::compiled_for(&policy, backends)
}

/// The addresses of a pod.
pub(crate) fn addresses(n: u8) -> [IpAddr; 2] {
    [format!("10.1.0.{n}"), format!("fd00:1::{n}")].map(|text| text.parse().unwrap())
}

/// Whether one pod comes through to the one of this number, by each family.
pub(crate) fn passes(from: &Netns, to: (&Netns, u8)) -> [bool; 2] {
    addresses(to.1).map(|addr| meets(from, to.0, &addr.to_string(), SHORT).is_some())
}

/// Waits until it does: neighbours must find each other first.
pub(crate) fn reaches(from: &Netns, to: (&Netns, u8)) {
    for addr in addresses(to.1) {
        meet(from, to.0, &addr.to_string());
    }
}

/// Two pods that are not known yet, and what makes them known.
pub(crate) struct Comers {
    /// Like the client, with number 5.
    pub(crate) client: Netns,
    /// Like the server, with number 6.
    pub(crate) server: Netns,
}

impl Comers {
    pub(crate) fn new(world: &World) -> Comers {
        Comers { client: pod(&world.node, 5), server: pod(&world.node, 6) }
    }
}

/// The client goes, and one like it comes; so does another server.
pub(crate) fn change(artifact: Artifact, from: Version) -> Rebind {
    let like = [(5, 1), (6, 2)].map(|(new, known)| {
        let pairs = addresses(new).into_iter().zip(addresses(known));
        pairs.collect::<Vec<_>>()
    });
    let pod = |name: &str, addresses: Vec<IpAddr>| LocalPod { name: format!("shop/{name}"), addresses };
    Rebind {
        artifact,
        from,
        gone: addresses(1).to_vec(),
        like: like.concat(),
        pods: vec![
            pod("client", vec![]),
            pod("client-5", addresses(5).to_vec()),
            pod("server-6", addresses(6).to_vec()),
        ],
    }
}

/// A backend that can, and its artifact.
#[derive(Clone, Copy)]
pub(crate) struct Case(Backend, pub(crate) Artifact);

pub(crate) const NFTABLES: Case = Case(Backend::Nftables, Artifact::Nftables);
pub(crate) const EBPF: Case = Case(Backend::Ebpf, Artifact::Ebpf);

impl Case {
    pub(crate) fn start(self, world: &World, more: &[&str]) -> Daemon {
        let flag = format!("--backend={}", self.0);
        Daemon::start(&world.node, &world.dir, &[&[flag.as_str()], more].concat())
    }

    pub(crate) fn version(self, bundle: &Bundle) -> Version {
        bundle.manifest.artifacts[&self.1]
    }
}

pub(crate) fn changed(daemon: &Daemon, change: &Rebind) -> String {
    match daemon.ask(&ToLoader::Rebind(change.clone())) {
        FromLoader::Done { version: Some(version), .. } => version,
        other => panic!("{other:?}\n{}", daemon.log()),
    }
}

fn refused(daemon: &Daemon, change: &Rebind, part: &str) {
    let answer = daemon.ask(&ToLoader::Rebind(change.clone()));
    let FromLoader::Failed { message } = &answer else { panic!("{answer:?}") };
    assert!(message.contains(part), "{message}, wanted {part:?}");
}

/// That this version is in force, and has never been anything else that had to be repaired.
pub(crate) fn in_force(daemon: &Daemon, version: &str, repairs: u64) -> Value {
    let status = status(daemon);
    let log = daemon.log();
    assert_eq!((&status["in_force"], &status["version"]), (&true.into(), &version.into()), "{status}\n{log}");
    assert_eq!(status["drift"], Value::Array(vec![]), "{status}\n{log}");
    assert_eq!(status["daemon"]["repairs"], repairs, "{status}\n{log}");
    assert!(!log.contains("fault"), "{log}");
    status
}

/// That what is in the kernel is what a bundle says.
fn is_in_force(world: &World, bundle: &Bundle) {
    let dir: Dir = dir();
    store::write(&dir.0, bundle).unwrap();
    let text = world.node.load(&["status", "--bundle", dir.path()], 0);
    assert!(!text.contains("drift"), "{text}");
}

/// As it is with the bundle, and none of the new ones known.
fn as_before(world: &World, new: &Comers) {
    reaches(&world.client, (&world.server, 2));
    reaches(&new.client, (&world.open, 3));
    reaches(&world.open, (&new.server, 6));
    assert_eq!(passes(&new.client, (&world.server, 2)), [false; 2], "unknown");
}

/// As it is after the change.
pub(crate) fn as_changed(world: &World, new: &Comers) {
    reaches(&new.client, (&world.server, 2));
    reaches(&new.client, (&new.server, 6));
    assert_eq!(passes(&world.open, (&new.server, 6)), [false; 2], "isolated as the other server");
    assert_eq!(passes(&world.client, (&world.server, 2)), [false; 2], "gone");
    assert_eq!(passes(&world.open, (&world.server, 2)), [false; 2], "never allowed");
}

fn check_twins(case: Case) {
    let world = World::new(Netns::new());
    let new = Comers::new(&world);
    let daemon = case.start(&world, &[]);
    let bundle = bundle(&Backend::ALL);
    applied(&daemon, &bundle);
    as_before(&world, &new);
    let before = case.version(&bundle);
    let mut gone = connection(&world.client, &world.server, "10.1.0.2");
    let mut isolated = connection(&world.open, &new.server, "10.1.0.6");
    let mut others = connection(&world.server, &world.open, "10.1.0.3");
    for ends in [&mut gone, &mut isolated, &mut others] {
        assert!(lives(ends));
    }

    let change = change(case.1, before);
    let version = changed(&daemon, &change);
    let wanted = bundle.rebound(&change).unwrap();
    assert_eq!(version, case.version(&wanted).to_string());
    assert_ne!(version, before.to_string());
    let status = in_force(&daemon, &version, 0);
    let interfaces = status["dataplanes"][0]["interfaces"].as_array().unwrap();
    assert!(["v5", "v6"].iter().all(|name| interfaces.contains(&(*name).into())), "{status}");
    as_changed(&world, &new);
    assert_eq!([&mut gone, &mut isolated, &mut others].map(lives), [false, false, true]);
    // The daemon finds what it would have made of a bundle.
    std::thread::sleep(LOOKS);
    in_force(&daemon, &version, 0);
    is_in_force(&world, &wanted);
    as_changed(&world, &new);

    // There and back, from what is in force now.
    let back = Rebind {
        from: version.parse().unwrap(),
        gone: addresses(5).to_vec(),
        like: addresses(1).into_iter().zip(addresses(5)).collect(),
        pods: vec![
            LocalPod { name: "shop/client".into(), addresses: addresses(1).to_vec() },
            LocalPod { name: "shop/client-5".into(), addresses: vec![] },
        ],
        ..change
    };
    let again = changed(&daemon, &back);
    reaches(&world.client, (&world.server, 2));
    assert_eq!(passes(&new.client, (&world.server, 2)), [false; 2], "gone again");
    std::thread::sleep(LOOKS);
    in_force(&daemon, &again, 0);
    is_in_force(&world, &wanted.rebound(&back).unwrap());
    // A bundle takes its place as that of any other version.
    applied(&daemon, &bundle);
    in_force(&daemon, &before.to_string(), 0);
    as_before(&world, &new);
}

#[test]
fn new_pods_are_judged_as_their_twins_by_nftables() {
    check_twins(NFTABLES);
}

#[test]
fn new_pods_are_judged_as_their_twins_by_ebpf() {
    check_twins(EBPF);
}

/// Whether a datagram with this source comes from one pod to another.
fn sends(from: &Netns, source: IpAddr, to: (&Netns, IpAddr)) -> bool {
    let socket = inside(to.0, || UdpSocket::bind(SocketAddr::new(to.1, 0))).unwrap();
    socket.set_read_timeout(Some(SHORT)).unwrap();
    let sender = inside(from, || UdpSocket::bind(SocketAddr::new(source, 0))).unwrap();
    sender.send_to(b"x", socket.local_addr().unwrap()).unwrap();
    socket.recv(&mut [0; 8]).is_ok()
}

/// The client's interface leads to another address now, as that of a pod made anew does where its name follows from the
/// pod's. The address before is nobody's then, and the pod may not send from it.
fn check_renumbered(case: Case) {
    let world = World::new(Netns::new());
    let daemon = case.start(&world, &["--interval=60"]);
    let bundle = bundle(&Backend::ALL);
    applied(&daemon, &bundle);
    reaches(&world.client, (&world.open, 3));
    let (old, new, open) = (addresses(1), addresses(5), addresses(3));
    let from = |source: [IpAddr; 2]| {
        [0, 1].map(|family| sends(&world.client, source[family], (&world.open, open[family])))
    };
    assert_eq!(from(old), [true; 2]);
    world.client.sh("ip addr add 10.1.0.5/32 dev eth0 && ip addr add fd00:1::5/128 dev eth0 nodad");
    world.node.sh("ip route del 10.1.0.1 dev v1 && ip -6 route del fd00:1::1 dev v1 && \
         ip route add 10.1.0.5 dev v1 && ip -6 route add fd00:1::5 dev v1");
    let change = Rebind {
        artifact: case.1,
        from: case.version(&bundle),
        gone: old.to_vec(),
        like: new.into_iter().zip(old).collect(),
        pods: vec![LocalPod { name: "shop/client".into(), addresses: new.to_vec() }],
    };
    let version = changed(&daemon, &change);
    assert_eq!((from(old), from(new)), ([false; 2], [true; 2]));
    in_force(&daemon, &version, 0);
    // With a bundle the first address is the pod's again, and the second is nobody's.
    world.node.sh("ip route del 10.1.0.5 dev v1 && ip -6 route del fd00:1::5 dev v1 && \
         ip route add 10.1.0.1 dev v1 && ip -6 route add fd00:1::1 dev v1");
    applied(&daemon, &bundle);
    assert_eq!((from(old), from(new)), ([true; 2], [false; 2]));
    in_force(&daemon, &case.version(&bundle).to_string(), 0);
}

#[test]
fn a_pod_does_not_keep_its_predecessors_address_under_nftables() {
    check_renumbered(NFTABLES);
}

#[test]
fn a_pod_does_not_keep_its_predecessors_address_under_ebpf() {
    check_renumbered(EBPF);
}

fn check_refused(case: Case) {
    let world = World::new(Netns::new());
    let new = Comers::new(&world);
    let daemon = case.start(&world, &[]);
    let bundle = bundle(&Backend::ALL);
    let before = case.version(&bundle);
    let good = change(case.1, before);
    refused(&daemon, &good, "nothing is in force yet");
    applied(&daemon, &bundle);
    let other = case.version(&cluster::compiled_for(&cluster::c(), &[case.0]));
    let artifact = if case.1 == Artifact::Ebpf { Artifact::Nftables } else { Artifact::Ebpf };
    let control = LocalPod { name: "shop/\u{7}".into(), addresses: addresses(5).to_vec() };
    let bad = [
        (Rebind { from: other, ..good.clone() }, "is in force"),
        (Rebind { artifact, ..good.clone() }, "is in force"),
        (Rebind { like: [good.like.clone(), good.like.clone()].concat(), ..good.clone() }, "new twice"),
        (Rebind { like: vec![(addresses(3)[0], addresses(1)[0])], ..good.clone() }, "new and"),
        (Rebind { pods: vec![control], ..good.clone() }, "a pod's name that none can have"),
    ];
    for (change, part) in &bad {
        refused(&daemon, change, part);
        in_force(&daemon, &before.to_string(), 0);
        is_in_force(&world, &bundle);
    }
    as_before(&world, &new);
    std::thread::sleep(LOOKS);
    in_force(&daemon, &before.to_string(), 0);
    changed(&daemon, &good);
    refused(&daemon, &good, "is in force");
}

#[test]
fn what_nftables_cannot_change_stays_as_it_was() {
    check_refused(NFTABLES);
}

#[test]
fn what_ebpf_cannot_change_stays_as_it_was() {
    check_refused(EBPF);
}

#[test]
fn iptables_takes_a_bundle() {
    let world = World::new(Netns::new());
    let daemon = Case(Backend::Iptables, Artifact::Iptables).start(&world, &[]);
    let bundle = bundle(&Backend::ALL);
    applied(&daemon, &bundle);
    let before = status(&daemon)["version"].clone();
    for artifact in [Artifact::Iptables, Artifact::Nftables] {
        let change = change(artifact, bundle.manifest.artifacts[&artifact]);
        refused(&daemon, &change, "nothing is in force in which they could");
    }
    in_force(&daemon, before.as_str().unwrap(), 0);
}

#[test]
fn in_audit_mode_nothing_is_changed_so() {
    for case in [NFTABLES, EBPF] {
        let world = World::new(Netns::new());
        let daemon = case.start(&world, &["--audit"]);
        let bundle = bundle(&Backend::ALL);
        applied(&daemon, &bundle);
        let before = status(&daemon)["version"].as_str().unwrap().to_owned();
        for from in [before.parse().unwrap(), case.version(&bundle)] {
            refused(&daemon, &change(case.1, from), "in audit mode");
        }
        in_force(&daemon, &before, 0);
    }
}

fn check_killed(case: Case) {
    let world = World::new(Netns::new());
    let new = Comers::new(&world);
    let mut daemon = case.start(&world, &[]);
    let bundle = bundle(&Backend::ALL);
    applied(&daemon, &bundle);
    wait("a bundle on disk", || world.dir.file("state/bundle").exists());
    let change = change(case.1, case.version(&bundle));
    let version = changed(&daemon, &change);
    daemon.signal("KILL");
    as_changed(&world, &new);
    // What is written down is older than what is in force, and stays out of it.
    let mut daemon = case.start(&world, &[]);
    wait("a look at what is in force", || daemon.log().contains("event=bundle-not-resumed"));
    std::thread::sleep(LOOKS);
    in_force(&daemon, &version, 0);
    as_changed(&world, &new);
    let later = Rebind { from: version.parse().unwrap(), ..change };
    refused(&daemon, &later, "nothing is in force yet");
    applied(&daemon, &bundle);
    in_force(&daemon, &case.version(&bundle).to_string(), 0);
    as_before(&world, &new);
    // Its own bundle is resumed.
    wait("a bundle on disk", || world.dir.file("state/bundle").exists());
    daemon.signal("KILL");
    let daemon = case.start(&world, &[]);
    wait("resumed", || daemon.log().contains("event=resumed"));
    in_force(&daemon, &case.version(&bundle).to_string(), 0);
}

#[test]
fn a_successor_leaves_what_nftables_enforces() {
    check_killed(NFTABLES);
}

#[test]
fn a_successor_leaves_what_ebpf_enforces() {
    check_killed(EBPF);
}

fn check_repaired(case: Case, disturb: impl Fn(&World)) {
    let world = World::new(Netns::new());
    let new = Comers::new(&world);
    let daemon = case.start(&world, &[]);
    let bundle = bundle(&Backend::ALL);
    applied(&daemon, &bundle);
    let change = change(case.1, case.version(&bundle));
    let version = changed(&daemon, &change);
    for repairs in 1..=2 {
        // At first before the daemon has looked at what it changed.
        disturb(&world);
        wait("repair", || status(&daemon)["daemon"]["repairs"].as_u64() >= Some(repairs));
        in_force(&daemon, &version, repairs);
        is_in_force(&world, &bundle.rebound(&change).unwrap());
        as_changed(&world, &new);
    }
    // What another hand has disturbed can be changed no further, but by a bundle or once it is repaired.
    disturb(&world);
    let back = Rebind {
        from: version.parse().unwrap(),
        gone: addresses(5).to_vec(),
        like: vec![],
        pods: vec![LocalPod { name: "shop/client-5".into(), addresses: vec![] }],
        ..change
    };
    if let FromLoader::Done { .. } = daemon.ask(&ToLoader::Rebind(back)) {
        wait("no way", || passes(&new.client, (&world.server, 2)) == [false; 2]);
    }
    wait("a whole version", || status(&daemon)["in_force"] == true);
}

#[test]
fn what_another_hand_flushes_comes_back_with_the_new_addresses() {
    check_repaired(NFTABLES, |world| drop(world.node.sh("nft flush ruleset")));
}

#[test]
fn an_element_that_another_hand_deletes_comes_back() {
    check_repaired(NFTABLES, |world| {
        let table = world.node.sh("nft list table ip netpolc");
        let set = table.lines().find_map(|line| line.trim().strip_prefix("set isolated_"));
        let set = set.and_then(|rest| rest.split(' ').next()).unwrap_or_else(|| panic!("{table}"));
        world.node.sh(&format!("nft delete element ip netpolc isolated_{set} '{{ 10.1.0.6 }}'"));
    });
}

#[test]
fn programs_that_another_hand_removes_come_back_with_the_new_addresses() {
    check_repaired(EBPF, |world| drop(world.node.load(&["remove"], 0)));
}
