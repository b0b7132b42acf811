//! Matrix -> ruleset of one node. The only stage that may refuse ([`Unsupported`]).
//!
//! The shape, for each family (figures: `docs/performance.md`):
//!
//! - `forward`, the base chain, sends what is not established or related to `judge_*`: one rule for most packets;
//! - `judge_*` drops what opens no connection where that touches an isolated pod, and looks up the source in `sources_*`:
//!   what has that of a pod of the node goes on in `own_*`, where it is checked for spoofing and, if the pod is isolated,
//!   goes through the chain of its profile (`out_*`). Then, in either chain, the destination is looked up in `ingress_*`,
//!   which leads to the chain of a profile (`in_*`). That is two hash lookups, however many pods and policies;
//! - the chain of a profile looks up protocol, port and peer in one hash (`open_*`) where single ports are for a few pods
//!   only, and the rest by protocol and port in one hash (`ports_*`), in one interval map for each protocol that has ranges
//!   (`ranges_*`), and in the defaults;
//! - these lead to the chain of one distinct set of peers (`to_*`, `from_*`): one hash lookup for pods, one for each
//!   prefix length of blocks, longest first, so that `except` needs nothing more;
//! - what nothing allowed ends in `deny_*`, where a pod that talks to itself still passes. There is one for each list of
//!   policies that isolate a pod in a direction, so that what is dropped is counted for them.
//!
//! So a packet costs the same at 10 and at 10,000 policies. Objects are named by their content: equal content is one
//! object, and a change of a policy changes the names on the way to it and nothing else. The exceptions are `self`, `spoof`,
//! `local`, `podif` and `podaddr`, whose content is harmless while it is between two versions.

mod fixed;
mod frame;
mod peers;
mod profile;

use crate::limits;
use frame::{Pods, frame};
use netpolc_bundle::comment::joined;
use netpolc_bundle::nft::{
    self, Chain, Elements, Field, Key, KeyType, Match, Outcome, Rule, Ruleset, Set, Table, Verdict,
};
use netpolc_ir::addr::{Family, bits};
use netpolc_ir::matrix::{Matrix, Peers, Profile};
use netpolc_ir::unit::{Class, Direction, Host, Origin};
use peers::PeersChain;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

/// The set of pairs `pod . pod`: a pod always reaches itself.
pub const SELF: &str = "self";
/// The chain that drops spoofed packets.
pub const SPOOF: &str = "spoof";
/// The chain that lets IPv6 neighbour discovery pass.
pub const DISCOVERY: &str = "discovery";
/// The base chain.
pub const FORWARD: &str = "forward";
/// The base chain's priority: before the filter chains of kube-proxy and of iptables (0), after DNAT.
pub const PRIORITY: i32 = -10;

/// What this backend cannot express.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// A set would be larger than a node can hold.
    #[error("{object} needs {elements} elements; the limit is {limit}")]
    TooManyElements {
        /// The object's name.
        object: String,
        /// How many elements it needs.
        elements: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Two objects of different content have the same name: 48 bits of SHA-256 collided.
    #[error("two objects of different content are both called {0}; change any policy slightly")]
    NameCollision(String),
}

pub use netpolc_ir::unit::Origins;

/// The rules of one node and what they lead back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The rules.
    pub ruleset: Ruleset,
    /// For each named object, the policies and rules behind it.
    pub provenance: BTreeMap<String, Vec<Origin>>,
}

/// An object of the ruleset that several nodes share, without a comment: objects of equal content are one, and the
/// comment names the policies behind all of its uses on a node.
#[derive(Debug, Clone)]
struct Object {
    name: String,
    content: Content,
    origins: Rc<Vec<Origin>>,
}

#[derive(Debug, Clone)]
enum Content {
    Set(Rc<Set>),
    Chain(Rc<Chain>),
}

/// A verdict and the objects that it needs.
#[derive(Debug, Clone)]
struct Target {
    verdict: Verdict,
    objects: Rc<Vec<Object>>,
}

/// Plans nodes of one matrix. What nodes share is made once.
pub struct Selector<'m> {
    matrix: &'m Matrix,
    origins: &'m dyn Origins,
    /// For each family, the addresses of each class, sorted.
    members: [Vec<Vec<u128>>; 2],
    /// For each set of peers, the rules that use it, by direction.
    peer_origins: HashMap<(Peers, Direction), BTreeSet<Origin>>,
    /// Without a chain that drops, which each profile has for itself.
    peers: HashMap<(Peers, Direction, Family), Rc<PeersChain>>,
    profiles: HashMap<(Profile, Direction, Family), Target>,
}

impl<'m> Selector<'m> {
    /// Prepares to plan the nodes of a matrix.
    pub fn new(matrix: &'m Matrix, origins: &'m dyn Origins) -> Selector<'m> {
        let mut members = [vec![Vec::new(); matrix.classes.len()], vec![Vec::new(); matrix.classes.len()]];
        for (addr, class) in matrix.endpoints.values().flat_map(|e| &e.addrs) {
            members[Family::of(*addr) as usize][class.as_u32() as usize].push(bits(*addr));
        }
        members.iter_mut().flatten().for_each(|list| list.sort_unstable());
        let mut peer_origins: HashMap<(Peers, Direction), BTreeSet<Origin>> = HashMap::new();
        for class in matrix.classes.values() {
            for (direction, profile) in Direction::ALL.into_iter().zip(class.profiles) {
                for (_, cell) in profile.into_iter().flat_map(|p| matrix.profiles[p].cells()) {
                    let origins = peer_origins.entry((cell.peers, direction)).or_default();
                    if !cell.origins.iter().all(|o| origins.contains(o)) {
                        origins.extend(&cell.origins);
                    }
                }
            }
        }
        Selector { matrix, origins, members, peer_origins, peers: HashMap::new(), profiles: HashMap::new() }
    }

    /// Plans the rules of a node.
    ///
    /// # Errors
    /// If the rules do not fit a limit of nftables.
    pub fn plan(&mut self, host: Host) -> Result<Plan, Unsupported> {
        let mut plan = Plan { ruleset: Ruleset::default(), provenance: BTreeMap::new() };
        for (family, nft_family) in [(Family::V4, nft::Family::Ip), (Family::V6, nft::Family::Ip6)] {
            let table = self.table(host, family, nft_family, &mut plan.provenance)?;
            plan.ruleset.tables.insert(nft_family, table);
        }
        let elements =
            plan.ruleset.tables.values().flat_map(|t| &t.sets).map(|(_, s)| s.elements.len()).sum();
        if elements > limits::TOTAL_ELEMENTS {
            let object = format!("node {}", self.matrix.hosts[host].name);
            return Err(Unsupported::TooManyElements { object, elements, limit: limits::TOTAL_ELEMENTS });
        }
        let version = nft::digest(&plan.ruleset);
        for table in plan.ruleset.tables.values_mut() {
            table.chains.insert(format!("version_{version}"), Chain::default());
        }
        Ok(plan)
    }

    fn table(
        &mut self,
        host: Host,
        family: Family,
        nft_family: nft::Family,
        provenance: &mut BTreeMap<String, Vec<Origin>>,
    ) -> Result<Table, Unsupported> {
        let matrix = self.matrix;
        let table = Table { flush: true, ..Table::default() };
        let mut builder = Builder { family: nft_family, table, origins: BTreeMap::new() };
        let mut pods = Pods::default();
        for endpoint in matrix.endpoints.values().filter(|e| e.host == host) {
            let ours: Vec<(u128, Class)> = endpoint
                .addrs
                .iter()
                .filter(|(a, _)| Family::of(*a) == family)
                .map(|(a, c)| (bits(*a), *c))
                .collect();
            for &(addr, class) in &ours {
                let profiles = matrix.classes[class].profiles;
                let mut targets = [Verdict::Return, Verdict::Return];
                for (direction, profile) in Direction::ALL.into_iter().zip(profiles) {
                    let Some(profile) = profile else { continue };
                    let target = self.profile(profile, direction, family);
                    builder.objects(&target.objects)?;
                    targets[direction as usize] = target.verdict;
                }
                let [ingress, egress] = targets;
                pods.egress.insert(addr, egress);
                if ingress != Verdict::Return {
                    pods.ingress.insert(vec![Key::Addr(addr, addr)], Some(ingress));
                }
                if profiles.iter().any(Option::is_some) {
                    pods.isolated.push(addr);
                    for &(other, _) in &ours {
                        pods.pairs.insert(vec![Key::Addr(addr, addr), Key::Addr(other, other)], None);
                    }
                }
            }
        }
        frame(&mut builder, pods)?;
        let Builder { mut table, origins, .. } = builder;
        for (name, origins) in origins {
            if let Some(chain) = table.chains.get_mut(&name) {
                label(&mut chain.rules, comment(self.origins, origins.iter().copied()));
            }
            let known = provenance.entry(name).or_default();
            known.extend(origins);
            known.sort_unstable();
            known.dedup();
        }
        Ok(table)
    }
}

/// A comment that names origins, as many as fit.
pub(crate) fn comment(names: &dyn Origins, origins: impl IntoIterator<Item = Origin>) -> Option<String> {
    let labels = origins.into_iter().map(|o| clean(&names.label(o))).collect();
    joined(&labels, limits::COMMENT_BYTES, "rules")
}

/// Only what a quoted string of nft can hold.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && !matches!(c, '"' | '\\')).collect()
}

fn addr_set(comment: Option<String>) -> Set {
    Set { key: vec![KeyType::Addr], comment, ..Set::default() }
}

fn rule(matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { matches, counter: false, outcome: Outcome::Verdict(verdict), comment: None }
}

/// Puts a comment that may change to the first rule of a chain that judges, if that has none. Rules are made anew whenever
/// a script is loaded; a chain or a set keeps in the kernel the comment that it was made with, so theirs never change.
fn label(rules: &mut [Rule], comment: Option<String>) {
    let others = [Verdict::Jump(SPOOF.to_owned()), Verdict::Accept].map(Outcome::Verdict);
    if let Some(first) = rules.iter_mut().find(|rule| !others.contains(&rule.outcome)) {
        first.comment = first.comment.take().or(comment);
    }
}

/// The name of an object: its kind and 48 bits of the hash of its content. Comments do not count, so that a line that
/// is inserted above a policy renames nothing.
fn content_name(kind: &str, content: &impl std::fmt::Debug) -> String {
    let digest = Sha256::digest(format!("{content:?}").as_bytes());
    let hash: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    format!("{kind}_{hash}")
}

fn set_name(kind: &str, set: &Set) -> String {
    content_name(kind, &Set { comment: None, ..set.clone() })
}

fn chain_name(kind: &str, chain: &Chain) -> String {
    let mut bare = Chain { comment: None, ..chain.clone() };
    bare.rules.iter_mut().for_each(|r| r.comment = None);
    content_name(kind, &bare)
}

/// Collects the objects of one table.
struct Builder {
    family: nft::Family,
    table: Table,
    origins: BTreeMap<String, BTreeSet<Origin>>,
}

impl Builder {
    fn objects(&mut self, objects: &[Object]) -> Result<(), Unsupported> {
        for Object { name, content, origins } in objects {
            self.origins.entry(name.clone()).or_default().extend(origins.iter());
            match content {
                Content::Set(set) if !self.table.sets.contains_key(name) => {
                    self.set(name, (**set).clone())?
                }
                Content::Chain(chain) if !self.table.chains.contains_key(name) => {
                    self.chain(name, (**chain).clone())
                }
                Content::Set(_) | Content::Chain(_) => {}
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &str, set: Set) -> Result<(), Unsupported> {
        let elements = set.elements.len();
        if elements > limits::SET_ELEMENTS {
            let object = name.to_owned();
            return Err(Unsupported::TooManyElements { object, elements, limit: limits::SET_ELEMENTS });
        }
        match self.table.sets.insert(name.to_owned(), set) {
            None => Ok(()),
            Some(_) => Err(Unsupported::NameCollision(name.to_owned())),
        }
    }

    fn chain(&mut self, name: &str, chain: Chain) {
        self.table.chains.insert(name.to_owned(), chain);
    }

    /// The rule that looks up one end of a packet in a map; none if nothing is in it.
    fn entry(
        &mut self,
        kind: &str,
        field: Field,
        map: BTreeMap<Vec<Key>, Option<Verdict>>,
    ) -> Result<Option<Rule>, Unsupported> {
        if map.is_empty() {
            return Ok(None);
        }
        let set = Set { map: true, elements: Elements::General(map), ..addr_set(None) };
        let outcome = Outcome::Vmap(vec![field], self.named_set(kind, set)?);
        Ok(Some(Rule { outcome, ..rule(Vec::new(), Verdict::Return) }))
    }

    fn named_set(&mut self, kind: &str, set: Set) -> Result<String, Unsupported> {
        let name = set_name(kind, &set);
        self.set(&name, set)?;
        Ok(name)
    }

    fn named_chain(&mut self, kind: &str, chain: Chain) -> Result<String, Unsupported> {
        let name = chain_name(kind, &chain);
        self.chain(&name, chain);
        Ok(name)
    }
}

/// The addresses of a node's pods, for the bindings of its bundle: name and addresses, sorted by name.
pub fn local_pods(matrix: &Matrix, host: Host) -> Vec<(String, Vec<IpAddr>)> {
    let local = matrix.endpoints.values().filter(|e| e.host == host);
    local.map(|e| (e.name.clone(), e.addrs.iter().map(|(a, _)| *a).collect())).collect()
}
