//! The chain of one distinct set of peers.

use super::tree::{Item, Tree};
use super::{DENY, Object, Planned, Selector, chain, rule, set_object};
use crate::limits;
use netpolc_bundle::ipt::{End, Family, Match, Prefix, Rule, SetKind, Target};
use netpolc_ir::addr::{AddrSet, Ranges, bits};
use netpolc_ir::matrix::{PeerSet, Peers};
use netpolc_ir::passes::cidr_cover::cover;
use netpolc_ir::unit::{Direction, Origin};
use std::collections::BTreeMap;
use std::rc::Rc;

impl Selector<'_> {
    /// Where a packet goes whose port leads to this set of peers: `RETURN` if everyone of the family may, `DENY` if
    /// nobody may, else a chain that looks at the peer.
    pub(super) fn peers(&mut self, peers: Peers, direction: Direction, family: Family) -> Planned {
        if let Some(planned) = self.peers.get(&(peers, direction, family)) {
            return planned.clone();
        }
        let planned = self.build_peers(peers, direction, family);
        self.peers.insert((peers, direction, family), planned.clone());
        planned
    }

    fn build_peers(&self, peers: Peers, direction: Direction, family: Family) -> Planned {
        let set = &self.matrix.peers[peers];
        let table = self.prefixes(set, family);
        if table.values().all(|matches| !matches) {
            return Planned::plain(Target::Goto(DENY.to_owned()));
        }
        if table.get(&Prefix { base: 0, len: 0 }) == Some(&true) && table.len() == 1 {
            return Planned::plain(Target::Return);
        }
        let origins = self.peer_origins.get(&(peers, direction)).into_iter().flatten().copied().collect();
        let origins: Rc<Vec<Origin>> = Rc::new(origins);
        let (kind, end) = match direction {
            Direction::Ingress => ("FROM", End::Src),
            Direction::Egress => ("TO", End::Dst),
        };
        let deny = || Target::Goto(DENY.to_owned());
        if self.sets && table.len() > limits::LEAF {
            let set = match_set(family, end, table, &origins);
            let rules = vec![rule(set.1, Target::Return), rule(Vec::new(), deny())];
            let last = chain(kind, rules, origins);
            let target = Target::Goto(last.name.clone());
            return Planned { target, objects: Rc::new(vec![set.0, last]) };
        }
        let mut tree = Tree { family, end, kind, origins, objects: Vec::new() };
        let verdict = |matches: bool| if matches { Target::Return } else { deny() };
        let item = |(prefix, matches)| Item { prefix, rules: vec![rule(Vec::new(), verdict(matches))] };
        let rules = tree.root(table.into_iter().map(item).collect(), Some(deny()), limits::PEER_DEPTH);
        let target = Target::Goto(tree.chain(rules));
        Planned { target, objects: Rc::new(tree.objects) }
    }

    /// The peers of a family as prefixes that match or do not; the longest decides, and what has none does not match.
    /// Only pods whose class says something else than the blocks do have an entry of their own.
    fn prefixes(&self, set: &PeerSet, family: Family) -> BTreeMap<Prefix, bool> {
        let blocks = set.unbound.family(super::ir_family(family));
        let mut table = block_prefixes(blocks, family);
        let members = &self.members[family as usize];
        if blocks.is_empty() {
            let pods = set.classes.iter().flat_map(|class| members[class].iter());
            table.extend(pods.map(|&addr| (Prefix::host(family, addr), true)));
            return table;
        }
        for (class, members) in members.iter().enumerate() {
            let allowed = set.classes.contains(class);
            let others = members.iter().filter(|addr| blocks.contains(**addr) != allowed);
            table.extend(others.map(|&addr| (Prefix::host(family, addr), allowed)));
        }
        table
    }
}

/// Blocks as a table of prefixes.
fn block_prefixes(blocks: &Ranges, family: Family) -> BTreeMap<Prefix, bool> {
    let mut alone = AddrSet::default();
    match family {
        Family::V4 => alone.v4 = blocks.clone(),
        Family::V6 => alone.v6 = blocks.clone(),
    }
    let mut table = BTreeMap::new();
    for block in cover(&alone) {
        let except = block.except.iter().map(|e| (e, false));
        for (cidr, matches) in [(&block.cidr, true)].into_iter().chain(except) {
            table.insert(Prefix { base: bits(cidr.addr()), len: cidr.prefix_len() }, matches);
        }
    }
    table
}

/// A set with such a table, and the match on it.
fn match_set(
    family: Family,
    end: End,
    mut table: BTreeMap<Prefix, bool>,
    origins: &Rc<Vec<Origin>>,
) -> (Object, Vec<Match>) {
    // ipset knows no prefix of length 0: two halves do the same, where there is none yet.
    if let Some(matches) = table.remove(&Prefix { base: 0, len: 0 }) {
        let half = 1 << (family.bits() - 1);
        table.entry(Prefix { base: 0, len: 1 }).or_insert(matches);
        table.entry(Prefix { base: half, len: 1 }).or_insert(matches);
    }
    let single =
        |(prefix, matches): (&Prefix, &bool)| *matches && prefix.len == family.bits() && prefix.base != 0;
    let kind = if table.iter().all(single) { SetKind::HashIp } else { SetKind::HashNet };
    let object = set_object(family, kind, table, origins.clone());
    let found = Match::InSet(end, object.name.clone());
    (object, vec![found])
}

/// Rules that apply a target to the packets whose address is one of these: a lookup in a set, or a tree.
pub(super) fn addresses(
    sets: bool,
    tree: &mut Tree,
    addrs: impl IntoIterator<Item = u128>,
    target: Target,
) -> Vec<Rule> {
    let family = tree.family;
    let table: BTreeMap<Prefix, bool> =
        addrs.into_iter().map(|addr| (Prefix::host(family, addr), true)).collect();
    if sets && table.len() > limits::LEAF {
        let (object, matches) = match_set(family, tree.end, table, &tree.origins);
        tree.objects.push(object);
        return vec![rule(matches, target)];
    }
    let item = |prefix| Item { prefix, rules: vec![rule(Vec::new(), target.clone())] };
    let items = table.into_keys().map(item).collect();
    tree.root(items, None, limits::POD_DEPTH)
}
