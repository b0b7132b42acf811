//! The text form of the IR: this is its reference.
//!
//! [`write()`] and [`parse()`] are inverse: `parse(&write(u)) == Ok(u)` for every unit. [`write_matrix`] is for people and
//! is not read back.
//!
//! # Grammar
//!
//! The text is UTF-8, one statement a line. Spaces and tabs separate tokens; blank lines and lines that begin with `#`
//! say nothing. The first statement is `unit 1`; the others may come in any order, but the numbers of each kind are
//! dense and ascend from 0. A statement may name an id that is defined later or never: [`crate::verify`] finds that.
//!
//! ```text
//! unit      = "unit" "1"
//! node      = NODE "=" STRING { ADDR }
//! class     = CLASS "=" STRING
//! pod       = POD "=" STRING NODE { BOUND }
//! set       = SET "=" "{" [ member { "," member } ] "}"     classes before blocks
//! member    = CLASS | block
//! block     = CIDR [ "except" CIDR { CIDR } ]
//! ports     = PORTS "=" "{" { SPAN } "}"
//! isolation = "isolate" ("ingress" | "egress") SET { ORIGIN }
//! rule      = RULE "=" TIER ("ingress" | "egress") ORDER SET ("from" | "to") SET PORTS ACTION { ORIGIN }
//!
//! NODE, CLASS, POD, SET, PORTS, RULE = "node3", "class3", "pod3", "set3", "ports3", "rule3"
//! ADDR   = an IPv4 or IPv6 address
//! BOUND  = "10.0.0.1:class3" or "[fd00::1]:class3"
//! CIDR   = address "/" length, without host bits
//! SPAN   = "any" | "tcp" | "udp" | "sctp" | "tcp/80" | "tcp/8000-8080"
//! TIER   = "admin" | "networkpolicy" | "baseline"          ACTION = "accept" | "deny" | "pass"
//! ORDER  = a decimal number of 32 bits                     ORIGIN = "@" and a decimal number of 32 bits
//! STRING = '"' ... '"' with the escapes \" \\ \n \r \t \u{1f}
//! ```
//!
//! `from` belongs to ingress, `to` to egress. Numbers have no sign and no leading zeros. The number 4294967295 is no id.
//!
//! ```text
//! unit 1
//! node0 = "node-1" 192.168.10.1 fd00::1
//! class0 = "x app=db"
//! pod0 = "x/db-0" node0 10.244.1.10:class0 [fd00:1::10]:class0
//! set0 = { class0 }
//! set1 = { class0, 10.0.0.0/8 except 10.1.0.0/16 10.2.0.0/16, 172.16.0.0/12 }
//! ports0 = { tcp/80 tcp/8000-8080 udp }
//! isolate ingress set0 @3
//! rule0 = networkpolicy ingress 0 set0 from set1 ports0 accept @4 @9
//! ```
//!
//! # Limits
//!
//! A text may have [`MAX_BYTES`] bytes. The reader keeps nothing but the unit, whose size is at most a small multiple of
//! the text's; it takes time linear in the text and recurses nowhere.

mod matrix;
mod parse;

pub use matrix::write_matrix;
pub use parse::{MAX_BYTES, ParseError, parse};

use crate::addr::Block;
use crate::unit::*;
use std::fmt::{self, Display, Write as _};
use std::net::IpAddr;

/// The text of a unit. Every line ends in a newline.
pub fn write(unit: &Unit) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_unit(&mut out, unit);
    out
}

fn write_unit(out: &mut String, unit: &Unit) -> fmt::Result {
    writeln!(out, "unit 1")?;
    for (host, data) in unit.hosts.iter() {
        write_host(out, host, data)?;
    }
    for (class, name) in unit.classes.iter() {
        writeln!(out, "{class} = {}", Quoted(name))?;
    }
    for (endpoint, data) in unit.endpoints.iter() {
        write_endpoint(out, endpoint, data)?;
    }
    for (set, data) in unit.sets.iter() {
        let members = data.classes.iter().map(|c| c.to_string()).chain(data.blocks.iter().map(block_text));
        let members: Vec<String> = members.collect();
        let space = if members.is_empty() { "" } else { " " };
        writeln!(out, "{set} = {{{space}{} }}", members.join(", "))?;
    }
    for (ports, spans) in unit.ports.iter() {
        writeln!(out, "{ports} = {{{} }}", List(spans))?;
    }
    for isolation in &unit.isolations {
        writeln!(out, "isolate {} {}{}", isolation.direction, isolation.subject, List(&isolation.origins))?;
    }
    for (rule, data) in unit.rules.iter() {
        let RuleData { tier, direction, order, subject, peers, ports, action, origins } = data;
        let word = peers_word(*direction);
        write!(out, "{rule} = {tier} {direction} {order} {subject} {word} {peers} {ports} {action}")?;
        writeln!(out, "{}", List(origins))?;
    }
    Ok(())
}

fn write_host(out: &mut String, host: Host, data: &HostData) -> fmt::Result {
    writeln!(out, "{host} = {}{}", Quoted(&data.name), List(&data.addrs))
}

fn write_endpoint(out: &mut String, endpoint: Endpoint, data: &EndpointData) -> fmt::Result {
    write!(out, "{endpoint} = {} {}", Quoted(&data.name), data.host)?;
    for (addr, class) in &data.addrs {
        match addr {
            IpAddr::V4(a) => write!(out, " {a}:{class}")?,
            IpAddr::V6(a) => write!(out, " [{a}]:{class}")?,
        }
    }
    writeln!(out)
}

/// The word between subject and peers of a rule.
fn peers_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}

fn block_text(block: &Block) -> String {
    let word = if block.except.is_empty() { "" } else { " except" };
    format!("{}{word}{}", block.cidr, List(&block.except))
}

/// Items with a space before each.
struct List<'a, T>(&'a [T]);

impl<T: Display> Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|item| write!(f, " {item}"))
    }
}

/// A string in quotes, with escapes.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                    write!(f, "\\u{{{:x}}}", u32::from(c))?;
                }
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}
