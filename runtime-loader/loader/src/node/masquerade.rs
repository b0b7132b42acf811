//! Masquerade: what pods send out of the cluster leaves with the node's address.
//!
//! By tables of nftables of our own, `ip netpolc_masq` and `ip6 netpolc_masq`, or where there is no nft by a chain of our
//! own in the table `nat` of iptables, with one rule of `POSTROUTING` that leads there. They are no part of the policies'
//! tables, which a bundle replaces.

use super::cidr::{Cidr, outermost};
use super::own_tables::OwnTables;
use super::program::{find, run};
use crate::Error;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// The name of our tables.
pub const TABLE: &str = "netpolc_masq";

/// The name of our chain where there is no nft.
pub const CHAIN: &str = "NETPOLC-MASQ";

/// How many rules that lead to our chain are deleted. We make one.
const JUMPS: u32 = 16;

/// What goes to groups of receivers stays as it is.
const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];

/// What is to be masqueraded, for one family.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    from: Vec<Cidr>,
    not_to: Vec<Cidr>,
}

/// Keeps it so.
#[derive(Debug)]
pub struct Masquerade {
    tables: OwnTables,
}

impl Default for Masquerade {
    fn default() -> Masquerade {
        Masquerade { tables: OwnTables::new(TABLE) }
    }
}

impl Masquerade {
    /// Makes it so; what was done, if anything had to be.
    ///
    /// # Errors
    /// If the programs refuse.
    pub fn converge(&mut self, pods: &[Cidr], cluster: &[Cidr]) -> Result<Vec<String>, Error> {
        let Some(nft) = find(&["nft"]) else { return by_iptables(pods, cluster) };
        let bodies =
            rules(pods, cluster).iter().map(|(family, rule)| (*family, body(family, rule))).collect();
        self.tables.converge(&nft, &bodies)
    }
}

/// The outermost of these ranges by family, for families that have any.
pub(super) fn of_families(ranges: &[Cidr]) -> BTreeMap<&'static str, Vec<Cidr>> {
    let of = |ipv4: bool| outermost(ranges.iter().copied().filter(|range| range.is_ipv4() == ipv4));
    [("ip", of(true)), ("ip6", of(false))].into_iter().filter(|(_, ranges)| !ranges.is_empty()).collect()
}

fn rules(pods: &[Cidr], cluster: &[Cidr]) -> BTreeMap<&'static str, Rule> {
    let multicast = MULTICAST.iter().filter_map(|text| Cidr::parse(text));
    let all: Vec<Cidr> = pods.iter().chain(cluster).copied().chain(multicast).collect();
    let mut not_to = of_families(&all);
    let rule = |(family, from)| (family, Rule { from, not_to: not_to.remove(family).unwrap_or_default() });
    of_families(pods).into_iter().map(rule).collect()
}

pub(super) fn joined(ranges: &[Cidr]) -> String {
    ranges.iter().map(Cidr::to_string).collect::<Vec<_>>().join(", ")
}

/// What is in the table of one family.
fn body(family: &str, rule: &Rule) -> String {
    format!(
        "\tchain postrouting {{\n\t\ttype nat hook postrouting priority 100; policy accept;\n\
         \t\t{family} saddr {{ {} }} {family} daddr != {{ {} }} masquerade fully-random\n\t}}\n",
        joined(&rule.from),
        joined(&rule.not_to)
    )
}

/// Makes it so with iptables; what was done, if anything had to be.
///
/// # Errors
/// If it is not installed, or refuses.
pub fn by_iptables(pods: &[Cidr], cluster: &[Cidr]) -> Result<Vec<String>, Error> {
    let rules = rules(pods, cluster);
    let mut changes = Vec::new();
    for (family, program) in [("ip", "iptables"), ("ip6", "ip6tables")] {
        let restore = find(&[&format!("{program}-restore")]);
        let (Some(tool), Some(restore)) = (find(&[program]), restore) else {
            match rules.get(family) {
                Some(_) => {
                    let message = "neither nft nor iptables is installed".to_owned();
                    return Err(Error::Tool { program: program.to_owned(), message });
                }
                None => continue,
            }
        };
        match rules.get(family) {
            Some(rule) => {
                let before = run(&tool, &["-w", "-t", "nat", "-S", CHAIN], "").ok();
                let jumps = run(&tool, &["-w", "-t", "nat", "-C", "POSTROUTING", "-j", CHAIN], "").is_ok();
                run(&restore, &["-w", "--noflush"], &restore_text(rule, jumps))?;
                let after = run(&tool, &["-w", "-t", "nat", "-S", CHAIN], "")?;
                if before.as_ref() != Some(&after) || !jumps {
                    changes.push(format!("{program} chain {CHAIN} made"));
                }
            }
            None => changes.extend(without(program, &tool)?),
        }
    }
    Ok(changes)
}

/// A file for iptables-restore. A chain that is declared is emptied first, in the same transaction.
fn restore_text(rule: &Rule, jumps: bool) -> String {
    let mut text = format!("*nat\n:{CHAIN} - [0:0]\n");
    // Writing into a string cannot fail.
    for range in &rule.not_to {
        let _ = writeln!(text, "-A {CHAIN} -d {range} -j RETURN");
    }
    for range in &rule.from {
        let _ = writeln!(text, "-A {CHAIN} -s {range} -j MASQUERADE --random-fully");
    }
    if !jumps {
        let _ = writeln!(text, "-A POSTROUTING -j {CHAIN}");
    }
    text + "COMMIT\n"
}

/// Takes our chain out, if it is there.
fn without(program: &str, tool: &Path) -> Result<Option<String>, Error> {
    if run(tool, &["-w", "-t", "nat", "-S", CHAIN], "").is_err() {
        return Ok(None);
    }
    for _ in 0..JUMPS {
        if run(tool, &["-w", "-t", "nat", "-D", "POSTROUTING", "-j", CHAIN], "").is_err() {
            break;
        }
    }
    run(tool, &["-w", "-t", "nat", "-F", CHAIN], "")?;
    run(tool, &["-w", "-t", "nat", "-X", CHAIN], "")?;
    Ok(Some(format!("{program} chain {CHAIN} deleted")))
}

/// Takes out all of ours; what there was. iptables is asked only where there is no nft, since to ask it may make tables.
///
/// # Errors
/// If a program refuses.
pub fn remove() -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    if let Some(nft) = find(&["nft"]) {
        return OwnTables::new(TABLE).remove(&nft);
    }
    for program in ["iptables", "ip6tables"] {
        if let Some(tool) = find(&[program]) {
            done.extend(without(program, &tool)?);
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_each_family() {
        let parse = |texts: &[&str]| texts.iter().map(|t| Cidr::parse(t).unwrap()).collect::<Vec<_>>();
        let pods = parse(&["10.244.1.0/24", "fd00:1::/64"]);
        let cluster = parse(&["10.244.0.0/16", "172.18.0.2", "172.18.0.3"]);
        let rules = rules(&pods, &cluster);
        let text = body("ip", &rules["ip"]);
        assert!(text.contains("ip saddr { 10.244.1.0/24 } ip daddr != { 10.244.0.0/16, 172.18.0.2/32, 172.18.0.3/32, 224.0.0.0/4 } masquerade"), "{text}");
        let text = body("ip6", &rules["ip6"]);
        assert!(
            text.contains("ip6 saddr { fd00:1::/64 } ip6 daddr != { fd00:1::/64, ff00::/8 } masq"),
            "{text}"
        );
        let text = restore_text(&rules["ip6"], false);
        assert_eq!(
            text,
            "*nat\n:NETPOLC-MASQ - [0:0]\n-A NETPOLC-MASQ -d fd00:1::/64 -j RETURN\n-A NETPOLC-MASQ -d ff00::/8 -j RETURN\n\
             -A NETPOLC-MASQ -s fd00:1::/64 -j MASQUERADE --random-fully\n-A POSTROUTING -j NETPOLC-MASQ\nCOMMIT\n"
        );
    }

    #[test]
    fn without_pods_there_is_nothing_to_masquerade() {
        assert!(rules(&[], &[Cidr::parse("10.0.0.0/8").unwrap()]).is_empty());
    }
}
