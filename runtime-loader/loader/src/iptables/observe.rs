//! What is in the kernel now.
//!
//! Listings go through the parser of artifacts, sets and families apart. A listing that the parser refuses shows that
//! another hand was at our chains. What must be known then to mend them (names, jumps, lines) is read by [`Scan`], which
//! takes lines as they are.

use super::variant::{Scope, Tools, View};
use crate::Error;
use crate::kernel::Kernel;
use crate::nftables::observe::LOOKS;
use netpolc_bundle::ipt::{
    self, Chains, Family, Hook, MARKER_PREFIX, Match, PODIF, PREFIX, ParseError, Rule, Ruleset, Set, Table,
    Texts,
};
use netpolc_bundle::{Version, nft};
use std::collections::{BTreeMap, BTreeSet};

/// What the name of the marker begins with that stands beside the version's where only IPv4 can be enforced; the digits of
/// the [`Version`] of that half follow.
pub const HALF_PREFIX: &str = "NETPOLC-V4-";

/// One table of a listing, line by line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scan {
    /// The names of our chains.
    pub chains: BTreeSet<String>,
    /// Their rules, as they were printed, with `-A`.
    pub rules: Vec<String>,
    /// Whether the first rule of the built-in chain is the plain jump to our entry.
    pub first: bool,
    /// How many rules are that jump.
    pub jumps: usize,
    /// Other rules in chains of others that lead to ours, without `-A`.
    pub strays: Vec<String>,
    /// Whether a chain of ours is listed twice, which no table can have: see [`LOOKS`].
    pub torn: bool,
}

impl Scan {
    /// Reads one table of what a save program printed.
    pub fn of(text: &str, table: Table) -> Scan {
        let mut scan = Scan::default();
        let (mut inside, mut first) = (false, true);
        let plain = format!("{} -j {}", table.built_in(), table.entry());
        let entrance = format!("{} ", table.built_in());
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                inside = name == table.to_string();
            } else if !inside {
                continue;
            } else if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
                if is_ours(chain) {
                    scan.torn |= !scan.chains.insert(chain.to_owned());
                }
            } else if let Some(rule) = line.strip_prefix("-A ") {
                if rule.starts_with(PREFIX) {
                    scan.rules.push(line.to_owned());
                    continue;
                }
                if rule == plain {
                    scan.first |= first;
                    scan.jumps += 1;
                } else if leads_to_ours(rule) {
                    scan.strays.push(rule.to_owned());
                }
                first &= !rule.starts_with(&entrance);
            }
        }
        scan
    }

    /// Whether there is nothing of ours.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.jumps == 0 && self.strays.is_empty()
    }

    /// Whether packets meet our chains as they should.
    fn well_reached(&self) -> bool {
        self.first && self.jumps == 1 && self.strays.is_empty()
    }
}

/// Whether a chain's name is ours and can be written into a file for iptables-restore as it is.
fn is_ours(chain: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\'' | b'\\');
    chain.starts_with(PREFIX) && chain.bytes().all(plain)
}

/// Whether a rule's target is a chain of ours. The save programs print the target last, and a comment that ends so ends
/// with a quote.
fn leads_to_ours(rule: &str) -> bool {
    let mut words = rule.rsplit(' ');
    let (target, option) = (words.next(), words.next());
    matches!(option, Some("-j" | "-g")) && target.is_some_and(is_ours)
}

/// The tables of one family, and how they are reached.
pub type Tables = (BTreeMap<Table, Chains>, BTreeMap<Table, Hook>);

/// Everything of ours in the kernel, as far as one variant shows it.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The programs that it was seen with.
    pub tools: Tools,
    /// The sets.
    pub sets: Result<BTreeMap<String, Set>, ParseError>,
    /// The names of the sets, and what each is: `TYPE family FAMILY`.
    pub set_names: BTreeMap<String, String>,
    /// What the listings of the families say of our chains.
    pub tables: BTreeMap<Family, Result<Tables, ParseError>>,
    /// The listings line by line.
    pub scans: BTreeMap<(Family, Table), Scan>,
}

/// Reads what a variant showed, and looks at the sets. Where something seems to have drifted, the variant is asked again:
/// that of nftables may list something else than there is ([`LOOKS`]).
///
/// # Errors
/// If permission lacks, or if the variant's programs fail.
pub fn observe(kernel: &mut dyn Kernel, view: View) -> Result<Observed, Error> {
    let mut seen = read(kernel, view)?;
    for _ in 1..LOOKS {
        let drift = seen.drift();
        if drift.is_empty() {
            break;
        }
        let view = View::take(kernel, seen.tools.clone(), Scope::Ours)?;
        seen = read(kernel, view)?;
        if seen.drift() == drift && !seen.scans.values().any(|scan| scan.torn) {
            break;
        }
    }
    Ok(seen)
}

fn read(kernel: &mut dyn Kernel, view: View) -> Result<Observed, Error> {
    let text = saved_sets(kernel)?;
    let sets = ipt::listing(&Texts { sets: &text, ..Texts::default() }).map(|listing| listing.ruleset.sets);
    let (mut tables, mut scans) = (BTreeMap::new(), BTreeMap::new());
    for (family, text) in &view.texts {
        let texts = match family {
            Family::V4 => Texts { v4: text, ..Texts::default() },
            Family::V6 => Texts { v6: text, ..Texts::default() },
        };
        let read = ipt::listing(&texts).map(|listing| {
            let chains = listing.ruleset.tables.into_iter().map(|((_, table), chains)| (table, chains));
            let hooks = listing.hooks.into_iter().map(|((_, table), hook)| (table, hook));
            (chains.filter(|(_, chains)| !chains.is_empty()).collect(), hooks.collect())
        });
        tables.insert(*family, read);
        scans.extend(Table::ALL.map(|table| ((*family, table), Scan::of(text, table))));
    }
    Ok(Observed { tools: view.tools, sets, set_names: set_names(&text), tables, scans })
}

/// What `ipset save` prints; nothing where there is no ipset, or where the kernel has none.
pub fn saved_sets(kernel: &mut dyn Kernel) -> Result<String, Error> {
    match kernel.program("ipset", &["save"], "") {
        Ok(text) => Ok(text),
        Err(Error::NoProgram { .. } | Error::Program { .. }) => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// The names of our sets in what `ipset save` printed, and what each is.
pub fn set_names(text: &str) -> BTreeMap<String, String> {
    let created = text.lines().filter_map(|line| line.strip_prefix("create ")?.split_once(' '));
    let kind = |rest: &str| rest.split(' ').take(3).collect::<Vec<_>>().join(" ");
    created.filter(|(name, _)| is_ours(name)).map(|(name, rest)| (name.to_owned(), kind(rest))).collect()
}

/// A family as the messages and figures call it.
pub fn word(family: Family) -> nft::Family {
    match family {
        Family::V4 => nft::Family::Ip,
        Family::V6 => nft::Family::Ip6,
    }
}

impl Observed {
    /// Whether there is nothing of ours.
    pub fn is_empty(&self) -> bool {
        self.set_names.is_empty() && self.scans.values().all(Scan::is_empty)
    }

    /// Whether there are chains of ours.
    pub fn has_chains(&self) -> bool {
        self.scans.values().any(|scan| !scan.chains.is_empty())
    }

    /// Whether there are chains of ours in a family.
    pub fn has_chains_of(&self, family: Family) -> bool {
        self.scans.iter().any(|((of, _), scan)| *of == family && !scan.chains.is_empty())
    }

    /// All of it, if the listings could be read.
    pub fn ruleset(&self) -> Option<Ruleset> {
        let mut ruleset = Ruleset { sets: self.sets.as_ref().ok()?.clone(), tables: BTreeMap::new() };
        for (family, read) in &self.tables {
            let (tables, _) = read.as_ref().ok()?;
            ruleset.tables.extend(tables.iter().map(|(table, chains)| ((*family, *table), chains.clone())));
        }
        Some(ruleset)
    }

    /// What packets meet of it: chains without a jump from the built-in chain are left out.
    pub fn reached(&self) -> Option<Ruleset> {
        let mut ruleset = self.ruleset()?;
        ruleset.tables.retain(|key, _| self.scans.get(key).is_some_and(|scan| scan.jumps > 0));
        ipt::check(&ruleset).is_ok().then_some(ruleset)
    }

    /// The interfaces of pods that the rules of a family know; `None` where there is no chain for them.
    pub fn interfaces(&self, family: Family) -> Option<BTreeSet<String>> {
        let names =
            self.podif(family)?.iter().flat_map(|rule| &rule.matches).filter_map(|found| match found {
                Match::Interface(name) => Some(name.clone()),
                _ => None,
            });
        Some(names.collect())
    }

    /// The rules of the chain of interfaces of a family; `None` where there is no such chain.
    pub fn podif(&self, family: Family) -> Option<&[Rule]> {
        let (tables, _) = self.tables.get(&family)?.as_ref().ok()?;
        tables.get(&Table::Mangle)?.get(PODIF).map(Vec::as_slice)
    }

    /// Why this is not wholly and only the version that its markers say; empty if it is. Leftovers of earlier versions
    /// that no packet can meet do not count.
    pub fn drift(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Err(error) = &self.sets {
            reasons.push(format!("sets: changed by another hand ({error})"));
        }
        for (family, read) in &self.tables {
            if let Err(error) = read {
                reasons.push(format!("family {}: changed by another hand ({error})", word(*family)));
            }
        }
        for (&(family, table), scan) in &self.scans {
            reasons.extend(ways(family, table, scan));
        }
        let Some(ruleset) = self.ruleset() else { return reasons };
        let (claimed, halves) = (self.markers(&mut reasons), self.halves());
        let version = ipt::digest(&ruleset);
        if claimed.len() > 1 {
            reasons.push("the markers of the families name different versions".into());
        }
        let is_half =
            !ruleset.tables.keys().any(|(family, _)| *family == Family::V6) && halves.contains(&version);
        if !claimed.is_empty() && !claimed.contains(&version) && !is_half {
            let claimed: Vec<String> = claimed.iter().map(Version::to_string).collect();
            reasons.push(format!("the rules are version {version}, the markers say {}", claimed.join(", ")));
        }
        reasons
    }

    /// The versions that the markers of all families name.
    fn markers(&self, reasons: &mut Vec<String>) -> BTreeSet<Version> {
        let mut claimed = BTreeSet::new();
        for (family, read) in &self.tables {
            let Ok((tables, _)) = read else { continue };
            if tables.is_empty() {
                continue;
            }
            let markers = tables.get(&Table::Filter).map(ipt::markers).unwrap_or_default();
            if markers.len() != 1 {
                let family = word(*family);
                reasons.push(format!("family {family}: {} markers of a version, not one", markers.len()));
            }
            claimed.extend(markers);
        }
        claimed
    }

    /// The versions of IPv4's half that are marked.
    fn halves(&self) -> BTreeSet<Version> {
        let chains = self.scans.get(&(Family::V4, Table::Filter)).map(|scan| &scan.chains);
        let digits = chains.into_iter().flatten().filter_map(|name| name.strip_prefix(HALF_PREFIX));
        digits.filter_map(|digits| digits.parse().ok()).collect()
    }

    /// The version in force, if there is one and nothing has drifted.
    pub fn in_force(&self) -> Option<Version> {
        if !self.has_chains() || !self.drift().is_empty() {
            return None;
        }
        let chains = self.scans.get(&(Family::V4, Table::Filter))?.chains.iter();
        chains.filter_map(|name| name.strip_prefix(MARKER_PREFIX)).find_map(|digits| digits.parse().ok())
    }
}

/// What is wrong with the ways to our chains in one table.
fn ways(family: Family, table: Table, scan: &Scan) -> Vec<String> {
    let (built_in, entry) = (table.built_in(), table.entry());
    let at = format!("family {}, table {table}", word(family));
    let mut reasons = Vec::new();
    if scan.chains.is_empty() || scan.well_reached() {
        return reasons;
    }
    if !scan.chains.contains(entry) {
        reasons.push(format!("{at}: chain {entry} is missing"));
    } else if scan.jumps == 0 {
        reasons.push(format!("{at}: {built_in} does not jump to {entry}"));
    } else if !scan.first {
        reasons.push(format!("{at}: rules of others stand before the jump from {built_in} to {entry}"));
    }
    if scan.jumps > 1 {
        reasons.push(format!("{at}: {built_in} jumps to {entry} {} times", scan.jumps));
    }
    reasons
        .extend(scan.strays.iter().map(|rule| format!("{at}: a rule of another hand leads to ours: {rule}")));
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "*filter\n:FORWARD ACCEPT [0:0]\n:NETPOLC-FORWARD - [0:0]\n:FOREIGN - [0:0]\n\
        -A INPUT -j FOREIGN\n-A FORWARD -m comment --comment \"x -j NETPOLC-FORWARD\" -j ACCEPT\n\
        -A FORWARD -j NETPOLC-FORWARD\n-A FOREIGN -s 10.0.0.0/8 -g NETPOLC-FORWARD\n\
        -A FOREIGN -m comment --comment \"-j NETPOLC-FORWARD\"\n-A NETPOLC-FORWARD -j NETPOLC-DENY\nCOMMIT\n\
        *nat\n:NETPOLC-FORWARD - [0:0]\n-A FORWARD -j NETPOLC-FORWARD\nCOMMIT\n";

    #[test]
    fn a_table_line_by_line() {
        let scan = Scan::of(LISTING, Table::Filter);
        assert_eq!(scan.chains, BTreeSet::from(["NETPOLC-FORWARD".to_owned()]));
        assert_eq!(scan.rules, ["-A NETPOLC-FORWARD -j NETPOLC-DENY"]);
        assert_eq!((scan.first, scan.jumps), (false, 1));
        assert_eq!(scan.strays, ["FOREIGN -s 10.0.0.0/8 -g NETPOLC-FORWARD"]);
        assert!(Scan::of(LISTING, Table::Mangle).is_empty());
        // Rules of other built-in chains do not come before ours.
        let first = Scan::of("*filter\n-A INPUT -j DROP\n-A FORWARD -j NETPOLC-FORWARD\n", Table::Filter);
        assert!(first.first);
    }
}
