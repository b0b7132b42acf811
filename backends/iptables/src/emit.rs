//! Ruleset -> the three texts. Total, and deterministic to the byte: objects stand in the order of their names.
//!
//! # In which order they are loaded, and why no packet sees half of it
//!
//! 1. `ipset restore` with [`Artifacts::sets`]. Sets are named by their content, so this makes sets that no rule knows yet,
//!    or finds sets that are the same already (`-exist`): nothing that a packet meets changes. If it fails in the middle,
//!    it can be run again.
//! 2. For each family `iptables-restore --noflush` (`ip6tables-restore`) with [`Artifacts::v4`] (`v6`). The loader adds the
//!    lines that are its own to the same text ([`netpolc_bundle::ipt::with_lines`]): `-I FORWARD 1 -j NETPOLC-FORWARD` where
//!    the jump is not the first rule of `FORWARD` (and `-D` before it where the jump stands elsewhere), the like for
//!    `PREROUTING`, the interfaces of pods, and `-F`, `-X` for chains of an older artifact. Each table is replaced in one
//!    step: iptables-legacy swaps the whole table (`IPT_SO_SET_REPLACE`), iptables-nft commits one nftables transaction. A
//!    chain that the text declares is emptied and filled again within that step, so that chains whose names stay, like
//!    `NETPOLC-FORWARD`, never stand empty. A packet meets the old rules with the old sets, or the new with the new.
//! 3. Sets of an older artifact are destroyed (`ipset destroy`), which the kernel refuses while a rule uses them.
//!
//! `filter` comes first: once it is in force, the verdicts are the new ones. `mangle` knows the pods of the node and no
//! policy. The families are two steps, as no packet is of both. If step 2 fails for one family, the other has the new
//! rules: the marker chain `NETPOLC-V-*` in each says which version it has, and a further run converges.

use crate::limits;
use netpolc_bundle::ipt::{Chains, End, Family, Match, Prefix, Rule, Ruleset, Set, Table, Target};
use std::fmt::Write;

/// The files of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Artifacts {
    /// `ipset.rules`, for `ipset restore`; without lines that say something if there are no sets.
    pub sets: String,
    /// `iptables.rules`, for `iptables-restore --noflush`.
    pub v4: String,
    /// `ip6tables.rules`, for `ip6tables-restore --noflush`.
    pub v6: String,
}

impl Artifacts {
    /// For the parser.
    pub fn texts(&self) -> netpolc_bundle::ipt::Texts<'_> {
        netpolc_bundle::ipt::Texts { sets: &self.sets, v4: &self.v4, v6: &self.v6 }
    }
}

/// Prints a ruleset. `header` becomes comment lines at the top of each file.
pub fn emit(ruleset: &Ruleset, header: &[String]) -> Artifacts {
    let mut head = String::new();
    for line in header {
        let line: String = line.chars().filter(|c| !c.is_control()).collect();
        head.push_str("# ");
        head.push_str(&line);
        head.push('\n');
    }
    let mut sets = head.clone();
    for (name, set) in &ruleset.sets {
        set_text(&mut sets, name, set);
    }
    let rules = |family: Family| {
        let mut out = head.clone();
        for table in Table::ALL {
            if let Some(chains) = ruleset.tables.get(&(family, table)) {
                table_text(&mut out, family, table, chains);
            }
        }
        out
    };
    Artifacts { sets, v4: rules(Family::V4), v6: rules(Family::V6) }
}

/// The kernel makes the table of a hash twice as large when a bucket of 12 overflows, up to twice the elements; with a
/// quarter of the elements as buckets it need not.
fn hashsize(elements: usize) -> u64 {
    (elements as u64 / 4).next_power_of_two().clamp(64, limits::IPSET_HASHSIZE)
}

/// Room for as many again.
fn maxelem(elements: usize) -> u64 {
    (elements as u64 * 2).next_power_of_two().clamp(1 << 16, limits::IPSET_MAXELEM)
}

fn set_text(out: &mut String, name: &str, set: &Set) {
    let (size, most) = (hashsize(set.elements.len()), maxelem(set.elements.len()));
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "create {name} {} family {} hashsize {size} maxelem {most} -exist",
        set.kind, set.family
    );
    for (prefix, matches) in &set.elements {
        let _ = write!(out, "add {name} {}", set.family.addr(prefix.base));
        if prefix.len < set.family.bits() {
            let _ = write!(out, "/{}", prefix.len);
        }
        out.push_str(if *matches { " -exist\n" } else { " nomatch -exist\n" });
    }
}

fn table_text(out: &mut String, family: Family, table: Table, chains: &Chains) {
    let _ = writeln!(out, "*{table}");
    for name in chains.keys() {
        let _ = writeln!(out, ":{name} - [0:0]");
    }
    for (name, rules) in chains {
        for rule in rules {
            rule_text(out, family, name, rule);
        }
    }
    out.push_str("COMMIT\n");
}

fn rule_text(out: &mut String, family: Family, chain: &str, rule: &Rule) {
    let _ = write!(out, "-A {chain}");
    let mut protocol = None;
    for found in &rule.matches {
        if let Match::Protocol(number) = found {
            protocol = Some(*number);
        }
        match_text(out, family, protocol, found);
    }
    if let Some(comment) = &rule.comment {
        let _ = write!(out, " -m comment --comment \"{comment}\"");
    }
    let _ = match &rule.target {
        Target::Return => writeln!(out, " -j RETURN"),
        Target::Drop => writeln!(out, " -j DROP"),
        Target::Jump(chain) => writeln!(out, " -j {chain}"),
        Target::Goto(chain) => writeln!(out, " -g {chain}"),
    };
}

fn match_text(out: &mut String, family: Family, protocol: Option<u8>, found: &Match) {
    let side = |end: &End| match end {
        End::Src => "src",
        End::Dst => "dst",
    };
    let _ = match found {
        Match::Addr(end, Prefix { base, len }) => {
            let option = if *end == End::Src { "-s" } else { "-d" };
            write!(out, " {option} {}/{len}", family.addr(*base))
        }
        Match::Interface(name) => write!(out, " -i {name}"),
        Match::Protocol(number) => write!(out, " -p {number}"),
        Match::Port(lo, hi) => {
            let module = match protocol {
                Some(17) => "udp",
                Some(132) => "sctp",
                _ => "tcp",
            };
            match lo == hi {
                true => write!(out, " -m {module} --dport {lo}"),
                false => write!(out, " -m {module} --dport {lo}:{hi}"),
            }
        }
        Match::TcpNotSyn => write!(out, " -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN"),
        Match::SctpNotInit => write!(out, " -m sctp ! --chunk-types any INIT"),
        Match::Icmp6Type(number) => write!(out, " -m icmp6 --icmpv6-type {number} -m hl --hl-eq 255"),
        Match::Known => write!(out, " -m conntrack --ctstate RELATED,ESTABLISHED"),
        Match::NotTracked => write!(out, " -m conntrack --ctstate INVALID,UNTRACKED"),
        Match::ReversePathFails => write!(out, " -m rpfilter --invert"),
        Match::NotLocal => write!(out, " -m addrtype ! --dst-type LOCAL"),
        Match::InSet(end, name) => write!(out, " -m set --match-set {name} {}", side(end)),
    };
}
