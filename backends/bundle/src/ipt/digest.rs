//! The version of a ruleset: a digest of all that decides about packets.
//!
//! Two rulesets have the same version if the kernel treats every packet alike for the same reasons: an artifact and what
//! the save programs list after loading it, in any order of chains and elements, with or without comments. What the
//! entries do not lead to is left out, and so are the rules of [`PODIF`], which are the loader's. The order of a rule's
//! matches does not count.

use super::{
    Chains, End, Family, MARKER_PREFIX, Match, PODIF, Prefix, Rule, Ruleset, Set, SetKind, Target, Version,
};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The name of the marker chain of a version.
pub fn marker(version: Version) -> String {
    format!("{MARKER_PREFIX}{version}")
}

/// The versions that a table's marker chains name.
pub fn markers(chains: &Chains) -> BTreeSet<Version> {
    let names = chains.keys().filter_map(|name| name.strip_prefix(MARKER_PREFIX));
    names.filter_map(|digits| digits.parse().ok()).collect()
}

/// The version of a ruleset.
pub fn digest(ruleset: &Ruleset) -> Version {
    let mut sink = Sink { hash: Sha256::new(), buffer: Vec::with_capacity(2 * CHUNK) };
    sink.text("netpolc iptables 1");
    let mut sets: BTreeMap<&str, &Set> = BTreeMap::new();
    for (&(family, table), chains) in &ruleset.tables {
        let reached = reachable(chains, table.entry());
        if reached.is_empty() {
            continue;
        }
        sink.text(&format!("{family} {table}"));
        sink.number(reached.len());
        for (name, rules) in reached {
            sink.text(name);
            let rules = if name == PODIF { &[] } else { rules };
            sink.number(rules.len());
            for rule in rules {
                sink.rule(family, rule);
                let names = rule.matches.iter().filter_map(|m| match m {
                    Match::InSet(_, name) => Some(name),
                    _ => None,
                });
                sets.extend(
                    names.filter_map(|n| ruleset.sets.get_key_value(n)).map(|(n, s)| (n.as_str(), s)),
                );
            }
        }
    }
    sink.number(sets.len());
    for (name, set) in sets {
        sink.text(name);
        sink.set(set);
    }
    sink.finish()
}

/// The chains that packets can meet.
fn reachable<'a>(chains: &'a Chains, entry: &str) -> BTreeMap<&'a str, &'a [Rule]> {
    let mut found = BTreeMap::new();
    let mut todo = vec![entry];
    while let Some(name) = todo.pop() {
        let Some((name, rules)) = chains.get_key_value(name) else { continue };
        if found.insert(name.as_str(), rules.as_slice()).is_none() {
            todo.extend(rules.iter().filter_map(|rule| rule.target.chain()));
        }
    }
    found
}

/// How much is gathered before it is hashed.
const CHUNK: usize = 1 << 14;

/// The canonical serialisation: every text and list has its length first, every kind of thing a tag.
struct Sink {
    hash: Sha256,
    buffer: Vec<u8>,
}

impl Sink {
    fn bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.hash.update(&self.buffer);
            self.buffer.clear();
        }
    }

    fn number(&mut self, number: usize) {
        self.bytes(&(number as u64).to_be_bytes());
    }

    fn list(&mut self, list: &[u8]) {
        self.number(list.len());
        self.bytes(list);
    }

    fn text(&mut self, text: &str) {
        self.list(text.as_bytes());
    }

    fn finish(mut self) -> Version {
        self.hash.update(&self.buffer);
        Version::from_hash(&self.hash.finalize())
    }

    fn set(&mut self, set: &Set) {
        let kind = match set.kind {
            SetKind::HashIp => 1,
            SetKind::HashNet => 2,
        };
        self.bytes(&[set.family.bits(), kind]);
        self.number(set.elements.len());
        for (prefix, matches) in &set.elements {
            self.bytes(&prefix_bytes(*prefix));
            self.bytes(&[u8::from(*matches)]);
        }
    }

    fn rule(&mut self, family: Family, rule: &Rule) {
        let matches: BTreeSet<Vec<u8>> =
            rule.matches.iter().filter(|m| !is_all(m)).map(|m| match_bytes(family, m)).collect();
        self.number(matches.len());
        for bytes in &matches {
            self.list(bytes);
        }
        let tag = match &rule.target {
            Target::Return => 1,
            Target::Drop => 2,
            Target::Jump(_) => 3,
            Target::Goto(_) => 4,
        };
        self.bytes(&[tag]);
        self.text(rule.target.chain().unwrap_or_default());
    }
}

/// A prefix of length 0, which iptables does not print.
fn is_all(found: &Match) -> bool {
    matches!(found, Match::Addr(_, Prefix { len: 0, .. }))
}

fn prefix_bytes(prefix: Prefix) -> [u8; 17] {
    let mut bytes = [0; 17];
    let (addr, len) = bytes.split_at_mut(16);
    addr.copy_from_slice(&prefix.base.to_be_bytes());
    len.copy_from_slice(&[prefix.len]);
    bytes
}

fn match_bytes(family: Family, found: &Match) -> Vec<u8> {
    let end = |end: &End| match end {
        End::Src => 1,
        End::Dst => 2,
    };
    let mut bytes = vec![family.bits()];
    match found {
        Match::Addr(e, prefix) => {
            bytes.extend([1, end(e)]);
            bytes.extend(prefix_bytes(*prefix));
        }
        Match::Interface(name) => {
            bytes.push(2);
            bytes.extend(name.as_bytes());
        }
        Match::Protocol(number) => bytes.extend([3, *number]),
        Match::Port(lo, hi) => {
            bytes.push(4);
            bytes.extend(lo.to_be_bytes());
            bytes.extend(hi.to_be_bytes());
        }
        Match::TcpNotSyn => bytes.push(5),
        Match::Icmp6Type(number) => bytes.extend([6, *number]),
        Match::Known => bytes.push(7),
        Match::NotTracked => bytes.push(8),
        Match::ReversePathFails => bytes.push(9),
        Match::SctpNotInit => bytes.push(11),
        Match::NotLocal => bytes.push(12),
        Match::InSet(e, name) => {
            bytes.extend([10, end(e)]);
            bytes.extend(name.as_bytes());
        }
    }
    bytes
}
