//! Tables of nftables that the daemon keeps beside those of the policies: made in one transaction, and made anew where
//! another hand has changed them.

use super::program::run;
use crate::batch::Batch;
use crate::{Error, generation};
use netpolc_bundle::nft::Edit;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

/// The families, as nft names them.
const FAMILIES: [&str; 2] = ["ip", "ip6"];

/// The tables of one name, one for each family.
#[derive(Debug)]
pub struct OwnTables {
    name: &'static str,
    /// The number of nftables' last transaction when all was well.
    generation: Option<u32>,
    /// What is in the tables, by family: what stands between their braces.
    wanted: BTreeMap<&'static str, String>,
    /// What nft listed after the tables were made.
    listed: BTreeMap<&'static str, String>,
    /// Whether elements were changed since.
    edited: bool,
}

impl OwnTables {
    /// Nothing was made yet.
    pub fn new(name: &'static str) -> OwnTables {
        OwnTables { name, generation: None, wanted: BTreeMap::new(), listed: BTreeMap::new(), edited: false }
    }

    /// Makes it so that there are these tables and no others of this name; what was done, if anything had to be.
    ///
    /// # Errors
    /// If nft refuses; then what was there still is.
    pub fn converge(
        &mut self,
        nft: &Path,
        wanted: &BTreeMap<&'static str, String>,
    ) -> Result<Vec<String>, Error> {
        let now = generation::current().ok();
        let same = *wanted == self.wanted;
        if same && now.is_some() && now == self.generation {
            return Ok(Vec::new());
        }
        let mut changes = Vec::new();
        let before = self.list(nft);
        if std::mem::take(&mut self.edited) && same && before.keys().eq(wanted.keys()) {
            let as_wanted = |family: &&'static str| {
                let texts = (self.listed.get(family), before.get(family), wanted.get(family));
                let (Some(old), Some(new), Some(wanted)) = texts else { return false };
                let ((rest, elements), (_, wanted)) = (parts(new), parts(wanted));
                rest == parts(old).0 && elements == wanted
            };
            if wanted.keys().all(as_wanted) {
                self.listed.clone_from(&before);
            }
        }
        if !same || before != self.listed {
            run(nft, &["-f", "-"], &self.script(wanted, &before))?;
            self.wanted.clone_from(wanted);
            self.listed = self.list(nft);
            for family in FAMILIES {
                match (before.get(family), self.listed.get(family)) {
                    // A predecessor may have made the very same.
                    (before, after) if before == after => {}
                    (_, Some(_)) => changes.push(format!("table {family} {} made", self.name)),
                    (_, None) => changes.push(format!("table {family} {} deleted", self.name)),
                }
            }
        }
        // If something has changed meanwhile, the next look finds another number.
        self.generation = if changes.is_empty() { now } else { None };
        Ok(changes)
    }

    /// Changes elements of the tables' sets, after which they are as wanted; whether that was possible. It is not where the
    /// tables have to be made first, where something else of them differs, or where another hand has been at them so that the
    /// kernel refuses.
    pub fn edit(&mut self, edits: &[Edit], wanted: &BTreeMap<&'static str, String>) -> bool {
        let rest = |bodies: &BTreeMap<&'static str, String>| {
            bodies.iter().map(|(family, body)| (*family, parts(body).0)).collect::<Vec<_>>()
        };
        if edits.is_empty() || self.wanted.is_empty() || rest(&self.wanted) != rest(wanted) {
            return false;
        }
        let mut batch = Batch::default();
        if edits.iter().any(|edit| batch.element(self.name, edit).is_none()) || batch.commit().is_err() {
            return false;
        }
        self.wanted.clone_from(wanted);
        self.edited = true;
        self.generation = None;
        true
    }

    /// Takes all tables of this name out; what there was.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn remove(&mut self, nft: &Path) -> Result<Vec<String>, Error> {
        let before = self.list(nft);
        if before.is_empty() {
            return Ok(Vec::new());
        }
        run(nft, &["-f", "-"], &self.script(&BTreeMap::new(), &before))?;
        Ok(before.keys().map(|family| format!("table {family} {} deleted", self.name)).collect())
    }

    /// What is there.
    fn list(&self, nft: &Path) -> BTreeMap<&'static str, String> {
        let list = |family: &&'static str| {
            // Counters go on counting.
            let text = run(nft, &["-s", "list", "table", family, self.name], "").ok()?;
            Some((*family, text))
        };
        FAMILIES.iter().filter_map(list).collect()
    }

    /// The old tables go and the new ones come in one transaction.
    fn script(
        &self,
        wanted: &BTreeMap<&'static str, String>,
        before: &BTreeMap<&'static str, String>,
    ) -> String {
        let name = self.name;
        let gone = before.keys().filter(|family| !wanted.contains_key(*family));
        let gone = gone.map(|family| format!("delete table {family} {name}\n"));
        // Also where the listing failed: a table that is there would else keep its rules and elements beside the new ones.
        let come = wanted.iter().map(|(family, body)| {
            let table = format!("table {family} {name}");
            format!("{table} {{\n}}\ndelete {table}\n{table} {{\n{body}}}\n")
        });
        gone.chain(come).collect()
    }
}

/// A table without the elements of its named set, and these.
fn parts(text: &str) -> (String, BTreeSet<IpAddr>) {
    let (mut rest, mut elements) = (String::new(), BTreeSet::new());
    let mut inside = false;
    for line in text.lines() {
        let mut line = line.trim();
        if let Some(first) = line.strip_prefix("elements = {") {
            (inside, line) = (true, first);
        } else if !inside {
            rest.push_str(line);
            rest.push('\n');
        }
        if inside {
            let (list, end) = line.split_once('}').map_or((line, false), |(list, _)| (list, true));
            elements.extend(list.split(',').filter_map(|element| element.trim().parse::<IpAddr>().ok()));
            inside = !end;
        }
    }
    (rest, elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_stand_apart_from_the_rest() {
        let table = |elements: &str| {
            format!(
                "table ip t {{\n\tset known {{\n\t\ttype ipv4_addr\n{elements}\t}}\n\tchain c {{\n\t}}\n}}\n"
            )
        };
        let (without, none) = parts(&table(""));
        let (with, two) = parts(&table("\t\telements = { 10.0.0.1,\n\t\t\t     10.0.0.2 }\n"));
        assert_eq!((&without, none.len()), (&with, 0));
        assert_eq!(two, BTreeSet::from(["10.0.0.1", "10.0.0.2"].map(|addr| addr.parse().unwrap())));
        assert_ne!(parts(&table("\t\tflags interval\n")).0, without);
    }
}
