//! The chain of one distinct set of peers.

use super::{Content, DENY, Object, Selector, Target, Unsupported, addr_set, chain_name, rule, set_name};
use crate::limits;
use netpolc_bundle::nft::{BLOCKS, Chain, Elements, Field, Key, Match, Outcome, Rule, Set, Verdict};
use netpolc_ir::addr::{AddrSet, Family, Ranges, bits};
use netpolc_ir::matrix::{PeerSet, Peers};
use netpolc_ir::passes::cidr_cover::cover;
use netpolc_ir::unit::{Direction, Origin};
use std::collections::BTreeMap;
use std::rc::Rc;

impl Selector<'_> {
    /// Where a packet goes whose port leads to this set of peers: `return` if everyone of the family may, `deny` if
    /// nobody may, else a chain that looks at the peer.
    pub(super) fn peers(
        &mut self,
        peers: Peers,
        direction: Direction,
        family: Family,
    ) -> Result<Target, Unsupported> {
        if let Some(target) = self.peers.get(&(peers, direction, family)) {
            return Ok(target.clone());
        }
        let target = self.build_peers(peers, direction, family);
        self.peers.insert((peers, direction, family), target.clone());
        Ok(target)
    }

    fn build_peers(&self, peers: Peers, direction: Direction, family: Family) -> Target {
        let set = &self.matrix.peers[peers];
        let Exact { pods, not } = self.exact(set, family);
        let blocks = set.unbound.family(family);
        let plain = |verdict| Target { verdict, objects: Rc::default() };
        if pods.is_empty() && blocks.is_empty() {
            return plain(Verdict::Goto(DENY.to_owned()));
        }
        if not.is_empty() && *blocks == Ranges::new(vec![(0, family.max())]) {
            return plain(Verdict::Return);
        }
        let origins: Vec<Origin> =
            self.peer_origins.get(&(peers, direction)).into_iter().flatten().copied().collect();
        let mut parts =
            Parts { direction, objects: Vec::new(), rules: Vec::new(), origins: Rc::new(origins) };
        if !not.is_empty() {
            parts.addresses("not", not, Verdict::Goto(DENY.to_owned()));
        }
        if !pods.is_empty() {
            parts.addresses("pods", pods, Verdict::Return);
        }
        parts.blocks(blocks, family);
        parts.rules.push(rule(Vec::new(), Verdict::Goto(DENY.to_owned())));
        let kind = match direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let chain = Chain { rules: parts.rules, ..Chain::default() };
        let name = chain_name(kind, &chain);
        let (mut objects, origins) = (parts.objects, parts.origins);
        objects.push(Object { name: name.clone(), content: Content::Chain(Rc::new(chain)), origins });
        Target { verdict: Verdict::Goto(name), objects: Rc::new(objects) }
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

/// The objects and rules of a chain in the making.
struct Parts {
    direction: Direction,
    objects: Vec<Object>,
    rules: Vec<Rule>,
    origins: Rc<Vec<Origin>>,
}

impl Parts {
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
            let deny = block.except.iter().map(|e| (*e, Verdict::Goto(DENY.to_owned())));
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
