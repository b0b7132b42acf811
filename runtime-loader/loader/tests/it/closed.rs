//! Addresses that come and go where the loader makes the node's network, and closes those that no pod has.

use crate::audit::{World, applied, connection, lives};
use crate::common::Netns;
use crate::daemon::{Daemon, wait};
use crate::lan::crowd;
use crate::rebind::{
    Case, Comers, EBPF, LOOKS, NFTABLES, addresses, as_changed, bundle, change, changed, in_force, passes,
    reaches,
};
use netpolc_bundle::rebind::Rebind;
use netpolc_bundle::wire::{FromLoader, Network, ToLoader};
use netpolc_bundle::{Backend, LocalPod, Version};
use std::fs;
use std::net::IpAddr;

/// A daemon that makes the network of a node with these ranges of pods.
fn start(case: Case, world: &World, ranges: &[&str]) -> Daemon {
    let (conf, bin) = (world.dir.file("conf"), world.dir.file("bin"));
    for dir in [&conf, &bin] {
        fs::create_dir(dir).unwrap();
    }
    for name in ["ptp", "host-local", "stub"] {
        fs::write(bin.join(name), "#!/bin/sh\n").unwrap();
    }
    let flags = [
        "--cni=ptp".to_owned(),
        format!("--cni-conf-dir={}", conf.display()),
        format!("--cni-bin-dir={}", bin.display()),
        format!("--cni-plugin={}", bin.join("stub").display()),
        format!("--ipam-dir={}", world.dir.file("ipam").display()),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let daemon = case.start(world, &flags);
    let ranges: Vec<String> = ranges.iter().map(|range| (*range).to_owned()).collect();
    let network = Network { pod_ranges: ranges.clone(), routes: vec![], cluster_ranges: ranges };
    let answer = daemon.ask(&ToLoader::Network(network));
    assert!(matches!(answer, FromLoader::Done { .. }), "{answer:?}");
    daemon
}

/// The tables of closed addresses, where the loader makes the node's network.
fn check_closed(case: Case) {
    let world = World::new(Netns::new());
    let new = Comers::new(&world);
    let daemon = start(case, &world, &["10.1.0.0/24", "fd00:1::/64"]);
    let bundle = bundle(&Backend::ALL);
    applied(&daemon, &bundle);
    reaches(&world.client, (&world.open, 3));
    assert_eq!(passes(&world.open, (&new.client, 5)), [false; 2], "closed");
    // The tables are made, and looked at, before anything is counted.
    std::thread::sleep(LOOKS);
    let made = || daemon.log().matches("netpolc_closed made").count();
    let before = made();

    let mut held = connection(&world.client, &world.server, "10.1.0.2");
    let change = change(case.1, case.version(&bundle));
    let version = changed(&daemon, &change);
    reaches(&world.open, (&new.client, 5));
    wait("connections of what is gone end", || !lives(&mut held));
    assert_eq!(passes(&world.client, (&world.open, 3)), [false; 2], "gone, so closed");
    as_changed(&world, &new);
    let known = |family: &str| world.node.sh(&format!("nft list set {family} netpolc_closed known"));
    for (family, gone, new) in [("ip", "10.1.0.1", "10.1.0.5"), ("ip6", "fd00:1::1", "fd00:1::5")] {
        let (known, [gone, new]) =
            (known(family), [gone, new].map(|addr| [format!("{addr},"), format!("{addr} ")]));
        let has = |addr: &[String; 2]| addr.iter().any(|addr| known.contains(addr));
        assert!(has(&new) && !has(&gone), "{known}");
    }
    std::thread::sleep(LOOKS);
    assert_eq!(made(), before, "{}", daemon.log());
    in_force(&daemon, &version, 0);
    let version = comes_again_at_once(case, &world, &daemon, &new, &version);
    // A look sees what another hand does.
    world.node.sh("nft delete element ip netpolc_closed known '{ 10.1.0.5 }'");
    wait("made anew", || made() > before);
    reaches(&world.open, (&new.client, 5));
    // Also if it does that before the look that follows a change.
    let before = made();
    let gone = Rebind {
        from: version.parse().unwrap(),
        gone: addresses(6).to_vec(),
        like: vec![],
        pods: vec![LocalPod { name: "shop/server-6".into(), addresses: vec![] }],
        ..change
    };
    changed(&daemon, &gone);
    world.node.sh("nft add element ip netpolc_closed known '{ 10.1.0.6 }'");
    wait("made anew", || made() > before);
    assert_eq!(passes(&world.open, (&new.server, 6)), [false; 2], "closed again");
}

/// A pod goes, and the next one has its address before all connections were looked at: it takes up none, and the look, which
/// goes on, ends none of its own. What is in force then.
fn comes_again_at_once(case: Case, world: &World, daemon: &Daemon, new: &Comers, version: &str) -> String {
    let server = |addresses: Vec<IpAddr>| vec![LocalPod { name: "shop/server-6".into(), addresses }];
    let mut taken = connection(&new.client, &new.server, "10.1.0.6");
    assert!(lives(&mut taken));
    crowd(&world.node, 50_000);
    let gone = Rebind {
        artifact: case.1,
        from: version.parse().unwrap(),
        gone: addresses(6).to_vec(),
        like: vec![],
        pods: server(vec![]),
    };
    let back = Rebind {
        artifact: case.1,
        from: changed(daemon, &gone).parse().unwrap(),
        gone: vec![],
        like: addresses(6).into_iter().zip(addresses(2)).collect(),
        pods: server(addresses(6).to_vec()),
    };
    let version = changed(daemon, &back);
    let mut own = connection(&new.client, &new.server, "10.1.0.6");
    assert!(!lives(&mut taken), "{}", daemon.log());
    std::thread::sleep(LOOKS);
    assert!(lives(&mut own), "{}", daemon.log());
    version
}

/// Addresses that are not of the node's ranges are never closed, so a walk has to end what they may no longer have.
fn check_open(case: Case) {
    let world = World::new(Netns::new());
    let daemon = start(case, &world, &["10.9.0.0/24"]);
    let bundle = bundle(&Backend::ALL);
    applied(&daemon, &bundle);
    reaches(&world.client, (&world.server, 2));
    let open = |addresses: Vec<IpAddr>| vec![LocalPod { name: "shop/open".into(), addresses }];
    let turn = |from: Version, known: u8| {
        let like = addresses(3).into_iter().zip(addresses(known)).collect();
        let pods = open(addresses(3).to_vec());
        let change = Rebind { artifact: case.1, from, gone: addresses(3).to_vec(), like, pods };
        changed(&daemon, &change).parse::<Version>().unwrap()
    };
    // It has a client's labels for a moment, and what it opened then does not outlive them.
    let version = turn(case.version(&bundle), 1);
    reaches(&world.open, (&world.server, 2));
    let mut while_it_might = connection(&world.open, &world.server, "10.1.0.2");
    assert!(lives(&mut while_it_might));
    let version = turn(version, 2);
    wait("what it opened ends", || !lives(&mut while_it_might));
    // The client goes, and comes to no other pod.
    let mut held = connection(&world.client, &world.server, "10.1.0.2");
    assert!(lives(&mut held));
    let pods = vec![LocalPod { name: "shop/client".into(), addresses: vec![] }];
    let gone = addresses(1).to_vec();
    changed(&daemon, &Rebind { artifact: case.1, from: version, gone, like: vec![], pods });
    wait("connections of what is gone end", || !lives(&mut held));
}

#[test]
fn connections_of_addresses_that_are_never_closed_end_with_nftables() {
    check_open(NFTABLES);
}

#[test]
fn connections_of_addresses_that_are_never_closed_end_with_ebpf() {
    check_open(EBPF);
}

#[test]
fn new_addresses_open_and_those_gone_close_with_nftables() {
    check_closed(NFTABLES);
}

#[test]
fn new_addresses_open_and_those_gone_close_with_ebpf() {
    check_closed(EBPF);
}
