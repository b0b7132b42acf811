//! Routes to the pods of other nodes.
//!
//! Ours have a protocol number of their own, so that a loader without memory knows which they are. A route of another
//! hand to the same destination is left alone: if it leads to the same node, all is well, and else that is said.

use super::cidr::Cidr;
use crate::rtnetlink::{Route, Routing};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

/// The `protocol` of our routes. Ours; `/etc/iproute2/rt_protos` gives this number to no one.
pub const PROTOCOL: u8 = 110;

/// What was done, and what could not be.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the fields' names say it")]
pub struct Done {
    pub changes: Vec<String>,
    pub faults: Vec<String>,
}

/// Makes our routes these and no others.
///
/// # Errors
/// If the routes that are there cannot be read.
pub fn converge(wanted: &BTreeMap<Cidr, IpAddr>) -> io::Result<Done> {
    let mut routing = Routing::open()?;
    let seen =
        routing.routes(&|route| route.protocol == PROTOCOL || wanted.contains_key(&route.destination))?;
    let (ours, others): (Vec<Route>, Vec<Route>) =
        seen.into_iter().partition(|route| route.protocol == PROTOCOL);
    let mut done = Done::default();
    let mut there = BTreeMap::new();
    for route in ours {
        match wanted.get(&route.destination) {
            Some(_) => {
                there.insert(route.destination, route.gateway);
            }
            None => note(&mut done, routing.delete(&route), &route, "deleted"),
        }
    }
    // Of several the kernel takes the one with the lowest number.
    let made = |destination: &Cidr, gateway: &IpAddr| {
        let there = others.iter().filter(|route| route.destination == *destination);
        there.min_by_key(|route| route.priority).is_some_and(|route| route.gateway == Some(*gateway))
    };
    for (destination, gateway) in wanted {
        let route = Route {
            destination: *destination,
            gateway: Some(*gateway),
            interface: None,
            priority: 0,
            protocol: PROTOCOL,
        };
        match there.get(destination) {
            Some(seen) if *seen == Some(*gateway) => {}
            Some(_) => note(&mut done, routing.replace(&route), &route, "changed"),
            None if made(destination, gateway) => {}
            None => note(&mut done, routing.add(&route), &route, "added"),
        }
    }
    Ok(done)
}

fn note(done: &mut Done, result: io::Result<()>, route: &Route, verb: &str) {
    let gateway = route.gateway.map(|addr| format!(" via {addr}")).unwrap_or_default();
    let shown = format!("{}{gateway}", route.destination);
    match result {
        Ok(()) => done.changes.push(format!("route {shown} {verb}")),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            done.faults
                .push(format!("route {shown}: another hand has made another route to there, which stays"));
        }
        Err(error) => done.faults.push(format!("route {shown} not {verb}: {error}")),
    }
}

/// The MTU of the interface that the default route leads to; IPv4's if there is one.
pub fn default_mtu() -> Option<u32> {
    let mut routing = Routing::open().ok()?;
    let mut routes = routing.routes(&|route| route.destination.length() == 0).ok()?;
    routes.sort_by_key(|route| (!route.destination.is_ipv4(), route.priority));
    let interface = routes.iter().find_map(|route| route.interface)?;
    routing.mtu(interface).ok()?
}
