//! The chain of one profile: from protocol and port to the set of peers.

use super::{Content, DENY, Object, Selector, Target, Unsupported, chain_name, rule, set_name};
use netpolc_bundle::nft::{Chain, Elements, Field, Key, KeyType, Match, Outcome, Rule, Set, Verdict};
use netpolc_ir::addr::Family;
use netpolc_ir::matrix::{Cell, Profile, ProfileData};
use netpolc_ir::ports::Transport;
use netpolc_ir::unit::{Direction, Origin};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Elements of a verdict map.
type Elems = BTreeMap<Vec<Key>, Option<Verdict>>;

/// Where packets go, by protocol and port, in one family.
#[derive(Default)]
struct Dispatch {
    /// Single ports that differ from their protocol's default.
    ports: Elems,
    /// Ranges of ports that differ from their protocol's default.
    ranges: BTreeMap<Transport, Elems>,
    /// Protocols whose default differs from that of the others.
    protocols: Elems,
}

impl Selector<'_> {
    /// Where the packets of a pod with this profile go.
    pub(super) fn profile(
        &mut self,
        profile: Profile,
        direction: Direction,
        family: Family,
    ) -> Result<Target, Unsupported> {
        if let Some(target) = self.profiles.get(&(profile, direction, family)) {
            return Ok(target.clone());
        }
        let target = self.build_profile(&self.matrix.profiles[profile], direction, family)?;
        self.profiles.insert((profile, direction, family), target.clone());
        Ok(target)
    }

    fn build_profile(
        &mut self,
        data: &ProfileData,
        direction: Direction,
        family: Family,
    ) -> Result<Target, Unsupported> {
        let mut objects: Vec<Object> = Vec::new();
        let mut target = |this: &mut Self, cell: &Cell| -> Result<Verdict, Unsupported> {
            let target = this.peers(cell.peers, direction, family)?;
            objects.extend(target.objects.iter().cloned());
            Ok(target.verdict)
        };
        let other = target(self, &data.other)?;
        let mut dispatch = Dispatch::default();
        for (transport, cells) in Transport::ALL.into_iter().zip(&data.transports) {
            let default = match widest(cells) {
                Some(cell) => target(self, cell)?,
                None => other.clone(),
            };
            for cell in cells {
                let verdict = target(self, cell)?;
                if verdict != default {
                    dispatch.add(transport, cell.lo, cell.hi, verdict);
                }
            }
            if default != other {
                dispatch.protocols.insert(vec![Key::Proto(transport.number())], Some(default));
            }
        }
        // A profile that denies everything keeps a chain of its own, whose comment names the policies behind it.
        let plain = dispatch.ports.is_empty() && dispatch.ranges.is_empty() && dispatch.protocols.is_empty();
        if plain && other != Verdict::Goto(DENY.to_owned()) {
            return Ok(Target { verdict: other, objects: Rc::new(objects) });
        }
        Ok(profile_chain(data, direction, dispatch, other, objects))
    }
}

/// The chain of a profile that looks at protocol and port.
fn profile_chain(
    data: &ProfileData,
    direction: Direction,
    dispatch: Dispatch,
    other: Verdict,
    mut objects: Vec<Object>,
) -> Target {
    let origins: BTreeSet<Origin> =
        data.origins.iter().chain(data.cells().flat_map(|(_, c)| &c.origins)).copied().collect();
    let origins: Rc<Vec<Origin>> = Rc::new(origins.into_iter().collect());
    let mut rules = Vec::new();
    let mut lookup =
        |kind: &str, key: Vec<KeyType>, interval: bool, matches: Vec<Match>, fields, elements: Elems| {
            if elements.is_empty() {
                return;
            }
            let elements = Elements::General(elements);
            let set = Set { key, map: true, interval, comment: None, elements };
            let name = set_name(kind, &set);
            let content = Content::Set(Rc::new(set));
            objects.push(Object { name: name.clone(), content, origins: origins.clone() });
            rules.push(Rule {
                matches,
                outcome: Outcome::Vmap(fields, name),
                ..rule(Vec::new(), Verdict::Return)
            });
        };
    let (proto, service) = (KeyType::Proto, KeyType::Service);
    let both = vec![Field::L4Proto, Field::Dport];
    lookup("ports", vec![proto, service], false, Vec::new(), both, dispatch.ports);
    for (transport, elements) in dispatch.ranges {
        let matches = vec![Match::L4Proto(transport.number())];
        lookup("ranges", vec![service], true, matches, vec![Field::Dport], elements);
    }
    lookup("protos", vec![proto], false, Vec::new(), vec![Field::L4Proto], dispatch.protocols);
    // What falls through a chain that was gone to returns to the caller, which is what `return` does.
    if other != Verdict::Return {
        rules.push(rule(Vec::new(), other));
    }
    let kind = match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    };
    let chain = Chain { rules, ..Chain::default() };
    let name = chain_name(kind, &chain);
    objects.push(Object { name: name.clone(), content: Content::Chain(Rc::new(chain)), origins });
    debug_assert_ne!(name, DENY);
    Target { verdict: Verdict::Goto(name), objects: Rc::new(objects) }
}

impl Dispatch {
    fn add(&mut self, transport: Transport, lo: u16, hi: u16, verdict: Verdict) {
        if lo == hi {
            self.ports.insert(vec![Key::Proto(transport.number()), Key::Service(lo, lo)], Some(verdict));
        } else {
            let ranges = self.ranges.entry(transport).or_default();
            ranges.insert(vec![Key::Service(lo, hi)], Some(verdict));
        }
    }
}

/// The cell that answers for the most ports: the default of its protocol.
fn widest(cells: &[Cell]) -> Option<&Cell> {
    let mut width: BTreeMap<_, u32> = BTreeMap::new();
    for cell in cells {
        *width.entry(cell.peers).or_default() += u32::from(cell.hi - cell.lo) + 1;
    }
    let best = width.into_iter().max_by_key(|&(peers, width)| (width, std::cmp::Reverse(peers)))?.0;
    cells.iter().find(|c| c.peers == best)
}
