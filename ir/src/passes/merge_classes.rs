//! `merge-classes`: classes that no set tells apart become one class.
//!
//! Two classes are one if the same sets list them and their addresses are in the blocks of the same sets. A class without
//! addresses is united with such classes only, since nothing is known about the addresses that it may get. The new class
//! is named after the first name in alphabetical order, with the number of the others: `x app=db +3`.
//!
//! Sound because a rule or isolation sees a flow's ends only as members of its sets, and two addresses of the united class
//! are members of the same sets. (That a pod reaches itself and its node does not depend on classes.)
//! Needs verified input: with U6 one address speaks for its class. Finds more after `sweep`, since unused sets tell
//! classes apart too. Costs a hash of the sets' class lists, and what U6 costs.

use crate::unit::*;
use crate::verify::stretches::Stretches;
use cranelift_entity::{EntityRef, PrimaryMap};
use std::collections::HashMap;

/// The pass.
pub fn run(mut unit: Unit) -> Unit {
    let groups = Stretches::new(&unit).class_groups(&unit);
    let mut listed: Vec<Vec<Set>> = vec![Vec::new(); unit.classes.len()];
    for (set, data) in unit.sets.iter() {
        data.classes.iter().for_each(|c| listed[c.index()].push(set));
    }
    let mut index: HashMap<(Vec<Set>, Option<u32>), Class> = HashMap::new();
    let mut members: PrimaryMap<Class, Vec<String>> = PrimaryMap::new();
    let mut new: PrimaryMap<Class, Class> = PrimaryMap::new();
    for (key, (_, name)) in listed.into_iter().zip(groups).zip(std::mem::take(&mut unit.classes)) {
        let class = *index.entry(key).or_insert_with(|| members.push(Vec::new()));
        members[class].push(name);
        new.push(class);
    }
    for (_, names) in members {
        unit.classes.push(joined(names));
    }
    for data in unit.sets.values_mut() {
        data.classes.iter_mut().for_each(|c| *c = new[*c]);
        data.classes.sort_unstable();
        data.classes.dedup();
    }
    for (_, class) in unit.endpoints.values_mut().flat_map(|e| &mut e.addrs) {
        *class = new[*class];
    }
    unit
}

/// The name of several classes. A part that is itself named `... +3` counts as four.
fn joined(mut names: Vec<String>) -> String {
    if names.len() == 1 {
        return names.remove(0);
    }
    let parts = names.iter().map(|name| {
        let counted = name.rsplit_once(" +").and_then(|(name, n)| Some((name, n.parse::<u32>().ok()?)));
        counted.unwrap_or((name, 0))
    });
    let parts: Vec<(&str, u32)> = parts.collect();
    let others: u64 = parts.iter().map(|&(_, n)| 1 + u64::from(n)).sum::<u64>() - 1;
    let first = parts.iter().map(|p| p.0).min().unwrap_or_default();
    format!("{first} +{others}")
}
