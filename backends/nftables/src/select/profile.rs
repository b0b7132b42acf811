//! The chain of one profile: from protocol and port to the set of peers.

use super::fixed::deny_chain;
use super::{Content, Object, Selector, Target, chain_name, clean, content_name, rule, set_name};
use crate::limits::{COMMENT_BYTES, OPEN_ELEMENTS};
use netpolc_bundle::comment::not_allowed;
use netpolc_bundle::nft::{Chain, Elements, Field, Key, KeyType, Match, Outcome, Rule, Set, Verdict};
use netpolc_ir::addr::Family;
use netpolc_ir::matrix::{Cell, Peers, Profile, ProfileData};
use netpolc_ir::ports::Transport;
use netpolc_ir::unit::{Direction, Origin};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

/// Elements of a verdict map.
type Elems = BTreeMap<Vec<Key>, Option<Verdict>>;

/// Where packets go, by protocol and port, in one family.
#[derive(Default)]
struct Dispatch {
    /// Protocol, port and peer of what is allowed where nothing else on that port is.
    open: Elems,
    /// Single ports that differ from their protocol's default.
    ports: Elems,
    /// Ranges of ports that differ from their protocol's default.
    ranges: BTreeMap<Transport, Elems>,
    /// Protocols whose default differs from that of the others.
    protocols: Elems,
}

impl Selector<'_> {
    /// Where the packets of a pod with this profile go.
    pub(super) fn profile(&mut self, profile: Profile, direction: Direction, family: Family) -> Target {
        if let Some(target) = self.profiles.get(&(profile, direction, family)) {
            return target.clone();
        }
        let target = self.build_profile(&self.matrix.profiles[profile], direction, family);
        self.profiles.insert((profile, direction, family), target.clone());
        target
    }

    fn build_profile(&mut self, data: &ProfileData, direction: Direction, family: Family) -> Target {
        let denying = self.denying(data, direction);
        let deny = Verdict::Goto(denying.name.clone());
        let origins = denying.origins.clone();
        let mut objects: Vec<Object> = vec![denying];
        let mut made: HashMap<Peers, Verdict> = HashMap::new();
        let mut target = |this: &mut Self, peers: Peers| -> Verdict {
            let make = || {
                let target = this.peers(peers, direction, family, &deny);
                objects.extend(target.objects.iter().cloned());
                target.verdict
            };
            made.entry(peers).or_insert_with(make).clone()
        };
        let other = target(self, data.other.peers);
        let mut dispatch = Dispatch { open: self.open(data, family), ..Dispatch::default() };
        for (transport, cells) in Transport::ALL.into_iter().zip(&data.transports) {
            let widest = widest(cells).map_or(data.other.peers, |cell| cell.peers);
            let default = target(self, widest);
            for cell in cells.iter().filter(|cell| cell.peers != widest) {
                if dispatch.opens(transport, cell) {
                    continue;
                }
                let verdict = target(self, cell.peers);
                if verdict != default {
                    dispatch.add(transport, cell.lo, cell.hi, verdict);
                }
            }
            if default != other {
                dispatch.protocols.insert(vec![Key::Proto(transport.number())], Some(default));
            }
        }
        // A profile that denies everything keeps a chain of its own, whose comment names the policies behind it.
        if dispatch.is_empty() && other != deny {
            if other == Verdict::Return {
                objects.clear();
            }
            return Target { verdict: other, objects: Rc::new(objects) };
        }
        profile_chain(origins, direction, dispatch, other, objects)
    }

    /// The chain that drops what a profile does not allow. Its name, and its comment, are those of the policies, so that it
    /// stays while they change, and says for whom it counts.
    fn denying(&self, data: &ProfileData, direction: Direction) -> Object {
        let origins: BTreeSet<Origin> =
            data.origins.iter().chain(data.cells().flat_map(|(_, c)| &c.origins)).copied().collect();
        let origins: Rc<Vec<Origin>> = Rc::new(origins.into_iter().collect());
        let policies: BTreeSet<String> =
            origins.iter().map(|origin| clean(&self.origins.policy(*origin))).collect();
        let name = content_name("deny", &(direction, &policies));
        let chain = deny_chain(not_allowed(&direction.to_string(), &policies, COMMENT_BYTES));
        Object { name, content: Content::Chain(Rc::new(chain)), origins }
    }

    /// Protocol, port and peer of single ports that some pods may use, where on other ports of the protocol nobody may. None
    /// if they are many.
    fn open(&self, data: &ProfileData, family: Family) -> Elems {
        let mut open = Elems::new();
        for (transport, cells) in Transport::ALL.into_iter().zip(&data.transports) {
            let widest = widest(cells).map_or(data.other.peers, |cell| cell.peers);
            if self.listed(widest, family).is_none_or(|pods| !pods.is_empty()) {
                continue;
            }
            for cell in cells.iter().filter(|cell| cell.lo == cell.hi) {
                let pods = self.listed(cell.peers, family).unwrap_or_default();
                if open.len().saturating_add(pods.len()) > OPEN_ELEMENTS {
                    return Elems::new();
                }
                let port = port_key(transport, cell.lo);
                let key = |pod| port.iter().cloned().chain([Key::Addr(pod, pod)]).collect();
                open.extend(pods.into_iter().map(|pod| (key(pod), None)));
            }
        }
        open
    }
}

/// The chain of a profile that looks at protocol and port.
fn profile_chain(
    origins: Rc<Vec<Origin>>,
    direction: Direction,
    dispatch: Dispatch,
    other: Verdict,
    mut objects: Vec<Object>,
) -> Target {
    let mut rules = Vec::new();
    if !dispatch.open.is_empty() {
        let key = vec![KeyType::Proto, KeyType::Service, KeyType::Addr];
        let set = Set { key, elements: Elements::General(dispatch.open), ..Set::default() };
        let name = set_name("open", &set);
        let content = Content::Set(Rc::new(set));
        objects.push(Object { name: name.clone(), content, origins: origins.clone() });
        let peer = match direction {
            Direction::Ingress => Field::Saddr,
            Direction::Egress => Field::Daddr,
        };
        let fields = vec![Field::L4Proto, Field::Dport, peer];
        rules.push(rule(vec![Match::InSet(fields, name)], Verdict::Return));
    }
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
    Target { verdict: Verdict::Goto(name), objects: Rc::new(objects) }
}

impl Dispatch {
    fn is_empty(&self) -> bool {
        self.open.is_empty() && self.ports.is_empty() && self.ranges.is_empty() && self.protocols.is_empty()
    }

    /// Whether `open` has all that may use the cell's port.
    fn opens(&self, transport: Transport, cell: &Cell) -> bool {
        let port = port_key(transport, cell.lo);
        let first = self.open.range(port.to_vec()..).next();
        cell.lo == cell.hi && first.is_some_and(|(key, _)| key.starts_with(&port))
    }

    fn add(&mut self, transport: Transport, lo: u16, hi: u16, verdict: Verdict) {
        if lo == hi {
            self.ports.insert(port_key(transport, lo).to_vec(), Some(verdict));
        } else {
            let ranges = self.ranges.entry(transport).or_default();
            ranges.insert(vec![Key::Service(lo, hi)], Some(verdict));
        }
    }
}

fn port_key(transport: Transport, port: u16) -> [Key; 2] {
    [Key::Proto(transport.number()), Key::Service(port, port)]
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
