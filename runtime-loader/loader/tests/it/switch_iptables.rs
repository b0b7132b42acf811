//! From one version of iptables rules to another by what differs between them, with both variants.

use crate::audit::{World, applied, status};
use crate::cluster;
use crate::common::Netns;
use crate::daemon::{Daemon, wait};
use crate::iptables::{Variant, netns};
use crate::lan::meet;
use crate::switch::{bundles, only_the_denied_ends, reach};
use netpolc_bundle::ipt::{self, Family};
use netpolc_bundle::{Backend, Bundle};
use std::collections::BTreeSet;

fn world(variant: Variant) -> (World, Daemon) {
    let world = World::new(netns(variant));
    let daemon = Daemon::start(&world.node, &world.dir, &["--backend=iptables", "--interval=3600"]);
    meet(&world.client, &world.server, "10.1.0.2");
    meet(&world.open, &world.server, "10.1.0.2");
    (world, daemon)
}

/// The rules of a bundle, as far as they are in the kernel: those of interfaces are not the bundle's.
fn differs(node: &Netns, variant: Variant, bundle: &Bundle) -> Vec<String> {
    let wanted = bundle.read_back().unwrap().iptables.unwrap();
    let seen = node.listing(variant).ruleset;
    netpol_loader::iptables::compare::differences(&wanted, &seen, &Family::ALL)
}

/// The rules that drop what comes from interfaces of pods.
fn interfaces(node: &Netns, variant: Variant) -> BTreeSet<String> {
    let text = node.sh(&format!("iptables-{}-save -t mangle | grep '^-A NETPOLC-PODIF'", variant.word()));
    text.lines().map(str::to_owned).collect()
}

/// Bundles in many orders, each from what the last has left. Only sets may be left over, until a look.
#[test]
fn bundles_take_turns() {
    let bundles = bundles(Backend::Iptables);
    for variant in Variant::ALL {
        let (world, daemon) = world(variant);
        applied(&daemon, &bundles[0]);
        let (first, sets) = (interfaces(&world.node, variant), world.node.sh("ipset list -name | sort"));
        assert!(first.len() >= 3, "{first:?}");
        let mut left = 0;
        for turn in [1, 2, 0, 2, 1, 0, 1, 0] {
            applied(&daemon, &bundles[turn]);
            let differences = differs(&world.node, variant, &bundles[turn]);
            left += differences.len();
            assert!(
                differences
                    .iter()
                    .all(|line| line.starts_with("set ") && line.ends_with("not in the bundle"))
            );
            assert_eq!(interfaces(&world.node, variant), first);
            assert_eq!(reach(&world), [turn == 0, turn == 1], "{variant:?}");
        }
        assert!(left > 0, "no set is left beside what is in force, so all was taken for a whole bundle");
        wait("leftovers are gone", || world.node.sh("ipset list -name | sort") == sets);
        assert_eq!(differs(&world.node, variant, &bundles[0]), Vec::<String>::new());
        let status = status(&daemon);
        let version = ipt::digest(bundles[0].read_back().unwrap().iptables.as_ref().unwrap()).to_string();
        assert_eq!((&status["in_force"], &status["version"]), (&true.into(), &version.into()), "{status}");
        assert_eq!(status["daemon"]["repairs"], 0, "{}", daemon.log());
        assert_eq!(reach(&world), [true, false]);
    }
}

/// What began under the old rules and would not begin under the new ones ends, and nothing else.
#[test]
fn connections_end_after_the_switch() {
    let bundles = bundles(Backend::Iptables);
    for variant in Variant::ALL {
        let (world, daemon) = world(variant);
        only_the_denied_ends(&world, &daemon, &bundles);
    }
}

/// Where chains are gone or changed, the next bundle is applied as a whole, or the next look finds it.
#[test]
fn what_another_hand_has_done_is_made_good() {
    let bundles = bundles(Backend::Iptables);
    for variant in Variant::ALL {
        let (world, daemon) = world(variant);
        let word = variant.word();
        applied(&daemon, &bundles[0]);
        wait("it was looked at", || status(&daemon)["in_force"] == true);
        world.node.sh(&format!(
            "iptables-{word} -w -F FORWARD; for c in $(iptables-{word}-save -t filter | grep -o '^:NETPOLC[^ ]*'); do \
             iptables-{word} -w -F ${{c#:}}; done; for c in $(iptables-{word}-save -t filter | grep -o '^:NETPOLC[^ ]*'); \
             do iptables-{word} -w -X ${{c#:}}; done"
        ));
        assert_eq!(reach(&world), [true, true], "no rules");
        applied(&daemon, &bundles[1]);
        wait("all of it is there again", || reach(&world) == [false, true]);
        wait("it was looked at", || differs(&world.node, variant, &bundles[1]).is_empty());

        applied(&daemon, &bundles[2]);
        world.node.sh(&format!("iptables-{word} -w -F {}", cluster::denying()[0]));
        assert_eq!(reach(&world), [true, true], "what is flushed denies nothing");
        // The chain is not among what changes.
        applied(&daemon, &bundles[0]);
        wait("it is repaired", || reach(&world) == [true, false]);
    }
}
