//! Matrix -> ruleset of one node. The only stage that may refuse ([`Unsupported`]).
//!
//! The shape, for each family:
//!
//! - `NETPOLC-FORWARD` lets return what is established or related: one rule for most packets. It drops what opens no
//!   connection where that touches an isolated pod (`STRANGE`), then jumps to the tree of sources and goes to the tree of
//!   destinations;
//! - such a tree (`EGRESS`, `INGRESS`) leads from the address of an isolated pod to the chain of its profile in `O(log n)`
//!   rules. It lets a pod reach itself: iptables cannot compare two addresses, so that is a rule for each pod, in front of
//!   the one that leads to its profile;
//! - the chain of a profile (`OUT`, `IN`) leads from protocol and port, by a tree if there are many, to the chain of one
//!   distinct set of peers (`TO`, `FROM`): one lookup in an ipset, whatever pods, blocks and exceptions it has, since in a
//!   `hash:net` the longest prefix decides; a few rules if there are few peers; a tree where the kernel has no ipset;
//! - what nothing allowed ends in `DENY-*`, one for each list of policies that isolate a pod in a direction, so that what is
//!   dropped is counted for them; without sets in `NETPOLC-DENY`.
//!
//! What is allowed returns to `FORWARD`: netpolc takes packets away, and never past the rules of others.
//!
//! `NETPOLC-PREROUTING` in table `mangle`, where alone iptables can look up the way back to a source, drops new packets
//! from the interface of a pod, or with a source that is a pod of this node, that came from elsewhere than that source.
//! `NETPOLC-LINK` drops what pods of one bridge send each other by addresses of the link, which nobody is asked about.
//!
//! Chains and sets are named by their content: equal content is one object, and a change of a policy changes the names on
//! the way to it and nothing else. The names without a hash are entries, or chains whose content never changes.

mod link;
mod names;
mod peers;
mod profile;
mod tree;

use crate::cost::{WorstCase, worst_case};
use crate::limits;
use link::{discovery, link};
use names::{Content, Object, chain, comment, set_object};
use netpolc_bundle::ipt::run::LINK_LOCAL;
use netpolc_bundle::ipt::{
    self, Chains, End, FORWARD, Family, Match, PODIF, PREROUTING, Prefix, Rule, Ruleset, Table, Target,
};
use netpolc_ir::addr;
use netpolc_ir::matrix::{Matrix, Peers, Profile};
use netpolc_ir::unit::{Class, Direction, Host, Origin};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use tree::{Item, Tree};

/// The chain that drops, where there are no sets.
pub const DENY: &str = "NETPOLC-DENY";
/// The chain of table `mangle` for packets that came from elsewhere than their source.
pub const SPOOF: &str = "NETPOLC-SPOOF";
/// The chain of table `mangle` for packets between neighbours, by their addresses of the link.
pub const LINK: &str = "NETPOLC-LINK";

/// What this backend cannot express.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// More of something than a node can hold.
    #[error("{what}: {count}; the limit is {limit}")]
    TooMany {
        /// What there is too much of, and where.
        what: String,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Chains would lead to chains more often than iptables-nft takes.
    #[error("{0}")]
    TooDeep(ipt::CheckError),
    /// A pod of the node has an address of a link, which no rule tells from a forged one.
    #[error("a pod has the address {0}, which is one of a link: iptables cannot tell who sends from there")]
    OfLink(std::net::IpAddr),
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

impl Plan {
    /// How many rules a packet meets at most.
    pub fn worst_case(&self) -> WorstCase {
        worst_case(&self.ruleset)
    }
}

/// A target and the objects that it needs.
#[derive(Debug, Clone)]
struct Planned {
    target: Target,
    objects: Rc<Vec<Object>>,
}

impl Planned {
    fn plain(target: Target) -> Planned {
        Planned { target, objects: Rc::default() }
    }

    /// The same, with what goes to [`DENY`] going to this chain.
    fn denying(self, deny: &str) -> Planned {
        if deny == DENY {
            return self;
        }
        // Chains that lead to others come after them.
        let mut names: HashMap<&str, String> = HashMap::from([(DENY, deny.to_owned())]);
        let mut objects = Vec::new();
        for object in self.objects.iter() {
            let renamed = object.leading(&names);
            names.insert(&object.name, renamed.name.clone());
            objects.push(renamed);
        }
        Planned { target: led(&self.target, &names), objects: Rc::new(objects) }
    }
}

/// Plans nodes of one matrix. What nodes share is made once.
pub struct Selector<'m> {
    matrix: &'m Matrix,
    origins: &'m dyn Origins,
    /// Whether the kernel has ipset.
    sets: bool,
    /// For each family, the addresses of each class, sorted.
    members: [Vec<Vec<u128>>; 2],
    /// For each set of peers, the rules that use it, by direction.
    peer_origins: HashMap<(Peers, Direction), BTreeSet<Origin>>,
    peers: HashMap<(Peers, Direction, Family), Planned>,
    profiles: HashMap<(Profile, Direction, Family), Planned>,
}

impl<'m> Selector<'m> {
    /// Prepares to plan the nodes of a matrix, for kernels with ipset (`hash:ip`, `hash:net` and the match `set`).
    pub fn new(matrix: &'m Matrix, origins: &'m dyn Origins) -> Selector<'m> {
        let mut members = [vec![Vec::new(); matrix.classes.len()], vec![Vec::new(); matrix.classes.len()]];
        for (addr, class) in matrix.endpoints.values().flat_map(|e| &e.addrs) {
            members[addr::Family::of(*addr) as usize][class.as_u32() as usize].push(addr::bits(*addr));
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
        let (peers, profiles) = (HashMap::new(), HashMap::new());
        Selector { matrix, origins, sets: true, members, peer_origins, peers, profiles }
    }

    /// The same for kernels without ipset: everything is rules.
    pub fn without_sets(mut self) -> Selector<'m> {
        self.sets = false;
        self.peers.clear();
        self.profiles.clear();
        self
    }

    /// Plans the rules of a node.
    ///
    /// # Errors
    /// If the rules do not fit a limit of iptables or ipset.
    pub fn plan(&mut self, host: Host) -> Result<Plan, Unsupported> {
        let mut plan = Plan { ruleset: Ruleset::default(), provenance: BTreeMap::new() };
        for family in Family::ALL {
            let (filter, mangle) = self.tables(host, family, &mut plan)?;
            plan.ruleset.tables.insert((family, Table::Filter), filter);
            plan.ruleset.tables.insert((family, Table::Mangle), mangle);
        }
        within_limits(&plan.ruleset, &self.matrix.hosts[host].name)?;
        let marker = ipt::marker(ipt::digest(&plan.ruleset));
        for family in Family::ALL {
            let filter = plan.ruleset.tables.entry((family, Table::Filter)).or_default();
            filter.insert(marker.clone(), Vec::new());
        }
        Ok(plan)
    }

    fn tables(
        &mut self,
        host: Host,
        family: Family,
        plan: &mut Plan,
    ) -> Result<(Chains, Chains), Unsupported> {
        let matrix = self.matrix;
        let mut builder = Builder {
            chains: Chains::new(),
            ruleset: &mut plan.ruleset,
            origins: BTreeMap::new(),
            seen: HashMap::new(),
        };
        let mut used: BTreeSet<(Profile, Direction)> = BTreeSet::new();
        let mut items: [Vec<Item>; 2] = Default::default();
        let (mut local, mut isolated) = (Vec::new(), Vec::new());
        for endpoint in matrix.endpoints.values().filter(|e| e.host == host) {
            let of_family = endpoint.addrs.iter().filter(|(a, _)| addr::Family::of(*a) == ir_family(family));
            let ours: Vec<(u128, Class)> = of_family.map(|(a, c)| (addr::bits(*a), *c)).collect();
            for &(addr, class) in &ours {
                local.push(addr);
                let profiles = matrix.classes[class].profiles;
                if profiles.iter().any(Option::is_some) {
                    isolated.push(addr);
                }
                for (direction, profile) in Direction::ALL.into_iter().zip(profiles) {
                    let Some(profile) = profile else { continue };
                    let planned = self.profile(profile, direction, family);
                    if planned.target != Target::Return {
                        if used.insert((profile, direction)) {
                            builder.objects(&planned.objects)?;
                        }
                        let others = ours.iter().map(|(other, _)| *other);
                        items[direction as usize].push(pod(family, direction, addr, others, planned.target));
                    }
                }
            }
        }
        let of_link = local.iter().find(|addr| family == Family::V6 && LINK_LOCAL.contains(family, **addr));
        if let Some(addr) = of_link {
            return Err(Unsupported::OfLink(family.addr(*addr)));
        }
        let mangle = self.mangle(&mut builder, family, local)?;
        self.filter(&mut builder, family, isolated, items)?;
        let Builder { mut chains, origins, .. } = builder;
        for (name, origins) in origins {
            let text = comment(self.origins, origins.iter().copied());
            if let (Some(text), Some(rule)) =
                (text, chains.get_mut(&name).and_then(|rules| rules.first_mut()))
            {
                rule.comment.get_or_insert(text);
            }
            let known = plan.provenance.entry(name).or_default();
            known.extend(origins);
            known.sort_unstable();
            known.dedup();
        }
        Ok((chains, mangle))
    }

    /// The fixed part of `filter`: the entry and what it leads to first.
    fn filter(
        &self,
        builder: &mut Builder<'_>,
        family: Family,
        isolated: Vec<u128>,
        [ingress, egress]: [Vec<Item>; 2],
    ) -> Result<(), Unsupported> {
        let mut entry = vec![rule(vec![Match::Known], Target::Return)];
        if !isolated.is_empty() {
            let strange = self.strange(builder, family, &isolated)?;
            entry.push(rule(vec![Match::NotTracked], Target::Goto(strange.clone())));
            for (protocol, strays) in [(6, Match::TcpNotSyn), (132, Match::SctpNotInit)] {
                entry.push(rule(vec![Match::Protocol(protocol), strays], Target::Goto(strange.clone())));
            }
        }
        // A packet that the first tree lets through must come back for the second.
        let trees = [("EGRESS", End::Src, egress), ("INGRESS", End::Dst, ingress)];
        for (kind, end, items) in trees.into_iter().filter(|t| !t.2.is_empty()) {
            let mut tree = Tree { family, end, kind, origins: Rc::default(), objects: Vec::new() };
            let rules = tree.root(items, None, limits::POD_DEPTH);
            let name = tree.chain(rules);
            builder.objects(&tree.objects)?;
            let target = if end == End::Src { Target::Jump(name) } else { Target::Goto(name) };
            entry.push(rule(Vec::new(), target));
        }
        builder.chains.insert(FORWARD.to_owned(), entry);
        if !self.sets {
            builder.chains.insert(DENY.to_owned(), deny());
        }
        Ok(())
    }

    /// The chain for what opens no connection.
    fn strange(
        &self,
        builder: &mut Builder<'_>,
        family: Family,
        isolated: &[u128],
    ) -> Result<String, Unsupported> {
        let mut rules = discovery(family);
        for (end, text) in [(End::Src, "from an isolated pod"), (End::Dst, "to an isolated pod")] {
            let mut tree = Tree { family, end, kind: "STRANGE", origins: Rc::default(), objects: Vec::new() };
            let mut found = peers::addresses(self.sets, &mut tree, isolated.iter().copied(), Target::Drop);
            let drops = found.iter_mut().filter(|r| r.target == Target::Drop);
            drops.for_each(|r| r.comment = Some(format!("opens no connection, {text}")));
            if end == End::Src && found.iter().any(|r| matches!(r.target, Target::Goto(_))) {
                // What the tree of sources does not drop must come back for the tree of destinations.
                let root = tree.chain(found);
                found = vec![rule(Vec::new(), Target::Jump(root))];
            }
            builder.objects(&tree.objects)?;
            rules.extend(found);
        }
        let object = chain("STRANGE", rules, Rc::default());
        let name = object.name.clone();
        builder.objects(&[object])?;
        Ok(name)
    }

    /// Table `mangle`: spoofed sources.
    fn mangle(
        &self,
        builder: &mut Builder<'_>,
        family: Family,
        local: Vec<u128>,
    ) -> Result<Chains, Unsupported> {
        let mut tree =
            Tree { family, end: End::Src, kind: "LOCAL", origins: Rc::default(), objects: Vec::new() };
        let mut rules = vec![rule(Vec::new(), Target::Jump(PODIF.to_owned()))];
        rules.extend(peers::addresses(self.sets, &mut tree, local, Target::Drop));
        let mut chains = Chains::new();
        for Object { name, content, .. } in tree.objects {
            match content {
                Content::Set(set) => builder.set(&name, &set)?,
                Content::Chain(rules) => drop(chains.insert(name, rules.to_vec())),
            }
        }
        let known = rule(vec![Match::Known], Target::Return);
        let spoofed = rule(vec![Match::ReversePathFails], Target::Goto(SPOOF.to_owned()));
        let mut entry = vec![known, spoofed];
        if family == Family::V6 {
            let from = Match::Addr(End::Src, LINK_LOCAL);
            entry.push(rule(vec![from, Match::NotLocal], Target::Goto(LINK.to_owned())));
            chains.insert(LINK.to_owned(), link());
        }
        chains.insert(PREROUTING.to_owned(), entry);
        chains.insert(SPOOF.to_owned(), rules);
        chains.insert(PODIF.to_owned(), Vec::new());
        Ok(chains)
    }
}

/// The family as the IR calls it.
fn ir_family(family: Family) -> addr::Family {
    match family {
        Family::V4 => addr::Family::V4,
        Family::V6 => addr::Family::V6,
    }
}

/// A pod in a tree: it reaches itself, everything else is for its profile.
fn pod(
    family: Family,
    direction: Direction,
    addr: u128,
    own: impl Iterator<Item = u128>,
    target: Target,
) -> Item {
    let other = match direction {
        Direction::Ingress => End::Src,
        Direction::Egress => End::Dst,
    };
    let itself = |own| rule(vec![Match::Addr(other, Prefix::host(family, own))], Target::Return);
    let mut rules: Vec<Rule> = own.map(itself).collect();
    rules.push(rule(Vec::new(), target));
    Item { prefix: Prefix::host(family, addr), rules }
}

fn rule(matches: Vec<Match>, target: Target) -> Rule {
    Rule { matches, target, comment: None }
}

fn deny() -> Vec<Rule> {
    vec![Rule { comment: Some("no policy allows it".to_owned()), ..rule(Vec::new(), Target::Drop) }]
}

fn within_limits(ruleset: &Ruleset, node: &str) -> Result<(), Unsupported> {
    let check = |what: String, count: usize, limit: usize| {
        if count <= limit { Ok(()) } else { Err(Unsupported::TooMany { what, count, limit }) }
    };
    for (name, set) in &ruleset.sets {
        check(format!("elements of {name}"), set.elements.len(), limits::SET_ELEMENTS)?;
    }
    let elements = ruleset.sets.values().map(|s| s.elements.len()).sum();
    check(format!("elements of all sets of node {node}"), elements, limits::TOTAL_ELEMENTS)?;
    check(format!("sets of node {node}"), ruleset.sets.len(), limits::IPSETS)?;
    let rules = ruleset.tables.values().flat_map(Chains::values).map(Vec::len).sum();
    check(format!("rules of node {node}"), rules, limits::RULES)?;
    let objects = ruleset.sets.len() + ruleset.tables.values().map(Chains::len).sum::<usize>();
    check(format!("chains and sets of node {node}"), objects, limits::OBJECTS)?;
    ipt::check(ruleset).map_err(Unsupported::TooDeep)
}

/// Collects the objects of one family.
struct Builder<'p> {
    /// Of table `filter`.
    chains: Chains,
    ruleset: &'p mut Ruleset,
    origins: BTreeMap<String, BTreeSet<Origin>>,
    /// For each name, the lists of origins that it came with.
    seen: HashMap<String, BTreeSet<*const Vec<Origin>>>,
}

impl Builder<'_> {
    fn objects(&mut self, objects: &[Object]) -> Result<(), Unsupported> {
        for Object { name, content, origins } in objects {
            // Many profiles share large trees: what was taken once is not looked at again.
            if !self.seen.entry(name.clone()).or_default().insert(Rc::as_ptr(origins)) {
                continue;
            }
            self.origins.entry(name.clone()).or_default().extend(origins.iter());
            match content {
                Content::Set(set) => self.set(name, set)?,
                Content::Chain(rules) => {
                    let known = self.chains.entry(name.clone()).or_insert_with(|| rules.to_vec());
                    if *known != **rules {
                        return Err(Unsupported::NameCollision(name.clone()));
                    }
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &str, set: &ipt::Set) -> Result<(), Unsupported> {
        let known = self.ruleset.sets.entry(name.to_owned()).or_insert_with(|| set.clone());
        if known == set { Ok(()) } else { Err(Unsupported::NameCollision(name.to_owned())) }
    }
}

/// Where a target leads if chains are called otherwise.
fn led(target: &Target, names: &HashMap<&str, String>) -> Target {
    let name = |name: &str| names.get(name).cloned();
    match target {
        Target::Goto(chain) => name(chain).map_or_else(|| target.clone(), Target::Goto),
        Target::Jump(chain) => name(chain).map_or_else(|| target.clone(), Target::Jump),
        Target::Return | Target::Drop => target.clone(),
    }
}
