//! The verifier: what every unit and every matrix must satisfy before anything may rely on it.
//!
//! A unit:
//!
//! - **U1** every id that is mentioned is defined.
//! - **U2** the class list of a set ascends strictly.
//! - **U3** the subject of a rule or isolation is a set without blocks.
//! - **U4** a span of ports has `lo <= hi`.
//! - **U5** no address belongs to two endpoints, to two nodes, or to an endpoint and a node, or twice to one.
//! - **U6** no class straddles blocks: all addresses that endpoints have in a class, of either family, are in the blocks of
//!   the same sets. (An address is in the blocks of a set if one of them has it and does not except it.) So one address
//!   speaks for its class; a class with an IPv4 and an IPv6 address needs sets that treat the two alike.
//! - **U7** rules of the NetworkPolicy tier accept, and have order 0.
//! - **U8** rules of one tier, direction and order have one action.
//! - **U9** what a block excepts is of the block's family.
//! - **U10** lists of origins ascend strictly.
//! - **U11** names of nodes, classes and endpoints have no control characters.
//! - **U12** nodes and endpoints are sorted by name, and names differ.
//! - **U13** the addresses of a node ascend strictly.
//!
//! A matrix:
//!
//! - **M1** every id that is mentioned is defined.
//! - **M2** the cells of a transport cover the ports 0 to 65535 in order without gaps.
//! - **M3** neighbouring cells differ in their peers.
//! - **M4** the first set of peers is empty, the second is everybody.
//! - **M5** no two sets of peers are equal.
//! - **M6** a set of peers ranges over exactly the classes of the matrix.
//! - **M7** lists of origins ascend strictly.
//! - **M8** the cell for protocols without ports is `0..=0`.
//! - **M9** no two profiles are equal, and one that allows everything has origins (without any, `None` says it).
//! - **M10** no address belongs to two endpoints or nodes, as U5.
//!
//! Cost: linear in the unit but for sorting addresses and, for U6, `sets with distinct blocks x stretches of address
//! space between their boundaries that have endpoints`, of which a set pays for its inside or its outside, whichever is
//! less.

mod matrix;
pub(crate) mod stretches;

pub use matrix::verify_matrix;

use crate::addr::{AddrSet, Block};
use crate::unit::*;
use cranelift_entity::PrimaryMap;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::Deref;
use stretches::Stretches;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {message}")]
pub struct Violation {
    /// `U1`, `M1` and so on, as the module's documentation numbers them.
    pub invariant: &'static str,
    /// What is wrong and where.
    pub message: String,
}

/// At most so many violations are reported; a broken unit can have as many as it has parts.
pub const MAX_VIOLATIONS: usize = 100;

/// A unit that satisfies U1 to U13. [`verify`] alone makes one; it cannot be changed without giving that up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified(Unit);

impl Verified {
    /// The unit, free to be changed and no longer known to be valid.
    pub fn into_inner(self) -> Unit {
        self.0
    }
}

impl Deref for Verified {
    type Target = Unit;

    fn deref(&self) -> &Unit {
        &self.0
    }
}

/// Checks a unit.
///
/// # Errors
///
/// All violations, up to [`MAX_VIOLATIONS`]. If an id is undefined (U1), nothing else is looked at.
pub fn verify(unit: Unit) -> Result<Verified, Vec<Violation>> {
    let mut found = Found::default();
    ids(&unit, &mut found);
    if found.0.is_empty() {
        sets(&unit, &mut found);
        rules(&unit, &mut found);
        names(&unit, &mut found);
        addresses("U5", &unit.endpoints, &unit.hosts, &mut found);
        straddling(&unit, &mut found);
    }
    if found.0.is_empty() { Ok(Verified(unit)) } else { Err(found.0) }
}

#[derive(Default)]
struct Found(Vec<Violation>);

impl Found {
    /// Notes a violation unless `ok`.
    fn check(&mut self, ok: bool, invariant: &'static str, message: impl FnOnce() -> String) {
        if !ok && self.0.len() < MAX_VIOLATIONS {
            self.0.push(Violation { invariant, message: message() });
        }
    }
}

fn ids(unit: &Unit, found: &mut Found) {
    fn missing(place: impl Display, id: impl Display) -> String {
        format!("{place} names {id}, which is not defined")
    }
    for (endpoint, data) in unit.endpoints.iter() {
        found.check(unit.hosts.is_valid(data.host), "U1", || missing(endpoint, data.host));
        for &(_, class) in &data.addrs {
            found.check(unit.classes.is_valid(class), "U1", || missing(endpoint, class));
        }
    }
    for (set, data) in unit.sets.iter() {
        for &class in &data.classes {
            found.check(unit.classes.is_valid(class), "U1", || missing(set, class));
        }
    }
    for isolation in &unit.isolations {
        found.check(unit.sets.is_valid(isolation.subject), "U1", || {
            missing("an isolation", isolation.subject)
        });
    }
    for (rule, data) in unit.rules.iter() {
        found.check(unit.sets.is_valid(data.subject), "U1", || missing(rule, data.subject));
        found.check(unit.sets.is_valid(data.peers), "U1", || missing(rule, data.peers));
        found.check(unit.ports.is_valid(data.ports), "U1", || missing(rule, data.ports));
    }
}

fn sets(unit: &Unit, found: &mut Found) {
    for (set, data) in unit.sets.iter() {
        found.check(ascends(&data.classes), "U2", || {
            format!("the classes of {set} are not sorted and unique")
        });
        for Block { cidr, except } in &data.blocks {
            let same = except.iter().all(|e| e.family() == cidr.family());
            found.check(same, "U9", || format!("the block {cidr} of {set} excepts another family"));
        }
    }
    for (ports, data) in unit.ports.iter() {
        for span in data {
            let ok = !matches!(span, crate::ports::PortSpan::Ports { lo, hi, .. } if lo > hi);
            found.check(ok, "U4", || format!("{ports} has the empty span {span}"));
        }
    }
}

fn rules(unit: &Unit, found: &mut Found) {
    let blockless = |set: Set| unit.sets[set].blocks.is_empty();
    for Isolation { subject, origins, .. } in &unit.isolations {
        found.check(blockless(*subject), "U3", || format!("{subject}, which is isolated, has blocks"));
        found.check(ascends(origins), "U10", || format!("an isolation of {subject} has unsorted origins"));
    }
    let mut actions: BTreeMap<(Tier, Direction, u32), Action> = BTreeMap::new();
    for (rule, data) in unit.rules.iter() {
        found.check(blockless(data.subject), "U3", || {
            format!("{}, subject of {rule}, has blocks", data.subject)
        });
        found.check(ascends(&data.origins), "U10", || format!("{rule} has unsorted origins"));
        let plain = data.tier != Tier::NetworkPolicy || (data.action == Action::Accept && data.order == 0);
        found.check(plain, "U7", || format!("{rule} of the tier networkpolicy is not `0 ... accept`"));
        let action = *actions.entry((data.tier, data.direction, data.order)).or_insert(data.action);
        found.check(action == data.action, "U8", || {
            let RuleData { tier, direction, order, action: this, .. } = data;
            format!("{rule} says {this} in {tier} {direction} {order}, another rule there says {action}")
        });
    }
}

fn names(unit: &Unit, found: &mut Found) {
    let mut clean = |name: &str, id: &dyn Display| {
        found.check(!name.chars().any(char::is_control), "U11", || {
            format!("the name of {id} has control characters")
        });
    };
    unit.hosts.iter().for_each(|(id, h)| clean(&h.name, &id));
    unit.classes.iter().for_each(|(id, name)| clean(name, &id));
    unit.endpoints.iter().for_each(|(id, e)| clean(&e.name, &id));
    let hosts: Vec<&str> = unit.hosts.values().map(|h| h.name.as_str()).collect();
    found.check(ascends(&hosts), "U12", || "nodes are not sorted by name, or two have one name".into());
    let endpoints: Vec<&str> = unit.endpoints.values().map(|e| e.name.as_str()).collect();
    found.check(ascends(&endpoints), "U12", || {
        "endpoints are not sorted by name, or two have one name".into()
    });
    for (host, data) in unit.hosts.iter() {
        found.check(ascends(&data.addrs), "U13", || format!("the addresses of {host} are not sorted"));
    }
}

/// U5 and M10.
fn addresses(
    invariant: &'static str,
    endpoints: &PrimaryMap<Endpoint, EndpointData>,
    hosts: &PrimaryMap<Host, HostData>,
    found: &mut Found,
) {
    let of_endpoints = endpoints.values().flat_map(|e| e.addrs.iter().map(|&(a, _)| (a, e.name.as_str())));
    let of_hosts = hosts.values().flat_map(|h| h.addrs.iter().map(|&a| (a, h.name.as_str())));
    let mut all: Vec<(IpAddr, &str)> = of_endpoints.chain(of_hosts).collect();
    all.sort_unstable();
    for pair in all.windows(2) {
        found.check(pair[0].0 != pair[1].0, invariant, || {
            format!("{} belongs to {} and to {}", pair[0].0, pair[0].1, pair[1].1)
        });
    }
}

fn straddling(unit: &Unit, found: &mut Found) {
    let stretches = Stretches::new(unit);
    let mut first: HashMap<Class, (IpAddr, u32)> = HashMap::new();
    let mut seen = std::collections::BTreeSet::new();
    for &(addr, class) in unit.endpoints.values().flat_map(|e| &e.addrs) {
        let group = stretches.group(addr);
        let &mut (other, expected) = first.entry(class).or_insert((addr, group));
        if group != expected && found.0.len() < MAX_VIOLATIONS && seen.insert(class) {
            let splits = |data: &SetData| {
                let blocks = AddrSet::from_blocks(&data.blocks);
                blocks.contains(addr) != blocks.contains(other)
            };
            let set = unit.sets.iter().find(|(_, data)| splits(data)).map(|(set, _)| set.to_string());
            let set = set.unwrap_or_else(|| "a set".into());
            found.check(false, "U6", || {
                format!("{class} has {other} and {addr}, of which {set}'s blocks have one")
            });
        }
    }
}

/// Whether a list ascends strictly.
fn ascends<T: PartialOrd>(list: &[T]) -> bool {
    list.windows(2).all(|w| w[0] < w[1])
}
