//! Under eBPF: established connections are judged packet by packet until none is left that the version in force would not
//! let begin, and no longer.

use crate::audit::{SHORT, World, applied, connection, lives, status};
use crate::common::Netns;
use crate::daemon::{Daemon, dir, wait};
use crate::ebpf::{bpftool, pins};
use crate::lacking::{Lack, Lacking};
use crate::lan::{inside, meet, meets};
use crate::switch::bundles;
use netpol_loader::apply::apply_bundle;
use netpol_loader::cut::Established;
use netpol_loader::kernel::{Kernel, System};
use netpolc_bundle::{Backend, Bundle, store};
use std::net::TcpStream;

/// A node under eBPF whose client may reach the server, and a connection between them.
fn world() -> (World, [Bundle; 3]) {
    let world = World::new(Netns::new());
    meet(&world.client, &world.server, "10.1.0.2");
    meet(&world.open, &world.server, "10.1.0.2");
    (world, bundles(Backend::Ebpf))
}

fn opened(world: &World) -> [TcpStream; 2] {
    let mut ends = connection(&world.client, &world.server, "10.1.0.2");
    assert!(lives(&mut ends));
    ends
}

/// Makes the client's address a stranger's in the map, behind the loader's back, so that its packets are denied wherever they
/// are judged. Whether its connection lives on; new ones do not come about.
fn survives(world: &World, ends: &mut [TcpStream; 2]) -> bool {
    let client = "key hex 0a 01 00 01";
    bpftool(&format!("map delete pinned {} {client}", pins(&world.node).join("pods4").display()));
    assert_eq!(meets(&world.client, &world.server, "10.1.0.2", SHORT), None);
    lives(ends)
}

fn apply(world: &World, kernel: &mut (dyn Kernel + Send), bundle: &Bundle) -> (bool, String) {
    let done = inside(&world.node, || apply_bundle(kernel, bundle, Some(Backend::Ebpf), Established::Cut));
    let report = done.unwrap();
    (report.cut.is_some(), report.notes.join("; "))
}

#[test]
fn connections_are_judged_until_the_table_was_walked() {
    let (world, bundles) = world();
    let (walked, notes) = apply(&world, &mut System::new(), &bundles[0]);
    assert!(walked && !notes.contains("judged"), "{notes}");
    let mut ends = opened(&world);
    assert!(survives(&world, &mut ends), "it is not judged again");

    // The same where the table cannot be walked.
    let (world, bundles) = self::world();
    let (walked, notes) = apply(&world, &mut Lacking::new(Lack::Ctnetlink), &bundles[0]);
    assert!(!walked && notes.contains("packets of established connections are judged one by one"), "{notes}");
    let mut ends = opened(&world);
    assert!(!survives(&world, &mut ends), "each packet is judged");
}

/// Where conntrack knows no SCTP, that is said.
#[test]
fn a_kernel_without_sctp() {
    let (world, bundles) = world();
    let (_, notes) = apply(&world, &mut System::new(), &bundles[0]);
    assert!(!notes.contains("SCTP"), "{notes}");
    let (_, notes) = apply(&world, &mut Lacking::new(Lack::Sctp), &bundles[1]);
    assert!(notes.contains("conntrack does not know SCTP here"), "{notes}");
}

/// Applied again, a version that was walked for is not walked for again; one that was not is.
#[test]
fn a_walk_that_failed_is_made_good() {
    let (world, bundles) = world();
    assert!(!apply(&world, &mut Lacking::new(Lack::Ctnetlink), &bundles[0]).0);
    let mut ends = opened(&world);
    assert!(apply(&world, &mut System::new(), &bundles[0]).0);
    assert!(!apply(&world, &mut System::new(), &bundles[0]).0);
    let bundle = dir();
    store::write(&bundle.0, &bundles[0]).unwrap();
    let text = world.node.load(&["status", "--bundle", bundle.path()], 0);
    assert!(!text.contains("drift"), "{text}");
    assert!(survives(&world, &mut ends));
}

/// How often the daemon has settled.
fn settled(daemon: &Daemon) -> usize {
    daemon.log().matches("event=settled").count()
}

/// The daemon walks when nothing has come for two looks; a bundle after that ends what it denies all the same, at once.
#[test]
fn a_bundle_judges_again_what_was_settled() {
    let (world, bundles) = world();
    let daemon = Daemon::start(&world.node, &world.dir, &["--backend=ebpf"]);
    applied(&daemon, &bundles[0]);
    let mut denied = opened(&world);
    let mut allowed = connection(&world.server, &world.open, "10.1.0.3");
    wait("it is settled", || settled(&daemon) == 1);
    assert!(lives(&mut denied) && lives(&mut allowed));
    applied(&daemon, &bundles[1]);
    assert_eq!([lives(&mut denied), lives(&mut allowed)], [false, true], "{}", daemon.log());
    wait("it is settled again", || settled(&daemon) == 2);
    assert!(daemon.log().contains("cut 1 of "), "{}", daemon.log());
    assert_eq!([lives(&mut denied), lives(&mut allowed)], [false, true], "{}", daemon.log());
    let status = status(&daemon);
    assert_eq!((&status["in_force"], &status["daemon"]["repairs"]), (&true.into(), &0.into()), "{status}");
    assert!(!daemon.log().contains("fault"), "{}", daemon.log());
}

/// A loader that looks once an hour judges all the while.
#[test]
fn a_busy_daemon_judges_every_packet() {
    let (world, bundles) = world();
    let daemon = Daemon::start(&world.node, &world.dir, &["--backend=ebpf", "--interval=3600"]);
    applied(&daemon, &bundles[0]);
    let mut ends = opened(&world);
    assert_eq!(settled(&daemon), 0);
    assert!(!survives(&world, &mut ends));
}
