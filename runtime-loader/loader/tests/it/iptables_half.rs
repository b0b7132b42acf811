//! The backend iptables where there is no IPv6, or where it is switched off.

use crate::cluster::{a, b, compiled};
use crate::common::Netns;
use crate::iptables::{Variant, netns};
use netpol_loader::Error;
use netpol_loader::apply::{Outcome, Report, apply_bundle};
use netpol_loader::conntrack::{Connection, Tally};
use netpol_loader::cut::Established;
use netpol_loader::kernel::{Kernel, Step, System};
use netpol_loader::routes::Routes;
use netpol_loader::status::status_of;
use netpolc_bundle::nft::Family;
use netpolc_bundle::{Artifact, Backend, Bundle};
use nix::sched::{CloneFlags, setns};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;

/// The kernel, as it would be without IPv6.
struct Half(System);

impl Kernel for Half {
    fn lock(&mut self) -> Result<Option<String>, Error> {
        self.0.lock()
    }

    fn has(&mut self, program: &str) -> bool {
        self.0.has(program)
    }

    fn program(&mut self, name: &str, args: &[&str], input: &str) -> Result<String, Error> {
        if name.starts_with("ip6tables") {
            let complaint = "can't initialize ip6tables table: Address family not supported".to_owned();
            return Err(Error::Program { program: name.to_owned(), complaint });
        }
        self.0.program(name, args, input)
    }

    fn sequence(&mut self, steps: &[Step<'_>]) -> Result<(), Error> {
        assert!(!steps.iter().any(|step| step.program.starts_with("ip6tables")));
        self.0.sequence(steps)
    }

    fn proc_net(&mut self, file: &str) -> Option<String> {
        if file.contains('6') { None } else { self.0.proc_net(file) }
    }

    fn tables(&mut self) -> Result<BTreeSet<Family>, Error> {
        self.0.tables()
    }

    fn list(&mut self, family: Family) -> Result<String, Error> {
        self.0.list(family)
    }

    fn run(&mut self, script: &str) -> Result<(), Error> {
        self.0.run(script)
    }

    fn routes(&mut self) -> Result<Routes, Error> {
        self.0.routes()
    }

    fn own_addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        self.0.own_addresses()
    }

    fn cut(&mut self, families: &[Family], denied: &mut dyn FnMut(&Connection) -> bool) -> io::Result<Tally> {
        self.0.cut(families, denied)
    }
}

/// Runs a closure in a network namespace.
fn inside<R: Send>(netns: &Netns, work: impl FnOnce() -> R + Send) -> R {
    let namespace = File::open(format!("/run/netns/{}", netns.0)).unwrap();
    let enter = || setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            enter();
            work()
        });
        run.join().unwrap()
    })
}

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
            let mut half = Half(System::new());
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
        netns.sh(&format!("iptables-{word} -w -F NETPOLC-DENY"));
        inside(&netns, || {
            let mut half = Half(System::new());
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
