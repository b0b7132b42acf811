//! Matrix -> contents of one node's maps. The only stage that may refuse ([`Unsupported`]).
//!
//! Two tables say everything. A *row* is what one pod profile of this node allows in one direction; a *column* is a
//! kind of peer: addresses that every row of this node treats alike, whether a pod has them or nobody. The pair of both
//! names a set of ports for each transport. So a packet costs two address lookups, one pair and at most one bitmap,
//! however many pods, policies, blocks and port ranges there are.
//!
//! - Columns: for every set of peers that some row uses, an address is in it or not. The vector of these answers *is* the
//!   column. Pods get theirs by class; all other addresses are cut at the bounds of the blocks, and the table of
//!   prefixes holds the fewest entries that give each stretch its column (module `prefixes`).
//! - Column 0 is the vector "in no set": what is not found anywhere is allowed nothing that names peers. A pod of
//!   another node whose address has the same column without it needs no entry.
//! - Only pods of this node have rows, a number (a pod reaches itself), and always an entry.

mod prefixes;
mod tables;

use crate::contents::{Contents, Pod};
use cranelift_entity::EntityRef;
use netpolc_bundle::bpf::Block;
use netpolc_bundle::limits;
use netpolc_ir::addr::{Family, bits};
use netpolc_ir::matrix::{Matrix, Peers, Profile};
use netpolc_ir::unit::{Direction, Host, Origin};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use tables::Tables;

/// What this backend cannot express.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// A map would be larger than a node can hold.
    #[error("the node needs {count} {what}; the limit is {limit}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many are needed.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
}

pub use netpolc_ir::unit::Origins;

/// The contents of one node's maps and what they lead back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The contents.
    pub contents: Contents,
    /// For each row, from row 1 on, the policies and rules behind it, sorted.
    pub provenance: Vec<Vec<Origin>>,
}

/// Plans a node.
///
/// # Errors
/// If the maps would not fit the limits of [`netpolc_bundle::limits`].
pub fn plan(matrix: &Matrix, host: Host, origins: &dyn Origins) -> Result<Plan, Unsupported> {
    let rows = rows(matrix, host);
    let used: Vec<Peers> = used_peers(matrix, &rows);
    let mut columns = Columns::new(matrix, used);
    let mut blocks = BTreeMap::new();
    let stretches = Family::ALL.map(|family| columns.stretches(family));
    for (family, stretches) in Family::ALL.into_iter().zip(&stretches) {
        let cover = prefixes::cover(family, stretches);
        // A prefix length of the IR always fits its family.
        blocks.extend(
            cover.into_iter().filter_map(|(c, column)| Some((Block::new(c.addr(), c.prefix_len())?, column))),
        );
    }
    within("prefixes", blocks.len(), limits::BPF_BLOCKS)?;
    let row_of: HashMap<(Profile, Direction), u32> = rows.iter().copied().zip(1..).collect();
    let mut pods = BTreeMap::new();
    let mut number = 0;
    for endpoint in matrix.endpoints.values() {
        let local = endpoint.host == host;
        number += u32::from(local);
        for &(addr, class) in &endpoint.addrs {
            let column = columns.of_class(class.index());
            let row = |direction: Direction| {
                let profile = matrix.classes[class].profiles[direction as usize].filter(|_| local);
                profile.and_then(|p| row_of.get(&(p, direction)).copied()).unwrap_or(0)
            };
            let pod = if local { number } else { 0 };
            let entry = Pod { column, ingress: row(Direction::Ingress), egress: row(Direction::Egress), pod };
            if local || column != column_at(&stretches[Family::of(addr) as usize], addr) {
                pods.insert(addr, entry);
            }
        }
    }
    within("addresses", pods.len(), limits::BPF_PODS)?;
    within(
        "pairs of a profile and a kind of peer",
        rows.len().saturating_mul(columns.len()),
        limits::BPF_PAIRS,
    )?;
    let mut tables = Tables::default();
    for (&(profile, _), row) in rows.iter().zip(1..) {
        tables.row(row, &matrix.profiles[profile], &columns);
    }
    within("sets of ports", tables.ports.len(), limits::BPF_PORT_SETS)?;
    let provenance: Vec<Vec<Origin>> = rows.iter().map(|&(p, _)| row_origins(matrix, p)).collect();
    let labels = rows.iter().zip(&provenance).map(|(&(_, direction), list)| {
        let names: BTreeSet<String> = list.iter().map(|o| origins.policy(*o)).collect();
        format!("{direction} {}", names.into_iter().collect::<Vec<_>>().join(", "))
    });
    let rows = labels.collect();
    let Tables { pairs, ports, .. } = tables;
    let columns = columns.len() as u32;
    Ok(Plan { contents: Contents { columns, rows, pods, blocks, pairs, ports }, provenance })
}

fn within(what: &'static str, count: usize, limit: usize) -> Result<(), Unsupported> {
    if count > limit { Err(Unsupported::TooMany { what, count, limit }) } else { Ok(()) }
}

/// The rows of a node: the profiles of its pods by direction. The same profile for both directions gives two rows, so
/// that a row's label can say what it is.
fn rows(matrix: &Matrix, host: Host) -> Vec<(Profile, Direction)> {
    let local = matrix.endpoints.values().filter(|e| e.host == host).flat_map(|e| &e.addrs);
    let profiles = local.flat_map(|(_, class)| {
        let profiles = matrix.classes[*class].profiles;
        Direction::ALL.into_iter().zip(profiles).filter_map(|(d, p)| p.map(|p| (p, d)))
    });
    profiles.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The sets of peers that rows use, but for "nobody" and "everybody", which tell nobody apart.
fn used_peers(matrix: &Matrix, rows: &[(Profile, Direction)]) -> Vec<Peers> {
    let cells = rows.iter().flat_map(|(p, _)| matrix.profiles[*p].cells());
    let used: BTreeSet<Peers> =
        cells.map(|(_, c)| c.peers).filter(|p| ![Peers::NONE, Peers::ALL].contains(p)).collect();
    used.into_iter().collect()
}

fn row_origins(matrix: &Matrix, profile: Profile) -> Vec<Origin> {
    let data = &matrix.profiles[profile];
    let cells = data.cells().flat_map(|(_, c)| c.origins.iter().copied());
    cells.chain(data.origins.iter().copied()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Stretches of addresses with their columns: first addresses, ascending from 0.
type Stretches = Vec<(u128, u32)>;

fn column_at(stretches: &Stretches, addr: IpAddr) -> u32 {
    let i = stretches.partition_point(|s| s.0 <= bits(addr));
    stretches.get(i.wrapping_sub(1)).map_or(0, |s| s.1)
}

/// The kinds of peers, made as they turn up.
pub(crate) struct Columns<'m> {
    matrix: &'m Matrix,
    used: Vec<Peers>,
    vectors: Vec<Vec<u64>>,
    index: HashMap<Vec<u64>, u32>,
    classes: Vec<u32>,
}

impl<'m> Columns<'m> {
    fn new(matrix: &'m Matrix, used: Vec<Peers>) -> Columns<'m> {
        let mut columns =
            Columns { matrix, used, vectors: Vec::new(), index: HashMap::new(), classes: Vec::new() };
        columns.column(|_| false);
        for class in 0..matrix.classes.len() {
            let column = columns.column(|peers| matrix.peers[peers].classes.contains(class));
            columns.classes.push(column);
        }
        columns
    }

    fn column(&mut self, contains: impl Fn(Peers) -> bool) -> u32 {
        let mut vector = vec![0u64; self.used.len().div_ceil(64)];
        for (i, _) in self.used.iter().enumerate().filter(|(_, peers)| contains(**peers)) {
            vector[i / 64] |= 1 << (i % 64);
        }
        if let Some(&column) = self.index.get(&vector) {
            return column;
        }
        let column = self.vectors.len() as u32;
        self.vectors.push(vector.clone());
        self.index.insert(vector, column);
        column
    }

    pub(crate) fn len(&self) -> usize {
        self.vectors.len()
    }

    fn of_class(&self, class: usize) -> u32 {
        self.classes.get(class).copied().unwrap_or(0)
    }

    /// The columns that are in a set of peers.
    pub(crate) fn members(&self, peers: Peers) -> Vec<u32> {
        let all = 0..self.vectors.len() as u32;
        match peers {
            Peers::NONE => Vec::new(),
            Peers::ALL => all.collect(),
            _ => match self.used.binary_search(&peers) {
                Ok(i) => all.filter(|c| self.vectors[*c as usize][i / 64] >> (i % 64) & 1 == 1).collect(),
                Err(_) => Vec::new(),
            },
        }
    }

    /// All addresses of a family that no pod has, cut where the answer of a set of peers may change.
    fn stretches(&mut self, family: Family) -> Stretches {
        let matrix = self.matrix;
        let sets: Vec<_> = self.used.iter().map(|p| (*p, matrix.peers[*p].unbound.family(family))).collect();
        // Where each set changes its answer, in the order of addresses.
        let mut changes: BTreeMap<u128, Vec<usize>> = BTreeMap::new();
        for (i, (_, ranges)) in sets.iter().enumerate() {
            for &(lo, hi) in ranges.as_slice() {
                changes.entry(lo).or_default().push(i);
                if hi < family.max() {
                    changes.entry(hi + 1).or_default().push(i);
                }
            }
        }
        changes.entry(0).or_default();
        let mut inside = vec![false; sets.len()];
        let index: HashMap<Peers, usize> = sets.iter().enumerate().map(|(i, s)| (s.0, i)).collect();
        let mut stretches: Stretches = Vec::new();
        for (start, changed) in changes {
            changed.into_iter().for_each(|i| inside[i] = !inside[i]);
            let column = self.column(|peers| index.get(&peers).is_some_and(|&i| inside[i]));
            if stretches.last().is_none_or(|s| s.1 != column) {
                stretches.push((start, column));
            }
        }
        stretches
    }
}
