//! The backend iptables where there is no IPv6, or where it is switched off.

use crate::cluster::{self, a, b, compiled};
use crate::iptables::{Variant, netns};
use crate::lacking::{Lack, Lacking};
use crate::lan::inside;
use netpol_loader::apply::{Outcome, Report, apply_bundle};
use netpol_loader::cut::Established;
use netpol_loader::kernel::{Kernel, System};
use netpol_loader::status::status_of;
use netpolc_bundle::{Artifact, Backend, Bundle};

fn apply(kernel: &mut dyn Kernel, bundle: &Bundle) -> Report {
    apply_bundle(kernel, bundle, Some(Backend::Iptables), Established::Keep).unwrap()
}

#[test]
fn without_ipv6_the_other_half_is_enforced() {
    for variant in Variant::ALL {
        let netns = netns(variant);
        let bundle = compiled(&a());
        let read = bundle.read_back().unwrap();
        let version = bundle.manifest.artifacts[&Artifact::Iptables];
        inside(&netns, || {
            let mut half = Lacking::new(Lack::Ipv6);
            let report = apply(&mut half, &bundle);
            assert_eq!((report.outcome, report.version), (Outcome::Applied, version));
            assert!(report.notes.iter().any(|note| note.contains("for IPv4 alone")), "{:?}", report.notes);
            assert_eq!(apply(&mut half, &bundle).outcome, Outcome::Unchanged);
            let status = status_of(&mut half, &bundle, &read).unwrap();
            assert!(status.in_force && status.version == Some(version.to_string()), "{status}");
        });
        let word = variant.word();
        assert!(!netns.sh(&format!("ip6tables-{word}-save; ipset list -name")).contains("SET6"));
        // Drift of a half is seen too.
        netns.sh(&format!("iptables-{word} -w -F {}", cluster::denying()[0]));
        inside(&netns, || {
            let mut half = Lacking::new(Lack::Ipv6);
            assert!(!status_of(&mut half, &bundle, &read).unwrap().in_force);
            assert_eq!(apply(&mut half, &bundle).outcome, Outcome::Repaired);
            assert_eq!(apply(&mut half, &compiled(&b())).outcome, Outcome::Applied);
            assert_eq!(apply(&mut half, &bundle).outcome, Outcome::Applied);
        });
        // IPv6 comes, and the rules are made whole.
        let report = inside(&netns, || apply(&mut System::new(), &bundle));
        assert_eq!(report.outcome, Outcome::Applied);
        assert!(!netns.sh(&format!("iptables-{word}-save")).contains("NETPOLC-V4-"));
        assert!(netns.sh(&format!("ip6tables-{word}-save")).contains("NETPOLC-V-"));
        netns.load(&["status"], 0);
    }
}

/// Addresses can be had again at any time, so the rules are there.
#[test]
fn where_ipv6_is_switched_off_its_rules_are_loaded() {
    for variant in Variant::ALL {
        let netns = netns(variant);
        netns.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
        let report = inside(&netns, || apply(&mut System::new(), &compiled(&a())));
        assert!(!report.notes.iter().any(|note| note.contains("IPv4 alone")), "{:?}", report.notes);
        assert!(netns.sh(&format!("ip6tables-{}-save", variant.word())).contains("NETPOLC-V-"));
        netns.load(&["status"], 0);
    }
}
