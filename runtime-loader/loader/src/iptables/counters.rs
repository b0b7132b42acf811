//! The counters in a listing of `iptables-save -c`.

use super::passed;
use netpolc_bundle::comment::denying;
use netpolc_bundle::ipt::{PREFIX, Table};
use std::collections::BTreeMap;

/// The listing as it is without counters of rules: `[PACKETS:BYTES] ` in front of each.
pub fn strip(listing: &str) -> String {
    let mut out = String::with_capacity(listing.len());
    for line in listing.lines() {
        out.push_str(split(line).map_or(line, |(_, rule)| rule));
        out.push('\n');
    }
    out
}

fn split(line: &str) -> Option<(u64, &str)> {
    let (counters, rule) = line.strip_prefix('[')?.split_once("] ")?;
    Some((counters.split_once(':')?.0.parse().ok()?, rule))
}

/// How many packets our rules dropped, or would have dropped in audit mode.
#[derive(Debug, Default)]
pub struct Dropped {
    /// By the kind of chain they stand in: the word behind the prefix, in small letters.
    pub by: BTreeMap<String, u64>,
    /// Of what no policy allows, by direction and policies.
    pub denied: BTreeMap<(String, String), u64>,
}

/// Adds what a listing says.
pub fn dropped(listing: &str, sums: &mut Dropped) {
    let mut ours = false;
    for line in listing.lines() {
        if let Some(name) = line.strip_prefix('*') {
            ours = Table::ALL.iter().any(|table| table.to_string() == name);
        }
        let Some((packets, rule)) = split(line).filter(|_| ours) else { continue };
        let Some(rest) = rule.strip_prefix("-A ").and_then(|rule| rule.strip_prefix(PREFIX)) else {
            continue;
        };
        if !passed::counts(rule) {
            continue;
        }
        let kind = rest.split([' ', '-']).next().unwrap_or_default().to_ascii_lowercase();
        let sum = sums.by.entry(kind).or_default();
        *sum = sum.saturating_add(packets);
        let comment = rule.split_once(" --comment \"").and_then(|(_, rest)| rest.split('"').next());
        if let Some((direction, policies)) = comment.and_then(denying) {
            let sum = sums.denied.entry((direction.to_owned(), policies.to_owned())).or_default();
            *sum = sum.saturating_add(packets);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_have_been_dropped_and_nothing_else_that_returns() {
        let would = |old| passed::comment(old);
        let text = format!(
            "*filter\n[7:9] -A NETPOLC-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
             [3:9] -A NETPOLC-DENY -m comment --comment \"{}\" -j RETURN\n\
             [5:9] -A NETPOLC-DENY -m comment --comment \"no policy\" -j RETURN\n\
             *mangle\n[2:9] -A NETPOLC-PODIF -i veth0 {}\n[4:9] -A FORWARD -m comment --comment \"{}\" -j RETURN\n",
            would(Some("no policy allows it")),
            passed::target(true),
            would(None),
        );
        let mut sums = Dropped::default();
        dropped(&text, &mut sums);
        assert_eq!(sums.by, BTreeMap::from([("deny".to_owned(), 3), ("podif".to_owned(), 2)]));
    }

    #[test]
    fn what_was_dropped_by_which_chain() {
        let text = "*filter\n:FORWARD ACCEPT [7:8]\n[3:180] -A NETPOLC-DENY -m comment --comment \"x\" -j DROP\n\
            [2:9] -A NETPOLC-STRANGE-0011 -d 10.0.0.1/32 -j DROP\n[1:9] -A NETPOLC-STRANGE-0022 -j DROP\n\
            [9:9] -A FORWARD -j DROP\n[9:9] -A NETPOLC-FORWARD -j NETPOLC-DENY\nCOMMIT\n";
        let mut sums = Dropped::default();
        dropped(text, &mut sums);
        assert_eq!(sums.by, BTreeMap::from([("deny".to_owned(), 3), ("strange".to_owned(), 3)]));
        assert!(
            strip(text).contains("\n-A NETPOLC-STRANGE-0022 -j DROP\n:FORWARD")
                || strip(text).contains("\n-A FORWARD -j DROP\n")
        );
    }
}
