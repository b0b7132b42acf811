//! What the real kernel does not do on demand: a kernel that lists something else than it was given.

use crate::common::{a, b, bundle, marked};
use netpol_loader::Error;
use netpol_loader::apply::{Outcome, apply};
use netpol_loader::kernel::Kernel;
use netpol_loader::routes::Routes;
use netpolc_bundle::nft::Family;
use std::collections::{BTreeSet, VecDeque};

/// Each look at the kernel gives the next listing of the table `ip`; the last one stays.
struct Fake {
    listings: VecDeque<String>,
    /// The answers to scripts, by what a script contains.
    refuses: &'static str,
    scripts: Vec<String>,
}

impl Fake {
    fn new(listings: &[&str], refuses: &'static str) -> Fake {
        Fake {
            listings: listings.iter().map(|text| (*text).to_owned()).collect(),
            refuses,
            scripts: Vec::new(),
        }
    }
}

impl Kernel for Fake {
    fn lock(&mut self) -> Result<Option<String>, Error> {
        Ok(None)
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
        Ok(text)
    }

    fn run(&mut self, script: &str) -> Result<(), Error> {
        self.scripts.push(script.to_owned());
        if script.contains(self.refuses) { Err(Error::Nft("refused".into())) } else { Ok(()) }
    }

    fn routes(&mut self) -> Result<Routes, Error> {
        Ok(Routes::new())
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

const NEVER: &str = "no script contains this";

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
