//! Ruleset -> script. Total, and deterministic to the byte: objects stand in the order of their names.
//!
//! The script can be given to `nft -f` as it is (1.0.6 and newer). It makes sure that the tables exist, flushes their
//! rules and adds everything in one transaction. Names carry a hash of the content, so sets and chains of an older
//! script stay whole beside the new ones: a packet that is being judged by the old rules finds the old sets. The
//! loader deletes what is left over in a second transaction.

use super::{
    Chain, Elements, Family, Field, Key, KeyType, Match, Outcome, PODADDR, Rule, Ruleset, Set, TABLE, Table,
    UNBOUND, Verdict,
};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Names of addresses, for people.
pub type Names = BTreeMap<IpAddr, String>;

/// Prints a ruleset as a script. `header` becomes comment lines at the top.
pub fn emit(ruleset: &Ruleset, header: &[String]) -> String {
    emit_named(ruleset, header, &Names::new())
}

/// As [`emit`], with the name of an address as a comment behind each element that is one.
pub fn emit_named(ruleset: &Ruleset, header: &[String], names: &Names) -> String {
    let elements: usize =
        ruleset.tables.values().flat_map(|t| t.sets.values()).map(|s| s.elements.len()).sum();
    let mut out = String::with_capacity(4096 + elements * 16);
    out.push_str("#!/usr/sbin/nft -f\n");
    for line in header {
        comment_text(&mut out, "# ", line);
        out.push('\n');
    }
    for (family, table) in &ruleset.tables {
        table_text(&mut out, *family, table, names);
    }
    out
}

/// A comment of the script: nothing in it can end the line.
fn comment_text(out: &mut String, start: &str, text: &str) {
    out.push_str(start);
    out.extend(text.chars().filter(|c| !c.is_control()));
}

fn table_text(out: &mut String, family: Family, table: &Table, names: &Names) {
    // Writing to a String cannot fail.
    let _ = write!(out, "\ntable {family} {TABLE} {{\n}}\n");
    if table.flush {
        let _ = writeln!(out, "flush table {family} {TABLE}");
    }
    let _ = writeln!(out, "\ntable {family} {TABLE} {{");
    for (name, set) in &table.sets {
        set_text(out, family, name, set, names);
    }
    for (name, chain) in &table.chains {
        chain_text(out, family, name, chain);
    }
    out.push_str("}\n");
}

fn set_text(out: &mut String, family: Family, name: &str, set: &Set, names: &Names) {
    let _ = writeln!(out, "\t{} {name} {{", if set.map { "map" } else { "set" });
    let types: Vec<&str> = set.key.iter().map(|k| key_type(family, *k)).collect();
    let _ = writeln!(out, "\t\ttype {}{}", types.join(" . "), if set.map { " : verdict" } else { "" });
    if set.interval {
        out.push_str("\t\tflags interval\n");
    }
    if let Some(comment) = &set.comment {
        let _ = writeln!(out, "\t\tcomment \"{comment}\"");
    }
    if !set.elements.is_empty() {
        out.push_str("\t\telements = {\n");
        elements_text(out, family, &set.elements, names);
        out.push_str("\t\t}\n");
    }
    out.push_str("\t}\n");
}

/// One element a line, so that a difference shows what came and what went.
fn elements_text(out: &mut String, family: Family, elements: &Elements, names: &Names) {
    let end = |out: &mut String, addr: u128| {
        out.push(',');
        let named = if names.is_empty() { None } else { names.get(&ip(family, addr)) };
        if let Some(name) = named {
            comment_text(out, " # ", name);
        }
        out.push('\n');
    };
    match elements {
        Elements::Addrs(addrs) => {
            for addr in addrs {
                out.push_str("\t\t\t");
                address(out, family, *addr);
                end(out, *addr);
            }
        }
        Elements::General(elements) => {
            for (keys, verdict) in elements {
                out.push_str("\t\t\t");
                keys_text(out, family, keys);
                if let Some(verdict) = verdict {
                    out.push_str(" : ");
                    verdict_text(out, verdict);
                }
                match keys.first() {
                    Some(Key::Addr(lo, hi)) if lo == hi => end(out, *lo),
                    _ => out.push_str(",\n"),
                }
            }
        }
    }
}

fn ip(family: Family, addr: u128) -> IpAddr {
    match family {
        Family::Ip => IpAddr::V4(Ipv4Addr::from(addr as u32)),
        Family::Ip6 => IpAddr::V6(Ipv6Addr::from(addr)),
    }
}

fn chain_text(out: &mut String, family: Family, name: &str, chain: &Chain) {
    let _ = writeln!(out, "\tchain {name} {{");
    if let Some(comment) = &chain.comment {
        let _ = writeln!(out, "\t\tcomment \"{comment}\"");
    }
    if let Some(hook) = chain.hook {
        let _ = writeln!(out, "\t\ttype filter hook forward priority {}; policy accept;", hook.priority);
    }
    for rule in &chain.rules {
        rule_text(out, family, rule);
    }
    out.push_str("\t}\n");
}

fn rule_text(out: &mut String, family: Family, rule: &Rule) {
    out.push_str("\t\t");
    for condition in &rule.matches {
        match_text(out, family, condition);
        out.push(' ');
    }
    if rule.counter {
        out.push_str("counter ");
    }
    match &rule.outcome {
        Outcome::Verdict(verdict) => verdict_text(out, verdict),
        Outcome::Vmap(fields, map) => {
            fields_text(out, family, fields);
            let _ = write!(out, " vmap @{map}");
        }
    }
    if let Some(comment) = &rule.comment {
        let _ = write!(out, " comment \"{comment}\"");
    }
    out.push('\n');
}

fn match_text(out: &mut String, family: Family, condition: &Match) {
    match condition {
        Match::InSet(fields, set) => {
            fields_text(out, family, fields);
            let _ = write!(out, " @{set}");
        }
        Match::L4Proto(number) => {
            let _ = write!(out, "meta l4proto {number}");
        }
        Match::NotEstablished => out.push_str("ct state and ( established | related ) == 0"),
        Match::NotTracked => out.push_str("ct state invalid,untracked"),
        Match::TcpNotSyn => out.push_str("tcp flags & (fin | syn | rst | ack) != syn"),
        Match::SctpNotInit => out.push_str("@th,96,8 != 1 meta l4proto sctp"),
        Match::Unbound => {
            fields_text(out, family, &UNBOUND);
            let _ = write!(out, " != @{PODADDR}");
        }
        Match::ReversePathFails => out.push_str("fib saddr . iif oif missing"),
        Match::NeighbourDiscovery => out.push_str("ip6 hoplimit 255 icmpv6 type { 133, 134, 135, 136, 137 }"),
    }
}

fn fields_text(out: &mut String, family: Family, fields: &[Field]) {
    for (i, field) in fields.iter().enumerate() {
        out.push_str(if i > 0 { " . " } else { "" });
        let (name, len) = match field {
            Field::Saddr => ("saddr", None),
            Field::Daddr => ("daddr", None),
            Field::SaddrPrefix(len) => ("saddr", Some(*len)),
            Field::DaddrPrefix(len) => ("daddr", Some(*len)),
            Field::L4Proto => ("meta l4proto", None),
            Field::Dport => ("th dport", None),
            Field::Iifname => ("iifname", None),
        };
        if name.ends_with("addr") {
            let _ = write!(out, "{family} ");
        }
        out.push_str(name);
        if let Some(len) = len {
            out.push_str(" & ");
            address(out, family, mask(family, len));
        }
    }
}

/// The mask of a prefix length, as a number in host order.
fn mask(family: Family, len: u8) -> u128 {
    let (width, all) = match family {
        Family::Ip => (32, u128::from(u32::MAX)),
        Family::Ip6 => (128, u128::MAX),
    };
    let len = u32::from(len).min(width);
    if len == 0 { 0 } else { all >> (width - len) << (width - len) }
}

fn key_type(family: Family, key: KeyType) -> &'static str {
    match (key, family) {
        (KeyType::Addr, Family::Ip) => "ipv4_addr",
        (KeyType::Addr, Family::Ip6) => "ipv6_addr",
        (KeyType::Proto, _) => "inet_proto",
        (KeyType::Service, _) => "inet_service",
        (KeyType::Ifname, _) => "ifname",
    }
}

/// The key of an element as nft reads it: `"veth1" . 10.0.0.1`.
pub fn element_text(family: Family, keys: &[Key]) -> String {
    let mut out = String::new();
    keys_text(&mut out, family, keys);
    out
}

fn keys_text(out: &mut String, family: Family, keys: &[Key]) {
    for (i, key) in keys.iter().enumerate() {
        out.push_str(if i > 0 { " . " } else { "" });
        key_text(out, family, key);
    }
}

fn key_text(out: &mut String, family: Family, key: &Key) {
    match key {
        Key::Addr(lo, hi) => {
            address(out, family, *lo);
            if lo != hi {
                out.push('-');
                address(out, family, *hi);
            }
        }
        Key::Proto(number) => decimal(out, u32::from(*number)),
        Key::Service(lo, hi) => {
            decimal(out, u32::from(*lo));
            if lo != hi {
                out.push('-');
                decimal(out, u32::from(*hi));
            }
        }
        Key::Ifname(name) => {
            let _ = write!(out, "\"{name}\"");
        }
    }
}

fn verdict_text(out: &mut String, verdict: &Verdict) {
    match verdict {
        Verdict::Accept => out.push_str("accept"),
        Verdict::Drop => out.push_str("drop"),
        Verdict::Return => out.push_str("return"),
        Verdict::Jump(chain) => {
            let _ = write!(out, "jump {chain}");
        }
        Verdict::Goto(chain) => {
            let _ = write!(out, "goto {chain}");
        }
    }
}

/// Most of a script is addresses, so IPv4 ones are printed without the formatting machinery.
fn address(out: &mut String, family: Family, addr: u128) {
    match family {
        Family::Ip => {
            for (i, octet) in Ipv4Addr::from(addr as u32).octets().into_iter().enumerate() {
                if i > 0 {
                    out.push('.');
                }
                decimal(out, u32::from(octet));
            }
        }
        Family::Ip6 => {
            let _ = write!(out, "{}", Ipv6Addr::from(addr));
        }
    }
}

fn decimal(out: &mut String, number: u32) {
    if number >= 10 {
        decimal(out, number / 10);
    }
    out.push(char::from(b'0' + (number % 10) as u8));
}
