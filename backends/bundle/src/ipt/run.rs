//! One packet through a ruleset, as `ipt_do_table` (`net/ipv4/netfilter/ip_tables.c`) of the kernel runs it.
//!
//! Data in, verdict out. The compiler's decoder and the loader both ask here, so that they mean the same by a ruleset. It
//! must be one that [`check`](super::check()) accepts: chains that jump in a circle would never end.

use super::{End, Family, Match, PODIF, Prefix, Rule, Ruleset, Set, SetKind, Table, Target};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

pub use crate::nft::run::{Packet, State};

/// TCP, UDP and SCTP: the protocols whose ports rules look at.
const WITH_PORTS: [u8; 3] = [TCP, 17, SCTP];

const TCP: u8 = 6;
const SCTP: u8 = 132;

/// The rules in the order in which a packet meets them, with numbers for the names of chains.
#[derive(Debug, Clone)]
pub struct Script {
    chains: Vec<Vec<Step>>,
    /// For each family, in the order of [`Family::ALL`], the entries of `mangle` and of `filter`.
    entries: [Vec<usize>; 2],
}

/// A rule.
#[derive(Debug, Clone)]
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
    /// Prepares a ruleset, once for many packets.
    pub fn new(ruleset: &Ruleset) -> Script {
        let mut script = Script { chains: Vec::new(), entries: [Vec::new(), Vec::new()] };
        for family in Family::ALL {
            for table in [Table::Mangle, Table::Filter] {
                script.add(ruleset, family, table);
            }
        }
        script
    }

    fn add(&mut self, ruleset: &Ruleset, family: Family, table: Table) {
        let Some(chains) = ruleset.tables.get(&(family, table)) else { return };
        let first = self.chains.len();
        let ids: HashMap<&str, usize> =
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
        self.chains.extend(chains.values().map(|rules| rules.iter().map(step).collect::<Vec<Step>>()));
        let [v4, v6] = &mut self.entries;
        let entries = if family == Family::V4 { v4 } else { v6 };
        entries.extend(ids.get(table.entry()));
    }

    /// Whether a packet passes the rules of its family; `sets` are those of the ruleset. Neighbour discovery is five types
    /// of packets: it passes if all of them do.
    pub fn passes(&self, sets: &BTreeMap<String, Set>, packet: &Packet) -> bool {
        let family = if packet.dst.is_ipv4() { Family::V4 } else { Family::V6 };
        let [v4, v6] = &self.entries;
        let entries = if family == Family::V4 { v4 } else { v6 };
        let one = |icmp6: Option<u8>| {
            let sent = Sent { family, sets, packet, icmp6 };
            entries.iter().all(|&entry| self.run(entry, &sent))
        };
        if packet.neighbour_discovery { (133..=137).all(|kind| one(Some(kind))) } else { one(None) }
    }

    fn run(&self, entry: usize, sent: &Sent<'_>) -> bool {
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
                Action::PodInterfaces(_) if sent.packet.spoofed || sent.packet.from_pod => return false,
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
        let Packet { src, dst, protocol, dport, state, opens, spoofed, asymmetric, .. } = *self.packet;
        let addr = |end: &End| match end {
            End::Src => bits(src),
            End::Dst => bits(dst),
        };
        match condition {
            Match::Addr(end, prefix) => prefix.contains(self.family, addr(end)),
            // Rules of the loader, in a chain that is not run here.
            Match::Interface(_) => false,
            Match::Protocol(number) => protocol == *number,
            Match::Port(lo, hi) => WITH_PORTS.contains(&protocol) && (*lo..=*hi).contains(&dport),
            Match::TcpNotSyn => protocol == TCP && !opens,
            Match::SctpNotInit => protocol == SCTP && !opens,
            Match::Icmp6Type(kind) => self.icmp6 == Some(*kind),
            Match::Known => matches!(state, State::Established | State::Related),
            Match::NotTracked => state == State::Untracked,
            // The way back to an address of the link is any interface (`rpfilter_lookup_reverse6`,
            // net/ipv6/netfilter/ip6t_rpfilter.c).
            Match::ReversePathFails => (spoofed || asymmetric) && !is_of_link(self.family, bits(src)),
            // What crosses FORWARD is not for the node.
            Match::NotLocal => true,
            Match::InSet(end, name) => self.sets.get(name).is_some_and(|set| in_set(set, addr(end))),
        }
    }
}

/// `fe80::/10`, addresses of a link (RFC 4291, section 2.5.6).
pub const LINK_LOCAL: Prefix = Prefix { base: 0xfe80 << 112, len: 10 };

fn is_of_link(family: Family, addr: u128) -> bool {
    family == Family::V6 && LINK_LOCAL.contains(family, addr)
}

/// An address as a number in host order.
fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u32::from(addr).into(),
        IpAddr::V6(addr) => addr.into(),
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
