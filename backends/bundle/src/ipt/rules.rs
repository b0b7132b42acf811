//! Files for iptables-restore: tables, chains and rules.

use super::sets::Sets;
use super::words::{Budget, Message, ParseError, Words, decimal, is_blank, lines, name, prefix, shown};
use super::{Chains, End, Family, Match, Rule, Ruleset, Table, Target, Texts};
use crate::limits;
use std::collections::BTreeMap;

/// Reads the three texts of an artifact.
///
/// References between objects are not looked at; [`super::check()`] does that.
///
/// # Errors
/// Whatever is not of the subset, or beyond a limit of [`crate::limits`], is an error with its file and line.
pub fn parse(texts: &Texts<'_>) -> Result<Ruleset, ParseError> {
    let mut budget = Budget::new();
    let mut sets = Sets::new();
    lines("ipset", texts.sets, |line| if is_blank(line) { Ok(()) } else { sets.line(line, &mut budget) })?;
    let mut ruleset = Ruleset { sets: sets.sets, tables: BTreeMap::new() };
    for (file, family, text) in [("iptables", Family::V4, texts.v4), ("ip6tables", Family::V6, texts.v6)] {
        let mut open: Option<Table> = None;
        lines(file, text, |line| {
            if is_blank(line) {
                return Ok(());
            }
            let Some(table) = open else {
                let table = table(line)?;
                if ruleset.tables.insert((family, table), Chains::new()).is_some() {
                    return Err("a table stands there twice".into());
                }
                open = Some(table);
                return Ok(());
            };
            if line == "COMMIT" {
                open = None;
                return Ok(());
            }
            let chains = ruleset.tables.entry((family, table)).or_default();
            match line.strip_prefix(':') {
                Some(declaration) => declare(chains, declaration, &mut budget),
                None => append(chains, family, line, &mut budget),
            }
        })?;
        if open.is_some() {
            let (line, message) = (text.split('\n').count(), "a table without `COMMIT`".to_owned());
            return Err(ParseError { file, line, message });
        }
    }
    Ok(ruleset)
}

/// `*filter` or `*mangle`.
fn table(line: &str) -> Result<Table, Message> {
    match line {
        "*filter" => Ok(Table::Filter),
        "*mangle" => Ok(Table::Mangle),
        other => Err(format!("expected `*filter` or `*mangle`, found {}", shown(other))),
    }
}

/// `CHAIN - [N:N]`. iptables-restore makes the chain, or empties it if it is there.
pub(super) fn declare(chains: &mut Chains, line: &str, budget: &mut Budget) -> Result<(), Message> {
    let mut words = Words::new(line);
    let chain = name(words.word("a chain")?, limits::IPT_CHAIN_BYTES)?;
    words.expect("-")?;
    let counters = words.word("counters")?;
    let counters =
        counters.strip_prefix('[').and_then(|c| c.strip_suffix(']')).and_then(|c| c.split_once(':'));
    let (packets, bytes) = counters.ok_or("expected counters")?;
    decimal(packets, u64::MAX)?;
    decimal(bytes, u64::MAX)?;
    words.end()?;
    Budget::spend(&mut budget.objects, "sets and chains")?;
    match chains.insert(chain.to_owned(), Vec::new()) {
        None => Ok(()),
        Some(_) => Err(format!("`{chain}` is declared twice")),
    }
}

/// `-A CHAIN ...`.
pub(super) fn append(
    chains: &mut Chains,
    family: Family,
    line: &str,
    budget: &mut Budget,
) -> Result<(), Message> {
    let mut words = Words::new(line);
    words.expect("-A")?;
    let chain = name(words.word("a chain")?, limits::IPT_CHAIN_BYTES)?;
    let rules = chains.get_mut(chain).ok_or_else(|| format!("`{chain}` is not declared"))?;
    Budget::spend(&mut budget.rules, "rules")?;
    rules.push(rule(family, &mut words)?);
    Ok(())
}

/// The matches and the target of a rule.
fn rule(family: Family, words: &mut Words<'_>) -> Result<Rule, Message> {
    let (mut matches, mut comment) = (Vec::new(), None);
    let target = loop {
        if matches.len() > limits::MATCHES {
            return Err(format!("more than {} matches", limits::MATCHES));
        }
        let found = match words.word("a match or a target")? {
            "-s" => Match::Addr(End::Src, prefix(family, words.word("a prefix")?)?),
            "-d" => Match::Addr(End::Dst, prefix(family, words.word("a prefix")?)?),
            "-i" => Match::Interface(interface(words.word("an interface")?)?),
            "-p" => Match::Protocol(protocol(words.word("a protocol")?)?),
            "-m" => match module(family, words, &matches)? {
                Module::Match(found) => found,
                Module::Comment(text) if comment.is_none() => {
                    comment = Some(text);
                    continue;
                }
                Module::Comment(_) => return Err("two comments".into()),
            },
            "-j" => {
                break match words.word("a target")? {
                    "RETURN" => Target::Return,
                    "DROP" => Target::Drop,
                    chain => Target::Jump(name(chain, limits::IPT_CHAIN_BYTES)?.to_owned()),
                };
            }
            "-g" => break Target::Goto(name(words.word("a chain")?, limits::IPT_CHAIN_BYTES)?.to_owned()),
            other => return Err(format!("a match that netpolc does not use: {}", shown(other))),
        };
        let kind = std::mem::discriminant(&found);
        let again = |m: &&Match| match (m, &found) {
            (Match::Addr(a, _), Match::Addr(b, _)) => a == b,
            _ => std::mem::discriminant(*m) == kind,
        };
        if matches.iter().any(|m| again(&m)) {
            return Err("a match stands there twice".into());
        }
        matches.push(found);
    };
    words.end()?;
    Ok(Rule { matches, target, comment })
}

enum Module {
    Match(Match),
    Comment(String),
}

/// What follows `-m`.
fn module(family: Family, words: &mut Words<'_>, before: &[Match]) -> Result<Module, Message> {
    let module = words.word("a module")?;
    let option = words.word("an option")?;
    let of = |number: u8| {
        if before.contains(&Match::Protocol(number)) {
            Ok(())
        } else {
            Err(format!("`-m {module}` without its protocol"))
        }
    };
    let found = match (module, option) {
        ("comment", "--comment") => return Ok(Module::Comment(words.comment()?)),
        ("tcp", "!") => {
            of(6)?;
            for word in ["--tcp-flags", "FIN,SYN,RST,ACK", "SYN"] {
                words.expect(word)?;
            }
            Match::TcpNotSyn
        }
        ("sctp", "!") => {
            of(132)?;
            for word in ["--chunk-types", "any", "INIT"] {
                words.expect(word)?;
            }
            Match::SctpNotInit
        }
        ("tcp" | "udp" | "sctp", "--dport") => {
            of(match module {
                "tcp" => 6,
                "udp" => 17,
                _ => 132,
            })?;
            ports(words.word("ports")?)?
        }
        ("icmp6", "--icmpv6-type") if family == Family::V6 => {
            of(58)?;
            match decimal(words.word("a type")?, 255)? as u8 {
                kind @ 133..=137 => {
                    for word in ["-m", "hl", "--hl-eq", "255"] {
                        words.expect(word)?;
                    }
                    Match::Icmp6Type(kind)
                }
                _ => return Err("a type that is not neighbour discovery".into()),
            }
        }
        ("conntrack", "--ctstate") => match words.word("states")? {
            "RELATED,ESTABLISHED" => Match::Known,
            "INVALID,UNTRACKED" => Match::NotTracked,
            other => return Err(format!("states that netpolc does not use: {}", shown(other))),
        },
        ("rpfilter", "--invert") => Match::ReversePathFails,
        ("addrtype", "!") => {
            for word in ["--dst-type", "LOCAL"] {
                words.expect(word)?;
            }
            Match::NotLocal
        }
        ("set", "--match-set") => {
            let set = name(words.word("a set")?, limits::IPSET_NAME_BYTES)?.to_owned();
            match words.word("`src` or `dst`")? {
                "src" => Match::InSet(End::Src, set),
                "dst" => Match::InSet(End::Dst, set),
                other => return Err(format!("expected `src` or `dst`, found {}", shown(other))),
            }
        }
        _ => return Err(format!("a match that netpolc does not use: {}", shown(module))),
    };
    Ok(Module::Match(found))
}

/// `N` or `LO:HI`.
fn ports(word: &str) -> Result<Match, Message> {
    let port = |word| decimal(word, u64::from(u16::MAX)).map(|n| n as u16);
    let (lo, hi) = match word.split_once(':') {
        None => (port(word)?, port(word)?),
        Some((lo, hi)) => (port(lo)?, port(hi)?),
    };
    if lo <= hi { Ok(Match::Port(lo, hi)) } else { Err("ports out of order".into()) }
}

/// A number, or one of the names that iptables prints for it.
fn protocol(word: &str) -> Result<u8, Message> {
    match word {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "ipv6-icmp" | "icmpv6" => Ok(58),
        "sctp" => Ok(132),
        // Zero means every protocol to iptables.
        _ => match decimal(word, 255)? {
            0 => Err("protocol 0".into()),
            number => u8::try_from(number).map_err(|e| e.to_string()),
        },
    }
}

/// The name of one interface. A `+` at the end would be a pattern.
fn interface(word: &str) -> Result<String, Message> {
    if is_interface(word) { Ok(word.to_owned()) } else { Err(format!("{} is not an interface", shown(word))) }
}

/// Whether a word can be an interface of a pod in a rule of [`super::PODIF`].
pub fn is_interface(word: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@');
    !word.is_empty()
        && word.len() <= limits::IFNAME_BYTES
        && word.bytes().all(plain)
        && !word.starts_with('-')
}

/// Whether a listing's line jumps from the built-in chain of a table to our entry, without any condition.
pub(super) fn is_hook(table: Table, line: &str) -> bool {
    line == format!("-A {} -j {}", table.built_in(), table.entry())
}
