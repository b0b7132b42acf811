//! The matrix: what each class may exchange with every peer, for every protocol and port. Tiers are folded away.
//!
//! A peer is either *bound* (its address belongs to a class) or not. The answer for a bound peer depends on its class
//! alone, the answer for any other address on the address alone; [`PeerSet`] keeps the two apart, so union,
//! intersection and difference are exact. That is sound because a class lies wholly inside or wholly outside of every
//! set of blocks that a rule uses (invariant U6 of [`crate::verify`]).

use crate::addr::{AddrSet, Family};
use crate::bitset::BitSet;
use crate::eval::Bindings;
use crate::ports::{PortSpan, Protocol, Transport};
use crate::unit::*;
use cranelift_entity::{EntityRef, PrimaryMap, entity_impl};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// A set of peers in a [`Matrix`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peers(u32);
entity_impl!(Peers, "peers");

impl Peers {
    /// Nobody: always the first set of a matrix.
    pub const NONE: Peers = Peers(0);
    /// Everybody, outside of the cluster too: always the second set of a matrix.
    pub const ALL: Peers = Peers(1);
}

/// What one class may do in one direction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Profile(u32);
entity_impl!(Profile, "profile");

/// A set of peers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerSet {
    /// Which classes, by index.
    pub classes: BitSet,
    /// Which addresses that belong to no class. Addresses of endpoints in here mean nothing.
    pub unbound: AddrSet,
}

impl PeerSet {
    fn none(classes: usize) -> PeerSet {
        PeerSet { classes: BitSet::empty(classes), unbound: AddrSet::default() }
    }

    fn all(classes: usize) -> PeerSet {
        PeerSet { classes: BitSet::full(classes), unbound: AddrSet::all() }
    }

    fn union(&self, o: &PeerSet) -> PeerSet {
        PeerSet { classes: self.classes.or(&o.classes), unbound: self.unbound.union(&o.unbound) }
    }

    fn intersect(&self, o: &PeerSet) -> PeerSet {
        PeerSet { classes: self.classes.and(&o.classes), unbound: self.unbound.intersect(&o.unbound) }
    }

    fn subtract(&self, o: &PeerSet) -> PeerSet {
        PeerSet { classes: self.classes.minus(&o.classes), unbound: self.unbound.subtract(&o.unbound) }
    }

    /// Whether a peer is in the set.
    pub fn contains(&self, addr: IpAddr, class: Option<Class>) -> bool {
        match class {
            Some(class) => self.classes.contains(class.index()),
            None => self.unbound.contains(addr),
        }
    }
}

/// Ports `lo..=hi` that have the same peers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// First port.
    pub lo: u16,
    /// Last port, inclusive.
    pub hi: u16,
    /// Who may.
    pub peers: Peers,
    /// The rules that say so, sorted; for `Peers::NONE` the rules that deny, if any.
    pub origins: Vec<Origin>,
}

/// What one class may do in one direction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileData {
    /// For TCP, UDP and SCTP: cells that cover `0..=65535` in order without gaps; neighbours differ in their peers.
    pub transports: [Vec<Cell>; 3],
    /// For every protocol without ports: one cell `0..=0`.
    pub other: Cell,
    /// The policies that isolate the class in this direction, sorted.
    pub origins: Vec<Origin>,
}

impl ProfileData {
    /// The cell that decides about a protocol and port.
    pub fn cell(&self, protocol: Protocol, port: u16) -> &Cell {
        match protocol {
            Protocol::Transport(t) => {
                let cells = &self.transports[t as usize];
                cells.get(cells.partition_point(|c| c.hi < port)).unwrap_or(&self.other)
            }
            Protocol::Other(_) => &self.other,
        }
    }

    /// All cells with their transport (`None` for protocols without ports), in output order.
    pub fn cells(&self) -> impl Iterator<Item = (Option<Transport>, &Cell)> {
        let ports = Transport::ALL.into_iter().zip(&self.transports);
        ports.flat_map(|(t, cells)| cells.iter().map(move |c| (Some(t), c))).chain([(None, &self.other)])
    }
}

/// A class and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassProfiles {
    /// What the class is, for people.
    pub name: String,
    /// Ingress and egress, in the order of [`Direction::ALL`]; `None` where no policy isolates the class and everything
    /// is allowed. (A class that is isolated and allowed everything has a profile: packets that do not open a
    /// connection are dropped there.)
    pub profiles: [Option<Profile>; 2],
}

/// The folded policies of a cluster, and its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Nodes, sorted by name.
    pub hosts: PrimaryMap<Host, HostData>,
    /// Pods, sorted by name.
    pub endpoints: PrimaryMap<Endpoint, EndpointData>,
    /// Classes.
    pub classes: PrimaryMap<Class, ClassProfiles>,
    /// Distinct sets of peers. The first is empty, the second everybody.
    pub peers: PrimaryMap<Peers, PeerSet>,
    /// Distinct profiles.
    pub profiles: PrimaryMap<Profile, ProfileData>,
}

impl Matrix {
    /// What a class may do in a direction; `None` = everything.
    pub fn profile(&self, class: Class, direction: Direction) -> Option<&ProfileData> {
        self.classes[class].profiles[direction as usize].map(|p| &self.profiles[p])
    }

    /// Whether `subject` may exchange this with a peer, as far as this direction is concerned.
    pub fn permits(
        &self,
        subject: Class,
        direction: Direction,
        peer: (IpAddr, Option<Class>),
        protocol: Protocol,
        port: u16,
    ) -> bool {
        self.profile(subject, direction)
            .is_none_or(|profile| self.peers[profile.cell(protocol, port).peers].contains(peer.0, peer.1))
    }

    /// The verdict on a flow. Build the bindings once with [`Bindings::new`].
    pub fn decide(&self, bindings: &Bindings, flow: &Flow) -> Verdict {
        crate::eval::decide(&self.endpoints, bindings, flow, |subject, direction, peer| {
            self.permits(subject, direction, peer, flow.protocol, flow.port)
        })
    }
}

/// Folds a verified unit. Total: every unit has a matrix. Cost: classes x distinct rule lists, not classes squared.
pub fn fold(unit: &Unit) -> Matrix {
    let mut folder = Folder::new(unit);
    let classes = unit.classes.iter().map(|(class, name)| ClassProfiles {
        name: name.clone(),
        profiles: Direction::ALL.map(|direction| folder.profile(class, direction)),
    });
    let classes = classes.collect();
    Matrix {
        hosts: unit.hosts.clone(),
        endpoints: unit.endpoints.clone(),
        classes,
        peers: folder.peers,
        profiles: folder.profiles,
    }
}

/// What is asked about one class in one direction: its rules in order, and who isolates it.
#[derive(PartialEq, Eq, Hash, Clone, Default)]
struct Asked {
    rules: Vec<Rule>,
    isolations: Vec<usize>,
}

struct Folder<'a> {
    unit: &'a Unit,
    /// For each direction, for each class.
    asked: [Vec<Asked>; 2],
    /// The peers of every unit set, in matrix form, made when first needed.
    sets: HashMap<Set, PeerSet>,
    bound: Vec<Vec<IpAddr>>,
    peers: PrimaryMap<Peers, PeerSet>,
    peers_index: HashMap<PeerSet, Peers>,
    unions: HashMap<Vec<Set>, Peers>,
    profiles: PrimaryMap<Profile, ProfileData>,
    profiles_index: HashMap<(Direction, Asked), Option<Profile>>,
    profiles_known: HashMap<ProfileData, Profile>,
}

impl<'a> Folder<'a> {
    fn new(unit: &'a Unit) -> Folder<'a> {
        let n = unit.classes.len();
        let mut asked = [vec![Asked::default(); n], vec![Asked::default(); n]];
        let mut order: Vec<Rule> = unit.rules.keys().collect();
        order.sort_by_key(|&r| (unit.rules[r].tier, unit.rules[r].order, r));
        for rule in order {
            let data = &unit.rules[rule];
            for class in &unit.sets[data.subject].classes {
                asked[data.direction as usize][class.index()].rules.push(rule);
            }
        }
        for (i, isolation) in unit.isolations.iter().enumerate() {
            for class in &unit.sets[isolation.subject].classes {
                asked[isolation.direction as usize][class.index()].isolations.push(i);
            }
        }
        // One address of a class and family speaks for all of them: classes do not straddle blocks.
        let mut bound = vec![Vec::new(); n];
        for (addr, class) in unit.endpoints.values().flat_map(|e| &e.addrs) {
            let list: &mut Vec<IpAddr> = &mut bound[class.index()];
            if !list.iter().any(|a| Family::of(*a) == Family::of(*addr)) {
                list.push(*addr);
            }
        }
        let mut folder = Folder {
            unit,
            asked,
            sets: HashMap::new(),
            bound,
            peers: PrimaryMap::new(),
            peers_index: HashMap::new(),
            unions: HashMap::new(),
            profiles: PrimaryMap::new(),
            profiles_index: HashMap::new(),
            profiles_known: HashMap::new(),
        };
        folder.intern(PeerSet::none(n));
        folder.intern(PeerSet::all(n));
        folder
    }

    fn intern(&mut self, set: PeerSet) -> Peers {
        if let Some(&peers) = self.peers_index.get(&set) {
            return peers;
        }
        let peers = self.peers.push(set.clone());
        self.peers_index.insert(set, peers);
        peers
    }

    fn set(&mut self, set: Set) -> &PeerSet {
        let (unit, bound) = (self.unit, &self.bound);
        self.sets.entry(set).or_insert_with(|| {
            let data = &unit.sets[set];
            let unbound = AddrSet::from_blocks(&data.blocks);
            let mut classes = BitSet::empty(unit.classes.len());
            data.classes.iter().for_each(|c| classes.insert(c.index()));
            if unbound == AddrSet::all() {
                classes = BitSet::full(unit.classes.len());
            } else if !unbound.is_empty() {
                for (i, addrs) in bound.iter().enumerate() {
                    if addrs.iter().any(|&a| unbound.contains(a)) {
                        classes.insert(i);
                    }
                }
            }
            PeerSet { classes, unbound }
        })
    }

    /// The union of some sets.
    fn union(&mut self, mut sets: Vec<Set>) -> Peers {
        sets.sort_unstable();
        sets.dedup();
        if let Some(&peers) = self.unions.get(&sets) {
            return peers;
        }
        let mut all = PeerSet::none(self.unit.classes.len());
        let mut blocks = Vec::new();
        for &set in &sets {
            let one = self.set(set);
            all.classes.or_with(&one.classes);
            if !one.unbound.is_empty() {
                blocks.push(one.unbound.clone());
            }
        }
        all.unbound = blocks.iter().fold(AddrSet::default(), |a, b| a.union(b));
        let peers = self.intern(all);
        self.unions.insert(sets, peers);
        peers
    }

    fn profile(&mut self, class: Class, direction: Direction) -> Option<Profile> {
        let asked = std::mem::take(&mut self.asked[direction as usize][class.index()]);
        let key = (direction, asked);
        if let Some(&profile) = self.profiles_index.get(&key) {
            return profile;
        }
        let profile = self.build_profile(&key.1);
        self.profiles_index.insert(key, profile);
        profile
    }

    fn build_profile(&mut self, asked: &Asked) -> Option<Profile> {
        if asked.rules.is_empty() && asked.isolations.is_empty() {
            return None;
        }
        let transports = Transport::ALL.map(|transport| {
            let mut cells: Vec<Cell> = Vec::new();
            for (lo, hi) in self.intervals(&asked.rules, transport) {
                let cell = self.cell(asked, Protocol::Transport(transport), lo, hi);
                match cells.last_mut() {
                    Some(last) if last.peers == cell.peers => {
                        last.hi = hi;
                        let merged: BTreeSet<Origin> =
                            last.origins.iter().chain(&cell.origins).copied().collect();
                        last.origins = merged.into_iter().collect();
                    }
                    _ => cells.push(cell),
                }
            }
            cells
        });
        let other = self.cell(asked, Protocol::ICMP, 0, 0);
        let isolations: BTreeSet<Origin> =
            asked.isolations.iter().flat_map(|&i| self.unit.isolations[i].origins.iter().copied()).collect();
        let open = |c: &Cell| c.peers == Peers::ALL;
        if isolations.is_empty() && open(&other) && transports.iter().flatten().all(open) {
            return None;
        }
        let data = ProfileData { transports, other, origins: isolations.into_iter().collect() };
        // Other rules of the same content give the same profile.
        if let Some(&profile) = self.profiles_known.get(&data) {
            return Some(profile);
        }
        let profile = self.profiles.push(data.clone());
        self.profiles_known.insert(data, profile);
        Some(profile)
    }

    /// The elementary intervals of ports between all bounds that the rules name for a protocol.
    fn intervals(&self, rules: &[Rule], transport: Transport) -> Vec<(u16, u16)> {
        let mut starts = BTreeSet::from([0u16]);
        for span in rules.iter().flat_map(|&r| &self.unit.ports[self.unit.rules[r].ports]) {
            match span {
                PortSpan::Ports { transport: t, lo, hi } if *t == transport => {
                    starts.insert(*lo);
                    starts.extend(hi.checked_add(1));
                }
                _ => {}
            }
        }
        let starts: Vec<u16> = starts.into_iter().collect();
        let ends = starts.iter().skip(1).map(|s| s - 1).chain([u16::MAX]);
        starts.iter().copied().zip(ends).collect()
    }

    fn cell(&mut self, asked: &Asked, protocol: Protocol, lo: u16, hi: u16) -> Cell {
        let unit = self.unit;
        let matching: Vec<Rule> = asked
            .rules
            .iter()
            .copied()
            .filter(|&r| unit.ports[unit.rules[r].ports].iter().any(|s| s.matches(protocol, lo)))
            .collect();
        let only_v1 = matching.iter().all(|&r| unit.rules[r].tier == Tier::NetworkPolicy);
        let peers = if only_v1 && !asked.isolations.is_empty() {
            self.union(matching.iter().map(|&r| unit.rules[r].peers).collect())
        } else {
            let set = self.tiers(&matching, !asked.isolations.is_empty());
            self.intern(set)
        };
        let origins: BTreeSet<Origin> =
            matching.iter().flat_map(|&r| unit.rules[r].origins.iter().copied()).collect();
        Cell { lo, hi, peers, origins: origins.into_iter().collect() }
    }

    /// Who is accepted by rules (in order of tier and number) that all match the protocol and port in question.
    fn tiers(&mut self, rules: &[Rule], isolated: bool) -> PeerSet {
        let n = self.unit.classes.len();
        let unit = self.unit;
        let tier =
            |t: Tier| -> Vec<Rule> { rules.iter().copied().filter(|&r| unit.rules[r].tier == t).collect() };
        let (admin, v1, baseline) = (tier(Tier::Admin), tier(Tier::NetworkPolicy), tier(Tier::Baseline));
        let (accepted, open) = self.ordered_tier(&admin, PeerSet::all(n));
        let rest = if isolated {
            let sets = v1.iter().map(|&r| self.unit.rules[r].peers).collect();
            let allowed = self.union(sets);
            open.intersect(&self.peers[allowed])
        } else {
            let (accepted, open) = self.ordered_tier(&baseline, open);
            accepted.union(&open)
        };
        accepted.union(&rest)
    }

    /// First match decides: returns who is accepted, and for whom this tier says nothing.
    fn ordered_tier(&mut self, rules: &[Rule], mut undecided: PeerSet) -> (PeerSet, PeerSet) {
        let n = self.unit.classes.len();
        let (mut accepted, mut passed) = (PeerSet::none(n), PeerSet::none(n));
        for &rule in rules {
            let data = &self.unit.rules[rule];
            let (peers, action) = (data.peers, data.action);
            let matched = undecided.intersect(self.set(peers));
            match action {
                Action::Accept => accepted = accepted.union(&matched),
                Action::Deny => {}
                Action::Pass => passed = passed.union(&matched),
            }
            undecided = undecided.subtract(&matched);
        }
        (accepted, undecided.union(&passed))
    }
}
