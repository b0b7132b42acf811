//! The chain of one distinct set of peers.

use super::{Content, Object, Selector, Target, addr_set, chain_name, rule, set_name};
use crate::limits;
use netpolc_bundle::nft::{BLOCKS, Chain, Elements, Field, Key, Match, Outcome, Rule, Set, Verdict};
use netpolc_ir::addr::{AddrSet, Family, Ranges, bits};
use netpolc_ir::matrix::{PeerSet, Peers};
use netpolc_ir::passes::cidr_cover::cover;
use netpolc_ir::unit::{Direction, Origin};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Where a packet goes whose port leads to a set of peers, for whatever chain drops.
#[derive(Debug)]
pub(super) enum PeersChain {
    /// Everyone of the family may.
    All,
    /// Nobody may.
    Nobody,
    /// What looks at the peer.
    Some(Parts),
}

impl Selector<'_> {
    /// Where a packet goes whose port leads to this set of peers: `return` if everyone of the family may, `deny` if
    /// nobody may, else a chain that looks at the peer.
    pub(super) fn peers(
        &mut self,
        peers: Peers,
        direction: Direction,
        family: Family,
        deny: &Verdict,
    ) -> Target {
        let key = (peers, direction, family);
        let made = match self.peers.get(&key) {
            Some(made) => made.clone(),
            None => {
                let made = Rc::new(self.build_peers(peers, direction, family));
                self.peers.insert(key, made.clone());
                made
            }
        };
        let plain = |verdict| Target { verdict, objects: Rc::default() };
        match &*made {
            PeersChain::All => plain(Verdict::Return),
            PeersChain::Nobody => plain(deny.clone()),
            PeersChain::Some(parts) => parts.target(deny),
        }
    }

    fn build_peers(&self, peers: Peers, direction: Direction, family: Family) -> PeersChain {
        let set = &self.matrix.peers[peers];
        let Exact { pods, not } = self.exact(set, family);
        let blocks = set.unbound.family(family);
        if pods.is_empty() && blocks.is_empty() {
            return PeersChain::Nobody;
        }
        if not.is_empty() && *blocks == Ranges::new(vec![(0, family.max())]) {
            return PeersChain::All;
        }
        let origins: Vec<Origin> =
            self.peer_origins.get(&(peers, direction)).into_iter().flatten().copied().collect();
        let mut parts =
            Parts { direction, objects: Vec::new(), rules: Vec::new(), origins: Rc::new(origins) };
        if !not.is_empty() {
            parts.addresses("not", not, DENIED);
        }
        if !pods.is_empty() {
            parts.addresses("pods", pods, Verdict::Return);
        }
        parts.blocks(blocks, family);
        parts.rules.push(rule(Vec::new(), DENIED));
        PeersChain::Some(parts)
    }

    /// The addresses of the peers, if they are pods alone; else nothing.
    pub(super) fn listed(&self, peers: Peers, family: Family) -> Option<Vec<u128>> {
        let set = &self.matrix.peers[peers];
        set.unbound.family(family).is_empty().then(|| self.exact(set, family).pods)
    }

    /// The pods that need an element of their own: those whose class says something else than the blocks do.
    fn exact(&self, set: &PeerSet, family: Family) -> Exact {
        let blocks = set.unbound.family(family);
        let mut exact = Exact::default();
        let members = &self.members[family as usize];
        if blocks.is_empty() {
            exact.pods = set.classes.iter().flat_map(|class| members[class].iter().copied()).collect();
            exact.pods.sort_unstable();
            return exact;
        }
        for (class, members) in members.iter().enumerate() {
            let allowed = set.classes.contains(class);
            for &addr in members {
                match (allowed, blocks.contains(addr)) {
                    (true, false) => exact.pods.push(addr),
                    (false, true) => exact.not.push(addr),
                    _ => {}
                }
            }
        }
        exact.pods.sort_unstable();
        exact.not.sort_unstable();
        exact
    }
}

/// Addresses that are told apart one by one.
#[derive(Default)]
struct Exact {
    /// Allowed, and in no allowed block.
    pods: Vec<u128>,
    /// Not allowed, but in an allowed block.
    not: Vec<u128>,
}

/// What stands for the way to the chain that drops, as long as that has no name.
const DENIED: Verdict = Verdict::Drop;

/// The objects and rules of a chain in the making.
#[derive(Debug)]
pub(super) struct Parts {
    direction: Direction,
    objects: Vec<Object>,
    rules: Vec<Rule>,
    origins: Rc<Vec<Origin>>,
}

impl Parts {
    /// The chain, and the sets that it needs. What it denies goes to `deny`.
    fn target(&self, deny: &Verdict) -> Target {
        let mut objects: Vec<Object> = Vec::new();
        let mut rules = self.rules.clone();
        for object in &self.objects {
            let leading = object.leading(deny);
            for rule in &mut rules {
                if let Outcome::Vmap(_, name) = &mut rule.outcome
                    && *name == object.name
                {
                    name.clone_from(&leading.name);
                }
            }
            objects.push(leading);
        }
        for rule in rules.iter_mut().filter(|rule| rule.outcome == Outcome::Verdict(DENIED)) {
            rule.outcome = Outcome::Verdict(deny.clone());
        }
        let kind = match self.direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let chain = Chain { rules, ..Chain::default() };
        let name = chain_name(kind, &chain);
        let (content, origins) = (Content::Chain(Rc::new(chain)), self.origins.clone());
        objects.push(Object { name: name.clone(), content, origins });
        Target { verdict: Verdict::Goto(name), objects: Rc::new(objects) }
    }

    /// The field that holds the peer's address, cut to a prefix length.
    fn field(&self, len: Option<u8>) -> Field {
        match (self.direction, len) {
            (Direction::Ingress, None) => Field::Saddr,
            (Direction::Egress, None) => Field::Daddr,
            (Direction::Ingress, Some(len)) => Field::SaddrPrefix(len),
            (Direction::Egress, Some(len)) => Field::DaddrPrefix(len),
        }
    }

    fn set(&mut self, kind: &str, set: Set) -> String {
        let name = set_name(kind, &set);
        let content = Content::Set(Rc::new(set));
        self.objects.push(Object { name: name.clone(), content, origins: self.origins.clone() });
        name
    }

    fn addresses(&mut self, kind: &str, addrs: Vec<u128>, verdict: Verdict) {
        let set = Set { elements: Elements::Addrs(addrs), ..addr_set(None) };
        let name = self.set(kind, set);
        self.rules.push(rule(vec![Match::InSet(vec![self.field(None)], name)], verdict));
    }

    /// Blocks as one hash for each prefix length, longest first: the first hit is the longest prefix. With too many
    /// lengths, one interval set.
    fn blocks(&mut self, ranges: &Ranges, family: Family) {
        if ranges.is_empty() {
            return;
        }
        let mut alone = AddrSet::default();
        match family {
            Family::V4 => alone.v4 = ranges.clone(),
            Family::V6 => alone.v6 = ranges.clone(),
        }
        let mut by_len: BTreeMap<u8, BTreeMap<Vec<Key>, Option<Verdict>>> = BTreeMap::new();
        for block in cover(&alone) {
            let deny = block.except.iter().map(|e| (*e, DENIED));
            for (cidr, verdict) in [(block.cidr, Verdict::Return)].into_iter().chain(deny) {
                let base = bits(cidr.addr());
                by_len
                    .entry(cidr.prefix_len())
                    .or_default()
                    .insert(vec![Key::Addr(base, base)], Some(verdict));
            }
        }
        if by_len.len() > limits::MASKED_LENGTHS {
            let elements =
                ranges.as_slice().iter().map(|&(lo, hi)| (vec![Key::Addr(lo, hi)], None)).collect();
            let set = Set { interval: true, elements: Elements::General(elements), ..addr_set(None) };
            let name = self.set(BLOCKS, set);
            self.rules.push(rule(vec![Match::InSet(vec![self.field(None)], name)], Verdict::Return));
            return;
        }
        for (len, elements) in by_len.into_iter().rev() {
            if len == 0 {
                self.rules.push(rule(Vec::new(), Verdict::Return));
                continue;
            }
            let set = Set { map: true, elements: Elements::General(elements), ..addr_set(None) };
            let name = self.set(&format!("{BLOCKS}{len}"), set);
            let field = self.field((len < family.bits()).then_some(len));
            self.rules.push(Rule {
                outcome: Outcome::Vmap(vec![field], name),
                ..rule(Vec::new(), Verdict::Return)
            });
        }
    }
}

impl Object {
    /// A map whose elements lead to `deny` where they lead to [`DENIED`]; other objects as they are.
    fn leading(&self, deny: &Verdict) -> Object {
        let Content::Set(set) = &self.content else { return self.clone() };
        let Elements::General(elements) = &set.elements else { return self.clone() };
        if !elements.values().any(|verdict| *verdict == Some(DENIED)) {
            return self.clone();
        }
        let lead = |verdict: &Option<Verdict>| match verdict {
            Some(DENIED) => Some(deny.clone()),
            other => other.clone(),
        };
        let elements = elements.iter().map(|(key, verdict)| (key.clone(), lead(verdict))).collect();
        let set = Set { elements: Elements::General(elements), ..(**set).clone() };
        let kind = self.name.rsplit_once('_').map_or(self.name.as_str(), |(kind, _)| kind);
        let (name, origins) = (set_name(kind, &set), self.origins.clone());
        Object { name, content: Content::Set(Rc::new(set)), origins }
    }
}
