//! Addresses that come and go while the rules stay: the elements that this takes.

use super::run::bits;
use super::{
    BLOCKS, Elements, Family, Field, Key, KeyType, MARKER_PREFIX, Match, Outcome, Ruleset, Set, Table,
    Verdict, digest, in_family, marker,
};
use crate::nft::Version;
use crate::rebind::{Rebind, Unlike};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// An element that comes into a set or goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The table.
    pub family: Family,
    /// The set or map.
    pub set: String,
    /// The element.
    pub key: Vec<Key>,
    /// What it leads to, in a map.
    pub verdict: Option<Verdict>,
    /// Whether it comes.
    pub comes: bool,
}

/// Changes a ruleset so that it treats the new addresses as those that they are like, and knows nothing of those that are
/// gone. Gives the version that it has then, which its markers name, and what has to be done to the old one.
///
/// Sets that are asked for a whole address are changed, and the set of a pod with itself. Sets of blocks are not: they
/// give both addresses the same answer, or the agent would not call them alike. That answer may come from blocks of
/// different lengths, and a block of one address is there whether or not a pod has it.
///
/// # Errors
/// If that cannot be done; the ruleset may be half changed then.
pub fn rebind(ruleset: &mut Ruleset, change: &Rebind) -> Result<(Version, Vec<Edit>), Unlike> {
    let mut edits = Vec::new();
    for (family, table) in &mut ruleset.tables {
        let of_family = |addr: &&IpAddr| in_family(*family, **addr);
        let gone: Vec<u128> = change.gone.iter().filter(of_family).map(|addr| bits(*addr)).collect();
        let like = change.like.iter().filter(|(new, _)| of_family(&new));
        let like: Vec<(u128, u128)> = like.map(|(new, known)| (bits(*new), bits(*known))).collect();
        let mut changed = Elementwise::default();
        for (name, asked) in asked(table)? {
            let Some(set) = table.sets.get_mut(name.as_str()) else { continue };
            match asked {
                Asked::Address => changed.address(&name, set, &gone, &like)?,
                Asked::Pair => changed.pair(&name, set, &gone, &like)?,
                Asked::Peer => changed.peer(&name, set, &gone, &like)?,
            }
        }
        let edit = |((set, key), (before, after)): ((String, Vec<Key>), (Had, Had))| {
            let one =
                |verdict, comes| Edit { family: *family, set: set.clone(), key: key.clone(), verdict, comes };
            match (before, after) {
                (before, after) if before == after => Vec::new(),
                (Some(old), Some(new)) => vec![one(old, false), one(new, true)],
                (Some(old), None) => vec![one(old, false)],
                (None, Some(new)) => vec![one(new, true)],
                (None, None) => Vec::new(),
            }
        };
        edits.extend(changed.0.into_iter().flat_map(edit));
    }
    let version = digest(ruleset);
    for table in ruleset.tables.values_mut() {
        let old = table.chains.keys().find(|name| name.starts_with(MARKER_PREFIX)).cloned();
        let chain = old.and_then(|old| table.chains.remove(&old)).unwrap_or_default();
        table.chains.insert(marker(version), chain);
    }
    Ok((version, edits))
}

/// What a set is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// One whole address.
    Address,
    /// Source and destination.
    Pair,
    /// Protocol, port and a whole address.
    Peer,
}

/// The sets that rules ask for whole addresses.
fn asked(table: &Table) -> Result<BTreeMap<String, Asked>, Unlike> {
    let mut found: BTreeMap<String, Asked> = BTreeMap::new();
    let mut others: BTreeSet<&str> = BTreeSet::new();
    for rule in table.chains.values().flat_map(|chain| &chain.rules) {
        let in_sets = rule.matches.iter().filter_map(|m| match m {
            Match::InSet(fields, set) => Some((fields, set)),
            _ => None,
        });
        let vmap = match &rule.outcome {
            Outcome::Vmap(fields, map) => Some((fields, map)),
            Outcome::Verdict(_) => None,
        };
        for (fields, set) in in_sets.chain(vmap) {
            let asked = match fields.as_slice() {
                [Field::Saddr | Field::Daddr] => Some(Asked::Address),
                [Field::Saddr, Field::Daddr] => Some(Asked::Pair),
                [Field::L4Proto, Field::Dport, Field::Saddr | Field::Daddr] => Some(Asked::Peer),
                _ => None,
            };
            let of_addresses =
                !set.starts_with(BLOCKS) && table.sets.get(set).is_some_and(|set| !set.interval);
            match asked.filter(|_| of_addresses) {
                Some(asked) => drop(found.insert(set.clone(), asked)),
                None => drop(others.insert(set)),
            }
        }
    }
    match found.keys().find(|name| others.contains(name.as_str())) {
        Some(both) => Err(Unlike(format!("the set {both} is asked for addresses and for more"))),
        None => Ok(found),
    }
}

/// Whether an element was there, and what it led to.
type Had = Option<Option<Verdict>>;

/// The elements of a set whose key is not one address alone.
type General = BTreeMap<Vec<Key>, Option<Verdict>>;

fn general<'s>(name: &str, set: &'s mut Set) -> Result<&'s mut General, Unlike> {
    match &mut set.elements {
        Elements::General(map) => Ok(map),
        Elements::Addrs(_) => Err(Unlike(format!("the set {name} has other keys than it is asked for"))),
    }
}

/// Each element that was touched, as it was before and as it is now.
#[derive(Debug, Default)]
struct Elementwise(BTreeMap<(String, Vec<Key>), (Had, Had)>);

impl Elementwise {
    fn note(&mut self, set: &str, key: Vec<Key>, before: Had, after: Had) {
        let entry = self.0.entry((set.to_owned(), key));
        entry.and_modify(|known| known.1.clone_from(&after)).or_insert((before, after));
    }

    /// Takes elements out.
    fn forget(&mut self, name: &str, map: &mut General, gone: impl Fn(&[Key]) -> bool) {
        let keys: Vec<Vec<Key>> = map.keys().filter(|key| gone(key)).cloned().collect();
        for key in keys {
            let had = map.remove(&key);
            self.note(name, key, had, None);
        }
    }

    fn address(
        &mut self,
        name: &str,
        set: &mut Set,
        gone: &[u128],
        like: &[(u128, u128)],
    ) -> Result<(), Unlike> {
        if set.key != [KeyType::Addr] {
            return Err(Unlike(format!("the set {name} has other keys than it is asked for")));
        }
        let key = |addr: u128| vec![Key::Addr(addr, addr)];
        let had = |set: &Set, addr: u128| match &set.elements {
            Elements::Addrs(list) => list.binary_search(&addr).ok().map(|_| None),
            Elements::General(map) => map.get(&key(addr)).cloned(),
        };
        let known: Vec<Had> = like.iter().map(|(_, known)| had(set, *known)).collect();
        for addr in gone {
            let had = match &mut set.elements {
                Elements::Addrs(list) => list.binary_search(addr).ok().map(|at| {
                    list.remove(at);
                    None
                }),
                Elements::General(map) => map.remove(&key(*addr)),
            };
            if had.is_some() {
                self.note(name, key(*addr), had, None);
            }
        }
        for ((new, _), has) in like.iter().zip(known) {
            if had(set, *new).is_some() {
                return Err(Unlike(format!("an address is new and in the set {name} already")));
            }
            let Some(verdict) = has else { continue };
            match &mut set.elements {
                Elements::Addrs(list) => {
                    let at = list.partition_point(|addr| addr < new);
                    list.insert(at, *new);
                }
                Elements::General(map) => drop(map.insert(key(*new), verdict.clone())),
            }
            self.note(name, key(*new), None, Some(verdict));
        }
        Ok(())
    }

    /// A set of protocols and ports, each with those that may use it.
    fn peer(
        &mut self,
        name: &str,
        set: &mut Set,
        gone: &[u128],
        like: &[(u128, u128)],
    ) -> Result<(), Unlike> {
        let map = general(name, set)?;
        let of = |key: &[Key], addr: u128| key.last() == Some(&Key::Addr(addr, addr));
        let mut come = Vec::new();
        for (new, known) in like {
            for (key, has) in map.iter().filter(|(key, _)| of(key, *known)) {
                let mut key = key.clone();
                key.pop();
                key.push(Key::Addr(*new, *new));
                come.push((key, has.clone()));
            }
        }
        self.forget(name, map, |key| gone.iter().any(|addr| of(key, *addr)));
        if map.keys().any(|key| like.iter().any(|(new, _)| of(key, *new))) {
            return Err(Unlike(format!("an address is new and in the set {name} already")));
        }
        for (key, has) in come {
            map.insert(key.clone(), has.clone());
            self.note(name, key, None, Some(has));
        }
        Ok(())
    }

    /// The set that lets a pod reach itself: an address stands with itself, or, if its pod has more of them, with others.
    fn pair(
        &mut self,
        name: &str,
        set: &mut Set,
        gone: &[u128],
        like: &[(u128, u128)],
    ) -> Result<(), Unlike> {
        let map = general(name, set)?;
        let of = |key: &[Key], addr: u128| key.contains(&Key::Addr(addr, addr));
        let with_itself = |addr: u128| vec![Key::Addr(addr, addr), Key::Addr(addr, addr)];
        let mut known = Vec::new();
        for (_, addr) in like {
            if map.keys().any(|key| of(key, *addr) && *key != with_itself(*addr)) {
                return Err(Unlike("a pod with several addresses of a family".to_owned()));
            }
            known.push(map.get(&with_itself(*addr)).cloned());
        }
        self.forget(name, map, |key| gone.iter().any(|addr| of(key, *addr)));
        for ((new, _), has) in like.iter().zip(known) {
            if map.keys().any(|key| of(key, *new)) {
                return Err(Unlike(format!("an address is new and in the set {name} already")));
            }
            let Some(has) = has else { continue };
            map.insert(with_itself(*new), has.clone());
            self.note(name, with_itself(*new), None, Some(has));
        }
        Ok(())
    }
}
