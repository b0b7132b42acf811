//! What a kernel has: the output of `ipset save`, `iptables-save` and `ip6tables-save`, with everybody's rules in it.

use super::rules::{append, declare, is_hook, is_interface};
use super::sets::Sets;
use super::words::{Budget, ParseError, is_blank, lines};
use super::{Family, PODIF, PREFIX, Ruleset, Table, Texts};
use std::collections::BTreeMap;

/// How the built-in chain of a table leads to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hook {
    /// Whether its first rule jumps to our entry, whatever the packet. Only then does every packet meet our rules.
    pub first: bool,
    /// How many of its rules do so.
    pub count: usize,
}

/// What of ours a kernel has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Our chains and sets.
    pub ruleset: Ruleset,
    /// How they are reached; nothing stands here for a table that is not listed.
    pub hooks: BTreeMap<(Family, Table), Hook>,
}

/// Reads listings. Lines about chains and sets of others are passed over.
///
/// # Errors
/// If our chains and sets hold what netpolc never writes.
pub fn listing(texts: &Texts<'_>) -> Result<Listing, ParseError> {
    let mut budget = Budget::new();
    let mut sets = Sets::new();
    lines("ipset", texts.sets, |line| {
        let ours = line.split(' ').nth(1).is_some_and(|name| name.starts_with(PREFIX));
        if ours { sets.line(line, &mut budget) } else { Ok(()) }
    })?;
    let mut listing = Listing::default();
    listing.ruleset.sets = sets.sets;
    for (file, family, text) in [("iptables", Family::V4, texts.v4), ("ip6tables", Family::V6, texts.v6)] {
        let mut open: Option<Table> = None;
        let mut first = false;
        lines(file, text, |line| {
            if let Some(table) = line.strip_prefix('*') {
                open = Table::ALL.into_iter().find(|t| t.to_string() == table);
                first = true;
            }
            let Some(table) = open.filter(|_| !is_blank(line)) else { return Ok(()) };
            let hook = listing.hooks.entry((family, table)).or_default();
            if let Some(declaration) = line.strip_prefix(':').filter(|d| d.starts_with(PREFIX)) {
                let chains = listing.ruleset.tables.entry((family, table)).or_default();
                declare(chains, declaration, &mut budget)?;
            } else if line.strip_prefix("-A ").is_some_and(|rule| rule.starts_with(PREFIX)) {
                let chains = listing.ruleset.tables.entry((family, table)).or_default();
                append(chains, family, line, &mut budget)?;
            } else if line.strip_prefix("-A ").and_then(|r| r.split(' ').next()) == Some(table.built_in()) {
                let jumps = is_hook(table, line);
                hook.first |= first && jumps;
                hook.count += usize::from(jumps);
                first = false;
            }
            Ok(())
        })?;
    }
    Ok(listing)
}

/// A text for iptables-restore with more lines at the end of a table, before its `COMMIT`: for rules of the loader's own,
/// so that they come into force in the same transaction. `None` if the text has no such table.
///
/// `interfaces` become rules of [`PODIF`] in `mangle`; those that cannot be an interface's name are left out. `lines` are
/// put there as they are.
pub fn with_lines(text: &str, table: Table, interfaces: &[String], lines: &[String]) -> Option<String> {
    let head = format!("*{table}\n");
    let start = if text.starts_with(&head) { 0 } else { text.find(&format!("\n{head}"))? + 1 };
    let end = start + text.get(start..)?.find("\nCOMMIT\n")? + 1;
    let mut out = String::with_capacity(text.len() + 64 * (interfaces.len() + lines.len()));
    out.push_str(text.get(..end)?);
    if table == Table::Mangle {
        for name in interfaces.iter().filter(|name| is_interface(name)) {
            out.push_str(&format!("-A {PODIF} -i {name} -j DROP\n"));
        }
    }
    for line in lines {
        out.push_str(line);
        out.push('\n');
    }
    out.push_str(text.get(end..)?);
    Some(out)
}
