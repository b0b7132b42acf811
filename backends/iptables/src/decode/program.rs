//! The rules of one family with names replaced by numbers, and trees of chains replaced by the functions that they are.
//!
//! A program is about one kind of packets ([`Situation`]); rules that match no such packet are left out. So are rules that
//! match only what an address sends to itself, which nobody asks a program.

use super::segments::Segments;
use netpolc_bundle::ipt::run::LINK_LOCAL;
use netpolc_bundle::ipt::{self, Chains, End, Family, Match, PODIF, Prefix, Ruleset, Set, Table, Target};
use netpolc_ir::proof::{Conn, Kind};
use rustc_hash::FxHashMap;
use std::rc::Rc;

/// A chain, by its place in a program.
pub(super) type ChainId = usize;

/// What all packets of a program have in common: their kind, and the type of those of neighbour discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Situation {
    pub(super) kind: Kind,
    pub(super) icmp6: Option<u8>,
}

impl Situation {
    /// All that a family can be asked about.
    pub(super) fn all(family: Family) -> impl Iterator<Item = Situation> {
        let plain = Kind::ALL.into_iter().filter(|kind| *kind != Kind::NeighbourDiscovery);
        let types = (133..=137).filter(move |_| family == Family::V6);
        let discovery = types.map(|t| Situation { kind: Kind::NeighbourDiscovery, icmp6: Some(t) });
        plain.map(|kind| Situation { kind, icmp6: None }).chain(discovery)
    }

    /// Whether a condition holds that is about the kind of a packet; `None` if it is about something else.
    fn holds(self, found: &Match) -> Option<bool> {
        Some(match found {
            Match::Known => self.kind.conn() == Conn::Established,
            Match::NotTracked => self.kind.conn() == Conn::Untracked,
            // The rule has a condition on the protocol beside this one.
            Match::TcpNotSyn | Match::SctpNotInit => !self.kind.opens(),
            Match::ReversePathFails if !self.kind.spoofed() && !self.kind.asymmetric() => false,
            Match::Icmp6Type(number) => self.icmp6 == Some(*number),
            // What crosses FORWARD is not for the node.
            Match::NotLocal => true,
            // Rules of the loader, in a chain that is not compiled.
            Match::Interface(_) => false,
            // It depends on the source.
            Match::ReversePathFails => return None,
            Match::Addr(..) | Match::Protocol(_) | Match::Port(..) | Match::InSet(..) => return None,
        })
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    Drop,
    Return,
    Jump(ChainId),
    Goto(ChainId),
}

/// A condition.
#[derive(Debug, Clone)]
pub(super) enum Condition {
    Protocol(u8),
    Ports(u16, u16),
    /// The address is in the set of this number, or in the prefix that the number stands for.
    Addr(End, usize),
    /// The source is a pod of the node.
    OfPod,
}

/// A rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

/// What a chain does.
#[derive(Debug)]
pub(super) enum Body {
    Rules(Vec<Rule>),
    /// It looks at one address only, and so do the chains that it leads to, as far as they are part of the function.
    Function(End, Segments<Action>),
}

/// The rules of one family.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) chains: Vec<Body>,
    /// The entries, in the order in which a packet meets them.
    pub(super) entries: Vec<ChainId>,
    /// For each number of a [`Condition::Addr`], which addresses it is about.
    pub(super) addrs: Vec<Rc<Segments<bool>>>,
}

impl Program {
    /// `sets` are the [`sets`] of the same ruleset and family.
    pub(super) fn new(ruleset: &Ruleset, family: Family, situation: Situation, sets: &Sets<'_>) -> Program {
        let mut compiler = Compiler::new(family, situation);
        for (name, segments) in sets {
            compiler.set_ids.insert(name, compiler.addrs.len());
            compiler.addrs.push(segments.clone());
        }
        // A packet meets `mangle` first.
        let tables = [Table::Mangle, Table::Filter];
        let tables = tables.into_iter().filter_map(|t| Some((t, ruleset.tables.get(&(family, t))?)));
        let tables: Vec<(Table, &Chains)> = tables.collect();
        for (table, chains) in &tables {
            for name in chains.keys() {
                let id = compiler.ids.len();
                compiler.ids.insert((*table, name), id);
            }
        }
        let mut bodies = Vec::new();
        for (table, chains) in &tables {
            bodies.extend(chains.iter().map(|(name, rules)| compiler.chain(*table, name, rules)));
        }
        let entry = |(table, _): &(Table, &Chains)| compiler.ids.get(&(*table, table.entry())).copied();
        let entries = tables.iter().filter_map(entry).collect();
        let functions = Functions { compiler: &compiler, bodies: &bodies, known: FxHashMap::default() }.all();
        let chains = bodies.into_iter().zip(functions).map(|(rules, function)| match function {
            Some((end, segments)) => Body::Function(end, segments),
            None => Body::Rules(rules),
        });
        let chains = chains.collect();
        Program { chains, entries, addrs: compiler.addrs }
    }

    /// The chains that packets can come to, where a function counts as one.
    pub(super) fn reached(&self) -> Vec<ChainId> {
        let mut seen = vec![false; self.chains.len()];
        let mut todo = self.entries.clone();
        while let Some(id) = todo.pop() {
            let Some(slot) = seen.get_mut(id).filter(|seen| !**seen) else { continue };
            *slot = true;
            let next = |action: Action| match action {
                Action::Jump(id) | Action::Goto(id) => Some(id),
                Action::Drop | Action::Return => None,
            };
            match &self.chains[id] {
                Body::Rules(rules) => todo.extend(rules.iter().filter_map(|r| next(r.action))),
                Body::Function(_, segments) => todo.extend(segments.iter().filter_map(|s| next(s.2))),
            }
        }
        (0..seen.len()).filter(|&id| seen[id]).collect()
    }
}

/// The sets of a family by name, as the addresses that are in them.
pub(super) type Sets<'r> = Vec<(&'r str, Rc<Segments<bool>>)>;

/// The sets of a ruleset that are of a family: all programs ask the same ones.
pub(super) fn sets(ruleset: &Ruleset, family: Family) -> Sets<'_> {
    let max = Prefix { base: 0, len: 0 }.last(family);
    let ours = ruleset.sets.iter().filter(|(_, set)| set.family == family);
    ours.map(|(name, set)| (name.as_str(), Rc::new(set_segments(set, max)))).collect()
}

/// Which addresses are in a set: the longest prefix decides.
fn set_segments(set: &Set, max: u128) -> Segments<bool> {
    let mut elements: Vec<(&Prefix, &bool)> = set.elements.iter().collect();
    elements.sort_by_key(|(prefix, _)| (prefix.len, prefix.base));
    let hosts = elements.partition_point(|(prefix, _)| prefix.len < set.family.bits());
    let mut out = Segments::constant(false, max);
    for (prefix, matches) in &elements[..hosts] {
        out = out.replace(prefix.base, prefix.last(set.family), &Segments::constant(**matches, max));
    }
    out.with_points(elements[hosts..].iter().map(|(prefix, matches)| (prefix.base, **matches)))
}

struct Compiler<'r> {
    family: Family,
    situation: Situation,
    max: u128,
    ids: FxHashMap<(Table, &'r str), ChainId>,
    set_ids: FxHashMap<&'r str, usize>,
    prefix_ids: FxHashMap<Prefix, usize>,
    addrs: Vec<Rc<Segments<bool>>>,
    /// The prefix that a number stands for.
    prefixes: FxHashMap<usize, Prefix>,
    not_of_link: Option<usize>,
}

impl<'r> Compiler<'r> {
    fn new(family: Family, situation: Situation) -> Compiler<'r> {
        Compiler {
            family,
            situation,
            max: Prefix { base: 0, len: 0 }.last(family),
            ids: FxHashMap::default(),
            set_ids: FxHashMap::default(),
            prefix_ids: FxHashMap::default(),
            addrs: Vec::new(),
            prefixes: FxHashMap::default(),
            not_of_link: None,
        }
    }

    fn chain(&mut self, table: Table, name: &str, rules: &'r [ipt::Rule]) -> Vec<Rule> {
        if name == PODIF {
            // The loader's rules drop what comes from the interface of any pod.
            let drop = |conditions| vec![Rule { conditions, action: Action::Drop }];
            return match self.situation.kind {
                kind if kind.spoofed() => drop(Vec::new()),
                kind if kind.asymmetric() => Vec::new(),
                _ => drop(vec![Condition::OfPod]),
            };
        }
        rules.iter().filter_map(|rule| self.rule(table, rule)).collect()
    }

    /// `None` for a rule that matches no packet of a program.
    fn rule(&mut self, table: Table, rule: &'r ipt::Rule) -> Option<Rule> {
        let host = |end: End| {
            rule.matches.iter().find_map(|m| match m {
                Match::Addr(e, prefix) if *e == end && prefix.len == self.family.bits() => Some(prefix.base),
                _ => None,
            })
        };
        if host(End::Src).is_some() && host(End::Src) == host(End::Dst) {
            return None;
        }
        let mut conditions = Vec::new();
        for found in &rule.matches {
            match self.situation.holds(found) {
                Some(true) => continue,
                Some(false) => return None,
                None => {}
            }
            conditions.push(match found {
                Match::Protocol(number) => Condition::Protocol(*number),
                Match::Port(lo, hi) => Condition::Ports(*lo, *hi),
                Match::Addr(_, prefix) if prefix.len == 0 => continue,
                // The way back to an address of the link is any interface.
                Match::ReversePathFails if self.family == Family::V4 => continue,
                Match::ReversePathFails => Condition::Addr(End::Src, self.not_of_link()),
                Match::Addr(end, prefix) => Condition::Addr(*end, self.prefix(*prefix)),
                Match::InSet(end, name) => Condition::Addr(*end, *self.set_ids.get(name.as_str())?),
                // It holds, as was seen above.
                _ => continue,
            });
        }
        // What leads nowhere is refused when texts are checked.
        let id = |name: &'r str| self.ids.get(&(table, name)).copied().unwrap_or(usize::MAX);
        let action = match &rule.target {
            Target::Return => Action::Return,
            Target::Drop => Action::Drop,
            Target::Jump(name) => Action::Jump(id(name)),
            Target::Goto(name) => Action::Goto(id(name)),
        };
        Some(Rule { conditions, action })
    }

    /// The addresses that are none of a link.
    fn not_of_link(&mut self) -> usize {
        if let Some(id) = self.not_of_link {
            return id;
        }
        let id = self.addrs.len();
        let of_link = Segments::constant(false, self.max);
        let all = Segments::constant(true, self.max);
        self.addrs.push(Rc::new(all.replace(LINK_LOCAL.base, LINK_LOCAL.last(self.family), &of_link)));
        *self.not_of_link.insert(id)
    }

    fn prefix(&mut self, prefix: Prefix) -> usize {
        if let Some(id) = self.prefix_ids.get(&prefix) {
            return *id;
        }
        let id = self.addrs.len();
        let inside = Segments::constant(true, self.max);
        let all = Segments::constant(false, self.max);
        self.addrs.push(Rc::new(all.replace(prefix.base, prefix.last(self.family), &inside)));
        self.prefix_ids.insert(prefix, id);
        self.prefixes.insert(id, prefix);
        id
    }
}

/// Finds the chains that are functions of one address.
struct Functions<'a, 'r> {
    compiler: &'a Compiler<'r>,
    bodies: &'a [Vec<Rule>],
    known: FxHashMap<ChainId, Option<(End, Segments<Action>)>>,
}

impl Functions<'_, '_> {
    fn all(mut self) -> Vec<Option<(End, Segments<Action>)>> {
        // Texts that were checked have no loops.
        (0..self.bodies.len()).for_each(|id| self.find(id));
        (0..self.bodies.len()).map(|id| self.known.remove(&id).flatten()).collect()
    }

    fn find(&mut self, id: ChainId) {
        if self.known.contains_key(&id) {
            return;
        }
        let function = self.end(id).map(|end| (end, self.build(id, end)));
        self.known.insert(id, function);
    }

    /// The one address that a chain looks at: each rule has at most one condition, which is a prefix.
    fn end(&self, id: ChainId) -> Option<End> {
        let mut found = None;
        for rule in &self.bodies[id] {
            match rule.conditions.as_slice() {
                [] => {}
                [Condition::Addr(end, number)] if self.compiler.prefixes.contains_key(number) => {
                    if found.is_some_and(|f| f != *end) {
                        return None;
                    }
                    found = Some(*end);
                }
                _ => return None,
            }
            if matches!(rule.action, Action::Jump(_)) {
                return None;
            }
        }
        found
    }

    fn build(&mut self, id: ChainId, end: End) -> Segments<Action> {
        let max = self.compiler.max;
        let bodies = self.bodies;
        let mut out = Segments::constant(Action::Return, max);
        for rule in bodies[id].iter().rev() {
            let target = match rule.action {
                Action::Goto(next) if next < bodies.len() => {
                    self.find(next);
                    match self.known.get(&next) {
                        Some(Some((e, segments))) if *e == end => segments.clone(),
                        _ => Segments::constant(rule.action, max),
                    }
                }
                action => Segments::constant(action, max),
            };
            let prefix = match rule.conditions.as_slice() {
                [Condition::Addr(_, number)] => self.compiler.prefixes.get(number).copied(),
                _ => None,
            };
            let prefix = prefix.unwrap_or(Prefix { base: 0, len: 0 });
            out = out.replace(prefix.base, prefix.last(self.compiler.family), &target);
        }
        out
    }
}
