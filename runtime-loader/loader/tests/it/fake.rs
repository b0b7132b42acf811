//! What the real kernel does not do on demand: a kernel that lists something else than it was given.

use crate::common::{a, b, bundle, marked};
use netpol_loader::Error;
use netpol_loader::apply::{Outcome, Report};
use netpol_loader::conntrack::{Connection, Denied, Tally};
use netpol_loader::cut::Established;
use netpol_loader::kernel::Kernel;
use netpol_loader::routes::Routes;
use netpolc_bundle::Backend;
use netpolc_bundle::nft::Family;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// The address of the node.
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Each look at the kernel gives the next listing of the table `ip`; the last one stays.
struct Fake {
    listings: VecDeque<String>,
    /// The answers to scripts, by what a script contains.
    refuses: &'static str,
    scripts: Vec<String>,
    /// The kernel's connections; without any, it has no table of them.
    connections: Vec<Connection>,
    /// Those that were cut.
    cut: Vec<Connection>,
}

impl Fake {
    fn new(listings: &[&str], refuses: &'static str) -> Fake {
        Fake {
            listings: listings.iter().map(|text| (*text).to_owned()).collect(),
            refuses,
            scripts: Vec::new(),
            connections: Vec::new(),
            cut: Vec::new(),
        }
    }
}

impl Kernel for Fake {
    fn lock(&mut self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    fn has(&mut self, program: &str) -> bool {
        program == "nft"
    }

    fn program(&mut self, name: &str, _: &[&str], _: &str) -> Result<String, Error> {
        Err(Error::NoProgram { program: name.to_owned(), dirs: String::new() })
    }

    fn tables(&mut self) -> Result<BTreeSet<Family>, Error> {
        let empty = self.listings.front().is_none_or(String::is_empty);
        if empty && self.listings.len() > 1 {
            self.listings.pop_front();
        }
        Ok(if empty { BTreeSet::new() } else { BTreeSet::from([Family::Ip]) })
    }

    fn list(&mut self, _: Family) -> Result<String, Error> {
        let text = self.listings.front().cloned().unwrap_or_default();
        if self.listings.len() > 1 {
            self.listings.pop_front();
        }
        if text == GONE { Err(Error::Nft("no such table".into())) } else { Ok(text) }
    }

    fn run(&mut self, script: &str) -> Result<(), Error> {
        self.scripts.push(script.to_owned());
        if script.contains(self.refuses) { Err(Error::Nft("refused".into())) } else { Ok(()) }
    }

    fn routes(&mut self) -> Result<Routes, Error> {
        Ok(Routes::new())
    }

    fn own_addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        Ok(BTreeSet::from([NODE.into()]))
    }

    fn cut(&mut self, denied: &mut Denied<'_>) -> io::Result<Tally> {
        if self.connections.is_empty() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let verdicts = denied(&self.connections)?;
        let denied = self.connections.iter().zip(verdicts).filter(|(_, denied)| *denied);
        self.cut = denied.map(|(connection, _)| *connection).collect();
        Ok(Tally { seen: self.connections.len() as u64, cut: self.cut.len() as u64, ..Tally::default() })
    }
}

/// The sample for IPv4 alone, as a listing would have it.
fn listing(script: &str) -> String {
    let end = script.find(
        "#!/usr/sbin/nft -f\n# netpolc 1: node node-1\n# (free comment lines start with #)\n\ntable ip6",
    );
    marked(&script[..end.unwrap()])
}

fn ip_only(script: &str) -> String {
    script[..script.rfind("#!/usr/sbin/nft").unwrap()].to_owned()
}

fn apply(kernel: &mut Fake, dir: &Path) -> Result<Report, Error> {
    netpol_loader::apply::apply(kernel, dir, Some(Backend::Nftables), Established::Cut)
}

const NEVER: &str = "no script contains this";

/// A listing of a table that another hand has deleted since the kernel was asked which tables there are.
const GONE: &str = "gone";

/// While another one's transactions fail, a listing may have a chain twice, and the next one may have it again.
#[test]
fn listings_that_are_torn_alike_are_no_drift() {
    let whole = listing(&a());
    let chain = &whole[whole.find("\tchain deny_c0c0 {").unwrap()..];
    let chain = &chain[..chain.find("\t}\n").unwrap() + 3];
    let torn = whole.replacen(chain, &format!("{chain}{chain}"), 1);
    let mut kernel = Fake::new(&[&torn, &torn, &torn, &torn, &whole], NEVER);
    let report = apply(&mut kernel, &bundle(&ip_only(&a())).0).unwrap();
    assert_eq!((report.outcome, kernel.scripts.len()), (Outcome::Unchanged, 0));
    // What is otherwise every time was changed, whether or not listings are torn beside it.
    let other = torn.replacen("17 . 53 : return", "17 . 53 : accept", 1);
    let mut kernel = Fake::new(&[&torn, &other, &other.replacen(chain, "", 1)], NEVER);
    assert!(apply(&mut kernel, &bundle(&ip_only(&a())).0).is_err());
    assert!(!kernel.scripts.is_empty());
}

#[test]
fn a_table_that_goes_while_it_is_looked_at() {
    let mut kernel = Fake::new(&[GONE, "", &listing(&a())], NEVER);
    let report = apply(&mut kernel, &bundle(&ip_only(&a())).0).unwrap();
    assert_eq!((report.outcome, kernel.scripts.len()), (Outcome::Applied, 1));
    // One that is still there and cannot be listed is a fault.
    let mut kernel = Fake::new(&[GONE, &listing(&a())], NEVER);
    assert!(matches!(apply(&mut kernel, &bundle(&ip_only(&a())).0), Err(Error::Nft(_))));
}

#[test]
fn a_kernel_that_holds_something_else() {
    let (old, new) = (listing(&a()), listing(&b()));
    let wrong = new.replace("17 . 53 : return", "17 . 53 : accept");
    let dir = bundle(&ip_only(&b()));
    // Both the switch and the tables made anew come out wrong: back to what was there.
    let mut kernel = Fake::new(&[&old, &wrong], NEVER);
    let error = apply(&mut kernel, &dir.0).unwrap_err();
    assert!(matches!(error, Error::Restored(_)), "{error}");
    assert_eq!(error.exit_code(), 70);
    let last = kernel.scripts.last().unwrap();
    assert!(kernel.scripts.len() == 3 && last == &format!("delete table ip netpolc\n{old}\n"), "{last}");
    // Nothing sound to go back to.
    let mut kernel = Fake::new(&["", &wrong], NEVER);
    let error = apply(&mut kernel, &dir.0).unwrap_err();
    assert!(matches!(error, Error::NotConfirmed(_)), "{error}");
}

#[test]
fn leftovers_that_cannot_be_deleted_are_a_note() {
    let (old, new) = (listing(&a()), listing(&b()));
    let both = new.replacen("\tset podif", "\tset leftover {\n\t\ttype ipv4_addr\n\t}\n\tset podif", 1);
    let mut kernel = Fake::new(&[&old, &both], "delete set ip netpolc leftover");
    let report = apply(&mut kernel, &bundle(&ip_only(&b())).0).unwrap();
    assert_eq!(report.outcome, Outcome::Applied);
    assert!(report.notes.iter().any(|note| note.contains("leftovers")), "{:?}", report.notes);
    assert_eq!(kernel.scripts.len(), 2);
}

#[test]
fn a_refused_script_is_not_tried_again() {
    let mut kernel = Fake::new(&[&listing(&a())], "chain in_bbbb");
    let error = apply(&mut kernel, &bundle(&ip_only(&b())).0).unwrap_err();
    assert_eq!((error.exit_code(), kernel.scripts.len()), (3, 1));
}

fn connection(text: &str) -> Connection {
    let words: Vec<&str> = text.split(' ').collect();
    let [source, destination, protocol, port] = words[..] else { panic!("{text}") };
    Connection {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: protocol.parse().unwrap(),
        port: port.parse().unwrap(),
    }
}

/// Rules in force already are no reason to leave connections alone: whoever applied them may have been killed.
#[test]
fn connections_are_judged_by_the_rules() {
    let denied = [
        "10.0.0.8 10.0.0.1 6 80",
        "10.0.0.1 10.0.0.7 6 80",
        "10.0.0.8 10.0.0.1 1 0",
        "10.0.0.8 10.0.0.1 132 53",
    ];
    let allowed = [
        "10.0.0.7 10.0.0.1 6 80",
        "10.0.0.7 10.0.0.1 6 81",
        "10.0.0.8 10.0.0.1 17 53",
        "10.0.0.1 10.0.0.1 6 99",
        "10.0.0.8 10.0.0.2 6 99",
        "10.0.0.8 10.0.0.9 6 99",
        "192.0.2.1 10.0.0.1 6 99",
        "10.0.0.1 192.0.2.1 6 99",
        // There is no table for this family.
        "fd00::8 fd00::1 6 99",
    ];
    for before in [listing(&b()), listing(&a())] {
        let mut kernel = Fake::new(&[&before, &listing(&a())], NEVER);
        kernel.connections = denied.iter().chain(&allowed).map(|text| connection(text)).collect();
        let report = apply(&mut kernel, &bundle(&ip_only(&a())).0).unwrap();
        assert_eq!(kernel.cut, denied.map(connection));
        assert!(report.to_string().contains(", cut 4 of 13 connections in "), "{report}");
        assert!(!report.notes.iter().any(|note| note.contains("connections")), "{:?}", report.notes);
        let keep = {
            let dir = bundle(&ip_only(&a()));
            netpol_loader::apply::apply(&mut kernel, &dir.0, Some(Backend::Nftables), Established::Keep)
        };
        assert_eq!(keep.unwrap().cut, None);
    }
}

#[test]
fn connections_that_cannot_be_cut_are_a_note() {
    let mut kernel = Fake::new(&["", &listing(&a())], NEVER);
    let report = apply(&mut kernel, &bundle(&ip_only(&a())).0).unwrap();
    assert_eq!((report.outcome, report.cut), (Outcome::Applied, None));
    assert!(report.notes.iter().any(|note| note.contains("live on")), "{:?}", report.notes);
}
