//! The verifier of the matrix: M1 to M10.

use super::{Found, Violation, addresses, ascends};
use crate::addr::AddrSet;
use crate::matrix::{Cell, Matrix, PeerSet, Peers, Profile, ProfileData};
use crate::unit::Origin;
use std::collections::HashSet;

/// Checks a matrix.
///
/// # Errors
///
/// All violations, up to [`super::MAX_VIOLATIONS`].
pub fn verify_matrix(matrix: &Matrix) -> Result<(), Vec<Violation>> {
    let mut found = Found::default();
    ids(matrix, &mut found);
    peers(matrix, &mut found);
    let mut distinct: HashSet<&ProfileData> = HashSet::new();
    for (profile, data) in matrix.profiles.iter() {
        cells(profile, data, &mut found);
        let open = data.cells().all(|(_, cell)| cell.peers == Peers::ALL);
        let said = !open || !data.origins.is_empty();
        found.check(said, "M9", || format!("{profile} allows everything and comes from nowhere"));
        found.check(distinct.insert(data), "M9", || format!("{profile} equals another profile"));
    }
    addresses("M10", &matrix.endpoints, &matrix.hosts, &mut found);
    if found.0.is_empty() { Ok(()) } else { Err(found.0) }
}

fn ids(matrix: &Matrix, found: &mut Found) {
    for (endpoint, data) in matrix.endpoints.iter() {
        let defined =
            matrix.hosts.is_valid(data.host) && data.addrs.iter().all(|&(_, c)| matrix.classes.is_valid(c));
        found.check(defined, "M1", || format!("{endpoint} names a node or class that is not defined"));
    }
    for (class, data) in matrix.classes.iter() {
        let defined = data.profiles.iter().flatten().all(|&p| matrix.profiles.is_valid(p));
        found.check(defined, "M1", || format!("{class} names a profile that is not defined"));
    }
    for (profile, data) in matrix.profiles.iter() {
        for (_, cell) in data.cells() {
            let defined = matrix.peers.is_valid(cell.peers);
            found.check(defined, "M1", || format!("{profile} names {}, which is not defined", cell.peers));
        }
    }
}

fn peers(matrix: &Matrix, found: &mut Found) {
    let none = matrix.peers.get(Peers::NONE);
    let is_none = |p: &PeerSet| p.classes.is_empty() && p.unbound.is_empty();
    found.check(none.is_some_and(is_none), "M4", || "the first set of peers is not nobody".into());
    let all = matrix.peers.get(Peers::ALL);
    let is_all = |p: &PeerSet| p.classes.is_full() && p.unbound == AddrSet::all();
    found.check(all.is_some_and(is_all), "M4", || "the second set of peers is not everybody".into());
    let mut distinct: HashSet<&PeerSet> = HashSet::new();
    for (id, data) in matrix.peers.iter() {
        found.check(distinct.insert(data), "M5", || format!("{id} equals another set of peers"));
        let right = data.classes.len() == matrix.classes.len();
        found.check(right, "M6", || format!("{id} does not range over the matrix's classes"));
    }
}

fn cells(profile: Profile, data: &ProfileData, found: &mut Found) {
    for (index, cells) in data.transports.iter().enumerate() {
        let begins = cells.first().is_some_and(|c| c.lo == 0);
        let ends = cells.last().is_some_and(|c| c.hi == u16::MAX);
        let joined = |w: &[Cell]| w[0].hi.checked_add(1) == Some(w[1].lo);
        let covered = begins && ends && cells.iter().all(|c| c.lo <= c.hi) && cells.windows(2).all(joined);
        found.check(covered, "M2", || format!("transport {index} of {profile} has gaps or overlaps"));
        let differ = cells.windows(2).all(|w| w[0].peers != w[1].peers);
        found.check(differ, "M3", || format!("transport {index} of {profile} has equal neighbours"));
    }
    let lists = data.cells().map(|(_, c)| &c.origins).chain([&data.origins]);
    let sorted = lists.map(Vec::as_slice).all(ascends::<Origin>);
    found.check(sorted, "M7", || format!("{profile} has unsorted origins"));
    let other = (data.other.lo, data.other.hi) == (0, 0);
    found.check(other, "M8", || format!("the cell for other protocols of {profile} is not 0..=0"));
}
