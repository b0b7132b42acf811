//! A table with names replaced by numbers, so that running it looks nothing up by name.

use crate::decode::{Value, find_element};
use netpolc_bundle::nft::{self, Field, Match, Set, Table, Verdict};
use rustc_hash::FxHashMap;

/// A set of the table, by its place among the names.
pub(super) type SetId = usize;

/// A verdict with the chain's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Drop,
    Return,
    Jump(usize),
    Goto(usize),
}

/// What a rule does when its matches hold.
#[derive(Debug)]
pub(super) enum Outcome {
    Action(Action),
    Vmap(Vec<Field>, SetId),
}

/// A rule.
#[derive(Debug)]
pub(super) struct Rule {
    /// The matches, with the number of the set that each looks into. A set that is not there matches nothing.
    pub(super) matches: Vec<(Match, Option<SetId>)>,
    pub(super) outcome: Outcome,
}

/// All chains of a table.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) chains: Vec<Vec<Rule>>,
    /// The chains with a hook, in the order of their priorities.
    pub(super) bases: Vec<usize>,
    chain_ids: FxHashMap<String, usize>,
    set_names: Vec<String>,
}

impl Program {
    pub(super) fn new(table: &Table) -> Program {
        let mut program = Program {
            chain_ids: table.chains.keys().enumerate().map(|(i, name)| (name.clone(), i)).collect(),
            set_names: table.sets.keys().cloned().collect(),
            ..Program::default()
        };
        let mut bases: Vec<(i32, usize)> =
            table.chains.values().enumerate().filter_map(|(i, c)| c.hook.map(|h| (h.priority, i))).collect();
        bases.sort_unstable();
        program.bases = bases.into_iter().map(|(_, i)| i).collect();
        program.chains =
            table.chains.values().map(|c| c.rules.iter().filter_map(|r| program.rule(r)).collect()).collect();
        program
    }

    /// A rule with numbers; `None` if it looks up a verdict in a map that is not there and so never does anything.
    fn rule(&self, rule: &nft::Rule) -> Option<Rule> {
        let set = |m: &Match| match m {
            Match::InSet(_, name) => self.set_id(name),
            _ => None,
        };
        let matches = rule.matches.iter().map(|m| (m.clone(), set(m))).collect();
        let outcome = match &rule.outcome {
            nft::Outcome::Verdict(verdict) => Outcome::Action(self.action(verdict)),
            nft::Outcome::Vmap(fields, map) => Outcome::Vmap(fields.clone(), self.set_id(map)?),
        };
        Some(Rule { matches, outcome })
    }

    fn set_id(&self, name: &str) -> Option<SetId> {
        self.set_names.binary_search_by(|n| n.as_str().cmp(name)).ok()
    }

    /// The verdict with the chain's number. A chain that is not there has no number, and its packets are dropped.
    pub(super) fn action(&self, verdict: &Verdict) -> Action {
        let chain = |name: &String| self.chain_ids.get(name).copied().unwrap_or(usize::MAX);
        match verdict {
            Verdict::Accept => Action::Accept,
            Verdict::Drop => Action::Drop,
            Verdict::Return => Action::Return,
            Verdict::Jump(name) => Action::Jump(chain(name)),
            Verdict::Goto(name) => Action::Goto(chain(name)),
        }
    }

    /// A set by its number.
    pub(super) fn set<'t>(&self, table: &'t Table, id: SetId) -> &'t Set {
        &table.sets[&self.set_names[id]]
    }

    /// The verdict of a map for some values.
    pub(super) fn lookup(&self, table: &Table, map: SetId, values: &[Value]) -> Option<Action> {
        find_element(self.set(table, map), values).and_then(Option::as_ref).map(|v| self.action(v))
    }
}
