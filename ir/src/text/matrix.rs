//! The text of a matrix, for people.

use super::{List, Quoted, block_text, write_endpoint, write_host};
use crate::addr::AddrSet;
use crate::matrix::{Cell, Matrix, PeerSet};
use crate::passes::cidr_cover;
use crate::ports::Transport;
use crate::unit::{Class, Direction};
use cranelift_entity::EntityRef;
use std::fmt::{self, Write as _};

/// The text of a matrix, in the manner of the unit's; it is not read back.
///
/// ```text
/// matrix 1
/// node0 = "node-1" 192.168.10.1
/// class0 = "x app=db" ingress profile0 egress open
/// pod0 = "x/db-0" node0 10.244.1.10:class0
/// peers0 = { nobody }
/// peers1 = { everybody }
/// peers2 = { class0 class3, 10.0.0.0/8 except 10.1.0.0/16 }
/// profile0 @3
///   tcp 0-79 peers0
///   tcp 80 peers2 @4 @9
///   ...
///   other peers0
/// ```
///
/// A set's blocks speak of addresses outside of the cluster only. `other` is every protocol without ports.
pub fn write_matrix(matrix: &Matrix) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut out, matrix);
    out
}

fn write_all(out: &mut String, matrix: &Matrix) -> fmt::Result {
    writeln!(out, "matrix 1")?;
    for (host, data) in matrix.hosts.iter() {
        write_host(out, host, data)?;
    }
    for (class, data) in matrix.classes.iter() {
        write!(out, "{class} = {}", Quoted(&data.name))?;
        for direction in Direction::ALL {
            match data.profiles[direction as usize] {
                Some(profile) => write!(out, " {direction} {profile}")?,
                None => write!(out, " {direction} open")?,
            }
        }
        writeln!(out)?;
    }
    for (endpoint, data) in matrix.endpoints.iter() {
        write_endpoint(out, endpoint, data)?;
    }
    for (peers, data) in matrix.peers.iter() {
        writeln!(out, "{peers} = {{ {} }}", peers_text(data))?;
    }
    for (profile, data) in matrix.profiles.iter() {
        writeln!(out, "{profile}{}", List(&data.origins))?;
        for (transport, cell) in data.cells() {
            write_cell(out, transport, cell)?;
        }
    }
    Ok(())
}

fn write_cell(out: &mut String, transport: Option<Transport>, cell: &Cell) -> fmt::Result {
    match transport {
        None => write!(out, "  other")?,
        Some(t) if (cell.lo, cell.hi) == (0, u16::MAX) => write!(out, "  {t}")?,
        Some(t) if cell.lo == cell.hi => write!(out, "  {t} {}", cell.lo)?,
        Some(t) => write!(out, "  {t} {}-{}", cell.lo, cell.hi)?,
    }
    writeln!(out, " {}{}", cell.peers, List(&cell.origins))
}

fn peers_text(peers: &PeerSet) -> String {
    let outside = peers.unbound == AddrSet::all();
    if peers.classes.is_empty() && peers.unbound.is_empty() {
        return "nobody".to_owned();
    }
    if peers.classes.is_full() && outside {
        return "everybody".to_owned();
    }
    let mut members = Vec::new();
    if peers.classes.is_full() {
        members.push("every class".to_owned());
    } else if !peers.classes.is_empty() {
        let classes: Vec<String> = peers.classes.iter().map(|i| Class::new(i).to_string()).collect();
        members.push(classes.join(" "));
    }
    if outside {
        members.push("every address outside".to_owned());
    } else {
        members.extend(cidr_cover::cover(&peers.unbound).iter().map(block_text));
    }
    members.join(", ")
}
