//! One packet through the rules, as `ipt_do_table` of the kernel runs it.

use netpolc_bundle::ipt::{End, Family, Match, PODIF, Prefix, Rule, Ruleset, Set, SetKind, Table, Target};
use netpolc_ir::addr::bits;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::{Conn, Packet};
use netpolc_ir::unit::Verdict;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// The rules of one family in the order in which a packet meets them, with numbers for names.
#[derive(Debug)]
pub(super) struct Script {
    family: Family,
    chains: Vec<Vec<Step>>,
    /// The entries of `mangle` and of `filter`.
    entries: Vec<usize>,
}

/// A rule.
#[derive(Debug)]
struct Step {
    matches: Vec<Match>,
    action: Action,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Drop,
    Return,
    /// A chain, and whether what returns from it goes on behind this rule.
    Chain(usize, bool),
    /// The same for the chain that the loader fills: it drops what comes from the interface of a pod.
    PodInterfaces(bool),
}

impl Script {
    pub(super) fn new(ruleset: &Ruleset, family: Family) -> Script {
        let mut script = Script { family, chains: Vec::new(), entries: Vec::new() };
        for table in [Table::Mangle, Table::Filter] {
            let Some(chains) = ruleset.tables.get(&(family, table)) else { continue };
            let first = script.chains.len();
            let ids: FxHashMap<&str, usize> =
                chains.keys().enumerate().map(|(i, name)| (name.as_str(), first + i)).collect();
            // What leads nowhere was refused when the ruleset was checked.
            let chain = |name: &str, back: bool| match ids.get(name) {
                Some(_) if name == PODIF => Action::PodInterfaces(back),
                Some(id) => Action::Chain(*id, back),
                None => Action::Drop,
            };
            let step = |rule: &Rule| Step {
                matches: rule.matches.clone(),
                action: match &rule.target {
                    Target::Return => Action::Return,
                    Target::Drop => Action::Drop,
                    Target::Jump(name) => chain(name, true),
                    Target::Goto(name) => chain(name, false),
                },
            };
            script.chains.extend(chains.values().map(|rules| rules.iter().map(step).collect::<Vec<Step>>()));
            script.entries.extend(ids.get(table.entry()));
        }
        script
    }

    /// What becomes of a packet. Neighbour discovery is five types of packets: the verdict is that of the worst.
    pub(super) fn decide(&self, sets: &BTreeMap<String, Set>, packet: &Packet) -> Verdict {
        let one = |icmp6: Option<u8>| {
            let sent = Sent { family: self.family, sets, packet, icmp6 };
            self.entries.iter().all(|&entry| self.passes(entry, &sent))
        };
        let passes =
            if packet.neighbour_discovery { (133..=137).all(|kind| one(Some(kind))) } else { one(None) };
        Verdict::allow_if(passes)
    }

    fn passes(&self, entry: usize, sent: &Sent<'_>) -> bool {
        let chain = |id: usize| self.chains.get(id).map(Vec::as_slice).unwrap_or_default().iter();
        let mut stack: Vec<std::slice::Iter<'_, Step>> = Vec::new();
        let mut steps = chain(entry);
        loop {
            let Some(step) = steps.next() else {
                match stack.pop() {
                    Some(caller) => steps = caller,
                    None => return true,
                }
                continue;
            };
            if !step.matches.iter().all(|m| sent.matches(m)) {
                continue;
            }
            match step.action {
                Action::Drop => return false,
                Action::Return => steps = [].iter(),
                // What may come from the interface of a pod is taken to.
                Action::PodInterfaces(_) if !sent.packet.asymmetric => return false,
                Action::PodInterfaces(true) => {}
                Action::PodInterfaces(false) => steps = [].iter(),
                Action::Chain(id, back) => {
                    if back {
                        stack.push(steps);
                    }
                    steps = chain(id);
                }
            }
        }
    }
}

/// A packet, and the type if it is ICMPv6 of a kind that rules tell apart.
struct Sent<'p> {
    family: Family,
    sets: &'p BTreeMap<String, Set>,
    packet: &'p Packet,
    icmp6: Option<u8>,
}

impl Sent<'_> {
    fn matches(&self, condition: &Match) -> bool {
        let Packet { flow, conn, opens, spoofed, asymmetric, .. } = *self.packet;
        let addr = |end: &End| match end {
            End::Src => bits(flow.src),
            End::Dst => bits(flow.dst),
        };
        match condition {
            Match::Addr(end, prefix) => prefix.contains(self.family, addr(end)),
            // Rules of the loader, in a chain that is not run here.
            Match::Interface(_) => false,
            Match::Protocol(number) => flow.protocol.number() == *number,
            Match::Port(lo, hi) => {
                matches!(flow.protocol, Protocol::Transport(_)) && (*lo..=*hi).contains(&flow.port)
            }
            Match::TcpNotSyn => flow.protocol == Protocol::TCP && !opens,
            Match::Icmp6Type(kind) => self.icmp6 == Some(*kind),
            Match::Known => matches!(conn, Conn::Established | Conn::Related),
            Match::Invalid => conn == Conn::Invalid,
            Match::ReversePathFails => spoofed || asymmetric,
            Match::InSet(end, name) => self.sets.get(name).is_some_and(|set| in_set(set, addr(end))),
        }
    }
}

/// The longest prefix that has the address decides (`hash_net4_kadt` and the like go through the lengths from the longest).
fn in_set(set: &Set, addr: u128) -> bool {
    let found = |len: u8| set.elements.get(&Prefix { base: addr & set.family.mask(len), len });
    match set.kind {
        SetKind::HashIp => found(set.family.bits()).is_some(),
        SetKind::HashNet => (0..=set.family.bits()).rev().find_map(found).copied().unwrap_or(false),
    }
}
