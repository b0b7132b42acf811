//! The version of a ruleset: a digest of all that decides about packets.
//!
//! Two texts have the same version if the kernel would treat every packet alike for the same reasons: a script and what
//! nft lists after loading it, in any order of declarations and elements, with or without comments and counters'
//! figures. What no base chain leads to is left out, since no packet can meet it. So the loader can tell from the
//! kernel's listing alone what is in force: it computes the version of the listing and compares it with the marker, an
//! empty chain `version_<digits>` in each table.
//!
//! The order of a rule's matches does not count, and neither do tests that another match of the rule implies: nft
//! prints `meta l4proto 6 ip saddr @s th dport vmap @m` as `ip saddr @s tcp dport vmap @m`.

use super::{
    Chain, Elements, Family, Field, Key, KeyType, Match, Outcome, PODADDR, Rule, Ruleset, Set, Table,
    Verdict, is_filled,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// What the name of a marker chain begins with; the digits of a [`Version`] follow.
pub const MARKER_PREFIX: &str = "version_";

/// The version of a ruleset: the first 8 bytes of a SHA-256, written as 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Version([u8; 8]);

impl Version {
    /// From the first bytes of a hash; what is missing counts as zero.
    pub(crate) fn from_hash(hash: &[u8]) -> Version {
        let mut version = [0; 8];
        for (to, from) in version.iter_mut().zip(hash) {
            *to = *from;
        }
        Version(version)
    }
}

/// Not 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a version has 16 lower-case hexadecimal digits")]
pub struct VersionError;

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(digits: &str) -> Result<Version, VersionError> {
        if digits.len() != 16 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(VersionError);
        }
        u64::from_str_radix(digits, 16).map(|number| Version(number.to_be_bytes())).map_err(|_| VersionError)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = VersionError;

    fn try_from(digits: String) -> Result<Version, VersionError> {
        digits.parse()
    }
}

/// The name of the marker chain of a version.
pub fn marker(version: Version) -> String {
    format!("{MARKER_PREFIX}{version}")
}

/// The versions that a table's marker chains name.
pub fn markers(table: &Table) -> BTreeSet<Version> {
    let names = table.chains.keys().filter_map(|name| name.strip_prefix(MARKER_PREFIX));
    names.filter_map(|digits| digits.parse().ok()).collect()
}

/// The version of a ruleset.
pub fn digest(ruleset: &Ruleset) -> Version {
    digest_of(&ruleset.tables)
}

/// The version of a ruleset with these tables, in the order of their families.
pub fn digest_of<'t>(tables: impl IntoIterator<Item = (&'t Family, &'t Table)>) -> Version {
    let mut sink = Sink { hash: Sha256::new(), buffer: Vec::with_capacity(2 * CHUNK) };
    sink.text("netpolc nftables 1");
    for (family, table) in tables {
        let (chains, sets) = reachable(table);
        if chains.is_empty() {
            continue;
        }
        sink.text(&family.to_string());
        sink.number(sets.len());
        for (name, set) in sets {
            sink.set(*family, name, set);
        }
        sink.number(chains.len());
        for (name, chain) in chains {
            sink.text(name);
            sink.chain(*family, chain);
        }
    }
    sink.finish()
}

type Named<'a, T> = std::collections::BTreeMap<&'a str, &'a T>;

/// The chains and sets that packets can meet.
fn reachable(table: &Table) -> (Named<'_, Chain>, Named<'_, Set>) {
    let mut chains = Named::new();
    let mut sets = Named::new();
    let mut todo: Vec<&str> = table
        .chains
        .iter()
        .filter(|(_, chain)| chain.hook.is_some())
        .map(|(name, _)| name.as_str())
        .collect();
    while let Some(name) = todo.pop() {
        let Some((name, chain)) = table.chains.get_key_value(name) else { continue };
        if chains.insert(name.as_str(), chain).is_some() {
            continue;
        }
        for rule in &chain.rules {
            for found in &rule.matches {
                let set = match found {
                    Match::InSet(_, set) => set,
                    Match::Unbound => PODADDR,
                    _ => continue,
                };
                sets.extend(table.sets.get_key_value(set).map(|(name, set)| (name.as_str(), set)));
            }
            match &rule.outcome {
                Outcome::Verdict(verdict) => todo.extend(target(verdict)),
                Outcome::Vmap(_, map) => {
                    let Some((name, set)) = table.sets.get_key_value(map) else { continue };
                    if sets.insert(name.as_str(), set).is_none()
                        && let Elements::General(elements) = &set.elements
                    {
                        let targets: BTreeSet<&str> =
                            elements.values().flatten().filter_map(target).collect();
                        todo.extend(targets);
                    }
                }
            }
        }
    }
    (chains, sets)
}

fn target(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
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

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.bytes(text.as_bytes());
    }

    fn list(&mut self, list: &[u8]) {
        self.number(list.len());
        self.bytes(list);
    }

    fn finish(mut self) -> Version {
        self.hash.update(&self.buffer);
        Version::from_hash(&self.hash.finalize())
    }

    fn set(&mut self, family: Family, name: &str, set: &Set) {
        self.text(name);
        self.bytes(&[u8::from(set.map), u8::from(set.interval)]);
        let types: Vec<u8> = set.key.iter().map(|kind| key_type(*kind)).collect();
        self.list(&types);
        if is_filled(name) {
            return;
        }
        self.number(set.elements.len());
        match &set.elements {
            Elements::Addrs(list) => {
                for addr in list {
                    self.addr(family, *addr);
                }
            }
            Elements::General(map) => {
                for (key, verdict) in map {
                    for field in key {
                        self.key(family, field);
                    }
                    let mut bytes = Vec::new();
                    if let Some(verdict) = verdict {
                        verdict_bytes(&mut bytes, verdict);
                    }
                    self.list(&bytes);
                }
            }
        }
    }

    fn addr(&mut self, family: Family, addr: u128) {
        match family {
            Family::Ip => self.bytes(&(addr as u32).to_be_bytes()),
            Family::Ip6 => self.bytes(&addr.to_be_bytes()),
        }
    }

    fn key(&mut self, family: Family, key: &Key) {
        match key {
            Key::Addr(lo, hi) => {
                self.addr(family, *lo);
                self.addr(family, *hi);
            }
            Key::Proto(number) => self.bytes(&[*number]),
            Key::Service(lo, hi) => {
                self.bytes(&lo.to_be_bytes());
                self.bytes(&hi.to_be_bytes());
            }
            Key::Ifname(name) => self.text(name),
        }
    }

    fn chain(&mut self, family: Family, chain: &Chain) {
        match chain.hook {
            Some(hook) => {
                self.bytes(&[1]);
                self.bytes(&hook.priority.to_be_bytes());
            }
            None => self.bytes(&[0]),
        }
        self.number(chain.rules.len());
        for rule in &chain.rules {
            self.rule(family, rule);
        }
    }

    fn rule(&mut self, family: Family, rule: &Rule) {
        let implied = |m: &Match| {
            (*m == Match::L4Proto(6) && rule.matches.contains(&Match::TcpNotSyn))
                || (*m == Match::L4Proto(58) && rule.matches.contains(&Match::NeighbourDiscovery))
        };
        let matches = rule.matches.iter().filter(|m| !implied(m));
        let matches: BTreeSet<Vec<u8>> = matches.map(|m| match_bytes(family, m)).collect();
        self.number(matches.len());
        for bytes in &matches {
            self.list(bytes);
        }
        self.bytes(&[u8::from(rule.counter)]);
        let mut bytes = Vec::new();
        match &rule.outcome {
            Outcome::Verdict(verdict) => verdict_bytes(&mut bytes, verdict),
            Outcome::Vmap(fields, map) => lookup_bytes(&mut bytes, family, 16, fields, map),
        }
        self.list(&bytes);
    }
}

fn key_type(kind: KeyType) -> u8 {
    match kind {
        KeyType::Addr => 1,
        KeyType::Proto => 2,
        KeyType::Service => 3,
        KeyType::Ifname => 4,
    }
}

fn verdict_bytes(bytes: &mut Vec<u8>, verdict: &Verdict) {
    bytes.push(match verdict {
        Verdict::Accept => 1,
        Verdict::Drop => 2,
        Verdict::Return => 3,
        Verdict::Jump(_) => 4,
        Verdict::Goto(_) => 5,
    });
    bytes.extend_from_slice(target(verdict).unwrap_or_default().as_bytes());
}

/// A field; a prefix as long as the address is the address.
fn field_bytes(family: Family, field: &Field) -> [u8; 2] {
    let whole = |length: u8| u32::from(length) >= family.bits();
    match field {
        Field::Saddr => [1, 0],
        Field::Daddr => [2, 0],
        Field::SaddrPrefix(length) if whole(*length) => [1, 0],
        Field::DaddrPrefix(length) if whole(*length) => [2, 0],
        Field::SaddrPrefix(length) => [3, *length],
        Field::DaddrPrefix(length) => [4, *length],
        Field::L4Proto => [5, 0],
        Field::Dport => [6, 0],
        Field::Iifname => [7, 0],
    }
}

fn lookup_bytes(bytes: &mut Vec<u8>, family: Family, tag: u8, fields: &[Field], set: &str) {
    bytes.push(tag);
    // The parser allows few fields; the last byte of a longer list would still tell lists apart by what follows.
    bytes.push(fields.len().min(255) as u8);
    for field in fields {
        bytes.extend(field_bytes(family, field));
    }
    bytes.extend_from_slice(set.as_bytes());
}

fn match_bytes(family: Family, found: &Match) -> Vec<u8> {
    let mut bytes = Vec::new();
    match found {
        Match::InSet(fields, set) => lookup_bytes(&mut bytes, family, 17, fields, set),
        Match::L4Proto(number) => bytes.extend([18, *number]),
        Match::NotEstablished => bytes.push(19),
        Match::NotTracked => bytes.push(20),
        Match::TcpNotSyn => bytes.push(21),
        Match::ReversePathFails => bytes.push(22),
        Match::NeighbourDiscovery => bytes.push(23),
        Match::Unbound => bytes.push(24),
        Match::SctpNotInit => bytes.push(25),
    }
    bytes
}
