//! What is in the kernel now.
//!
//! A listing goes through the parser of scripts. A listing that the parser refuses shows that another hand was at our
//! table; then only the names of its objects are taken, by looking at lines.

use crate::Error;
use crate::generation;
use crate::kernel::Kernel;
use netpolc_bundle::nft::{self, Elements, Family, Key, PODIF, ParseError, Ruleset, Table, Version};
use std::collections::{BTreeMap, BTreeSet};

/// Our tables in the kernel.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// By family.
    pub tables: BTreeMap<Family, View>,
}

/// One table in the kernel.
#[derive(Debug, Clone)]
pub struct View {
    /// The listing.
    pub text: String,
    /// What it says.
    pub table: Result<Table, ParseError>,
    /// The names of its objects.
    pub names: Names,
    /// Whether a name is listed twice, which no table can have: see [`LOOKS`].
    pub torn: bool,
}

/// Names of objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the fields' names say it")]
pub struct Names {
    pub chains: BTreeSet<String>,
    pub sets: BTreeSet<String>,
    pub maps: BTreeSet<String>,
}

impl Names {
    /// The names in a table.
    pub fn of(table: &Table) -> Names {
        let named = |map: bool| {
            table.sets.iter().filter(move |(_, set)| set.map == map).map(|(name, _)| name.clone())
        };
        Names {
            chains: table.chains.keys().cloned().collect(),
            sets: named(false).collect(),
            maps: named(true).collect(),
        }
    }

    /// The names in a listing that the parser refuses, and whether one is there twice. Names that could not be written back
    /// are left out.
    fn scan(text: &str) -> (Names, bool) {
        let (mut names, mut twice) = (Names::default(), false);
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [kind, name, "{", ..] = words.as_slice() else { continue };
            let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            if !name.bytes().all(safe) || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
                continue;
            }
            let known = match *kind {
                "chain" => &mut names.chains,
                "set" => &mut names.sets,
                "map" => &mut names.maps,
                _ => continue,
            };
            twice |= !known.insert((*name).to_owned());
        }
        (names, twice)
    }
}

impl View {
    fn new(family: Family, text: String) -> View {
        let table = nft::parse(&text).map(|mut ruleset| ruleset.tables.remove(&family).unwrap_or_default());
        let (names, torn) =
            table.as_ref().map_or_else(|_| Names::scan(&text), |table| (Names::of(table), false));
        View { text, table, names, torn }
    }

    /// The elements of a set that the loader fills; `None` if there is no such set or it is not known.
    pub fn filling(&self, set: &str) -> Option<BTreeSet<Vec<Key>>> {
        let set = self.table.as_ref().ok()?.sets.get(set)?;
        let Elements::General(elements) = &set.elements else { return None };
        Some(elements.keys().cloned().collect())
    }

    /// The interfaces in the set of pods' interfaces; `None` if there is no such set or it is not known.
    pub fn interfaces(&self) -> Option<BTreeSet<String>> {
        let names = self.filling(PODIF)?.into_iter().filter_map(|key| match key.as_slice() {
            [Key::Ifname(name)] => Some(name.clone()),
            _ => None,
        });
        Some(names.collect())
    }
}

/// How often is looked at what seems to have drifted, before it is believed without having been seen twice.
///
/// The list of all chains is taken in parts, each of which begins where the last one ended, by number. A chain that another
/// transaction has added but not committed is counted among those to be passed over, but not where chains are listed
/// (`nf_tables_dump_chains` in `net/netfilter/nf_tables_api.c`). So while transactions of anybody are refused at their end,
/// chains of ours may be listed twice, and nothing tells the reader: the number of the last transaction is still the same.
/// With another process whose transactions fail all the time, one of eight listings was such a one, and parts end at the
/// same chain again and again, so two of them may be alike. Sets and rules are asked for by table, where only we add some.
pub const LOOKS: usize = 32;

/// Looks at the kernel.
///
/// # Errors
/// If nft cannot be run or may not look.
pub fn observe(kernel: &mut dyn Kernel) -> Result<Observed, Error> {
    let mut seen = look(kernel)?;
    for _ in 1..LOOKS {
        let drift = seen.drift();
        if drift.is_empty() {
            break;
        }
        seen = look(kernel)?;
        if seen.drift() == drift && !seen.tables.values().any(|view| view.torn) {
            break;
        }
    }
    Ok(seen)
}

/// What was in the kernel at some time, and may still be: listing it takes longest of all that a look does, so the daemon
/// does it while nobody has to wait for it.
#[derive(Debug)]
pub struct Early {
    generation: u32,
    seen: Observed,
}

impl Early {
    /// Looks at the kernel; `None` if that fails, so that whoever looks in earnest has the error.
    pub fn look(kernel: &mut dyn Kernel) -> Option<Early> {
        let generation = generation::current().ok()?;
        let seen = observe(kernel).ok()?;
        Some(Early { generation, seen })
    }

    /// What was seen, if no transaction of anybody has been committed since that was begun.
    pub fn still(&self) -> Option<&Observed> {
        let same = generation::current().is_ok_and(|now| now == self.generation);
        same.then_some(&self.seen)
    }
}

fn look(kernel: &mut dyn Kernel) -> Result<Observed, Error> {
    let mut observed = Observed::default();
    // One by one: of two tables in one script nft 1.0.6 finds only the last.
    for family in kernel.tables()? {
        match kernel.list(family) {
            Ok(text) => drop(observed.tables.insert(family, View::new(family, text))),
            Err(error) if kernel.tables()?.contains(&family) => return Err(error),
            // Another hand has deleted it since.
            Err(_) => {}
        }
    }
    Ok(observed)
}

impl Observed {
    /// All tables, if the listings could be read.
    pub fn ruleset(&self) -> Option<Ruleset> {
        let tables =
            self.tables.iter().map(|(family, view)| Some((*family, view.table.as_ref().ok()?.clone())));
        Some(Ruleset { tables: tables.collect::<Option<_>>()? })
    }

    /// Why this is not wholly and only the version that its markers say; empty if it is. Leftovers of earlier versions
    /// that no packet can meet do not count.
    pub fn drift(&self) -> Vec<String> {
        self.compared(&|_| true).1
    }

    /// The version in force, if there is one and nothing has drifted.
    pub fn in_force(&self) -> Option<Version> {
        self.in_force_of(&|_| true)
    }

    /// The same of some families alone.
    pub fn in_force_of(&self, families: &dyn Fn(Family) -> bool) -> Option<Version> {
        let (version, drift) = self.compared(families);
        version.filter(|_| drift.is_empty())
    }

    /// The version that the rules are, if there are any that can be read, and why it is not what their markers say.
    fn compared(&self, families: &dyn Fn(Family) -> bool) -> (Option<Version>, Vec<String>) {
        let (mut reasons, mut claimed) = (Vec::new(), BTreeSet::new());
        let mut tables: Option<Vec<(&Family, &Table)>> = Some(Vec::new());
        for (family, view) in self.tables.iter().filter(|(family, _)| families(**family)) {
            match &view.table {
                Err(error) => {
                    reasons.push(format!("table {family}: changed by another hand ({error})"));
                    tables = None;
                }
                Ok(table) => {
                    let markers = nft::markers(table);
                    if markers.len() != 1 {
                        reasons
                            .push(format!("table {family}: {} markers of a version, not one", markers.len()));
                    }
                    claimed.extend(markers);
                    tables.iter_mut().for_each(|tables| tables.push((family, table)));
                }
            }
        }
        let Some(tables) = tables.filter(|tables| !tables.is_empty()) else { return (None, reasons) };
        if claimed.len() > 1 {
            reasons.push("the tables' markers name different versions".into());
        }
        let version = nft::digest_of(tables);
        if !claimed.is_empty() && !claimed.contains(&version) {
            let claimed: Vec<String> = claimed.iter().map(Version::to_string).collect();
            reasons.push(format!("the rules are version {version}, the markers say {}", claimed.join(", ")));
        }
        (Some(version), reasons)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_listing_that_does_not_parse() {
        let text = "table ip netpolc {\n\tcounter c {\n\t\tpackets 0 bytes 0\n\t}\n\tset a_1 {\n\t\ttype mark\n\t}\n\
            \tmap b_2 {\n\t}\n\tchain forward {\n\t\tcomment \"chain x\"\n\t}\n\tchain $(evil) {\n\t}\n}\n";
        let view = View::new(Family::Ip, text.into());
        assert_eq!(view.table.as_ref().unwrap_err().line, 2);
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(view.names, Names { chains: of(&["forward"]), sets: of(&["a_1"]), maps: of(&["b_2"]) });
    }
}
