//! OwnTables of nftables that the daemon keeps beside those of the policies: made in one transaction, and made anew where
//! another hand has changed them.

use super::program::run;
use crate::{Error, generation};
use std::collections::BTreeMap;
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
}

impl OwnTables {
    /// Nothing was made yet.
    pub fn new(name: &'static str) -> OwnTables {
        OwnTables { name, generation: None, wanted: BTreeMap::new(), listed: BTreeMap::new() }
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
