//! Addresses of the node's ranges of pods that no bundle binds are closed: nothing is forwarded from them or to them.
//!
//! A pod has its address before anybody can know its policies: the plugin that gives it one is called before ours. What
//! the pod sends until its `ADD` has returned, and what is sent to it, is dropped here; so is what comes with an address
//! that no pod has any more. The rules of policies do not know such addresses and take them for hosts outside.
//!
//! By tables of nftables of our own, whatever enforces the policies. Packets between the node and its pods are not
//! forwarded, and so not concerned.

use super::cidr::Cidr;
use super::masquerade::{joined, of_families};
use super::own_tables::OwnTables;
use super::program;
use crate::{Error, generation};
use netpolc_bundle::nft::{Edit, Family, Key};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// The name of our tables.
pub const TABLE: &str = "netpolc_closed";

/// The set of the addresses that are open.
const KNOWN: &str = "known";

/// Which addresses are closed while no pod has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// In these ranges all are that no pod has.
    pub ranges: Vec<String>,
    /// Why others that the node may give out are open, or what is not known of them.
    pub not: Vec<String>,
}

impl fmt::Display for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = if self.ranges.is_empty() { "nowhere".to_owned() } else { self.ranges.join(", ") };
        write!(f, "closed {}{ranges}", if self.ranges.is_empty() { "" } else { "in " })?;
        self.not.iter().try_for_each(|why| write!(f, "; {why}"))
    }
}

/// Keeps addresses without a pod closed.
#[derive(Debug)]
pub struct Closed {
    tables: OwnTables,
    /// The ranges that the node gives out, once they are known.
    ranges: Option<Vec<Cidr>>,
    /// The addresses that have a pod whose policies are in force; `None` until a bundle is.
    known: Option<BTreeSet<IpAddr>>,
    /// Whether the kernel has nftables. Where it has not, an nft that is installed all the same would refuse, and with it
    /// every bundle.
    kernel: bool,
}

impl Default for Closed {
    fn default() -> Closed {
        let kernel = generation::current().is_ok();
        Closed { tables: OwnTables::new(TABLE), ranges: None, known: None, kernel }
    }
}

impl Closed {
    /// Opens these addresses and closes all others; gives those that were open before. For bundles that are in force.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn open(&mut self, known: BTreeSet<IpAddr>) -> Result<Vec<IpAddr>, Error> {
        if self.known.as_ref() == Some(&known) {
            return Ok(Vec::new());
        }
        let last = self.known.replace(known);
        let before = last.clone().unwrap_or_default();
        let ranges = self.ranges.as_deref().unwrap_or_default();
        let now = self.known.as_ref();
        let edited =
            now.is_some_and(|known| self.tables.edit(&edits(ranges, &before, known), &bodies(ranges, known)));
        if !edited && let Err(error) = self.converge() {
            // So that the next try does not take it for done.
            self.known = last;
            return Err(error);
        }
        let (ranges, now) = (self.ranges.as_deref().unwrap_or_default(), self.known.as_ref());
        let closed = |addr: &IpAddr| {
            now.is_none_or(|now| !now.contains(addr)) && ranges.iter().any(|range| range.has(*addr))
        };
        Ok(before.into_iter().filter(closed).collect())
    }

    /// These are the ranges now; what was done.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn close(&mut self, ranges: &[Cidr]) -> Result<Vec<String>, Error> {
        if self.ranges.as_deref() != Some(ranges) {
            self.ranges = Some(ranges.to_owned());
        }
        self.converge()
    }

    /// What a predecessor has closed stays so until it is known what that should be.
    fn converge(&mut self) -> Result<Vec<String>, Error> {
        let (Some(ranges), Some(known)) = (&self.ranges, &self.known) else { return Ok(Vec::new()) };
        let Some(nft) = self.nft() else { return Ok(Vec::new()) };
        self.tables.converge(&nft, &bodies(ranges, known))
    }

    fn nft(&self) -> Option<PathBuf> {
        program::find(&["nft"]).filter(|_| self.kernel)
    }

    /// Why nothing can be closed at all.
    pub fn unable(&self) -> Option<&'static str> {
        match self.nft() {
            Some(_) => None,
            None if self.kernel => Some("nft is not installed"),
            None => Some("this kernel has no nftables, or does not let it be used"),
        }
    }

    /// The ranges that are closed; `None` before the first bundle is in force.
    pub fn ranges(&self) -> Option<&[Cidr]> {
        self.known.as_ref().map(|_| self.ranges.as_deref().unwrap_or_default())
    }
}

/// What is in the tables.
pub fn bodies(pods: &[Cidr], known: &BTreeSet<IpAddr>) -> BTreeMap<&'static str, String> {
    let body = |(family, ranges): (&'static str, Vec<Cidr>)| {
        let kind = if family == "ip" { "ipv4_addr" } else { "ipv6_addr" };
        let known = known.iter().filter(|addr| addr.is_ipv4() == (family == "ip")).map(ToString::to_string);
        let known = known.collect::<Vec<_>>().join(", ");
        let elements =
            if known.is_empty() { String::new() } else { format!("\t\telements = {{ {known} }}\n") };
        let ranges = joined(&ranges);
        // What was judged when it began goes on without a look at addresses. Connections of an address that is given
        // back are ended by the daemon.
        let text = format!(
            "\tset {KNOWN} {{\n\t\ttype {kind}\n\t\tcomment \"pods whose policies are in force\"\n{elements}\t}}\n\
             \tchain forward {{\n\t\ttype filter hook forward priority -1; policy accept;\n\
             \t\tct state established,related accept\n\
             \t\t{family} saddr {{ {ranges} }} {family} saddr != @{KNOWN} counter drop\n\
             \t\t{family} daddr {{ {ranges} }} {family} daddr != @{KNOWN} counter drop\n\t}}\n"
        );
        (family, text)
    };
    of_families(pods).into_iter().map(body).collect()
}

/// What brings the sets from some addresses to others.
pub fn edits(pods: &[Cidr], before: &BTreeSet<IpAddr>, known: &BTreeSet<IpAddr>) -> Vec<Edit> {
    let families = of_families(pods);
    let edit = |addr: &IpAddr, comes: bool| {
        let (family, name, number) = match addr {
            IpAddr::V4(addr) => (Family::Ip, "ip", u128::from(u32::from(*addr))),
            IpAddr::V6(addr) => (Family::Ip6, "ip6", u128::from(*addr)),
        };
        let key = vec![Key::Addr(number, number)];
        // A family without a range has no table.
        families.contains_key(name).then(|| Edit { family, set: KNOWN.to_owned(), key, verdict: None, comes })
    };
    let gone = before.difference(known).filter_map(|addr| edit(addr, false));
    gone.chain(known.difference(before).filter_map(|addr| edit(addr, true))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_ranges_and_addresses() {
        let pods = ["10.244.1.0/24", "fd00:1::/64"].map(|text| Cidr::parse(text).unwrap());
        let known = BTreeSet::from(["10.244.1.7".parse().unwrap()]);
        let bodies = bodies(&pods, &known);
        let v4 = &bodies["ip"];
        assert!(v4.contains("ip saddr { 10.244.1.0/24 } ip saddr != @known"), "{v4}");
        assert!(v4.contains("elements = { 10.244.1.7 }"), "{v4}");
        let v6 = &bodies["ip6"];
        assert!(v6.contains("ip6 daddr { fd00:1::/64 } ip6 daddr != @known"), "{v6}");
        assert!(!v6.contains("elements"), "{v6}");
        assert!(super::bodies(&[], &known).is_empty());
    }
}
