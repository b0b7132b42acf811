//! Reads the text form of a unit.

use crate::addr::{Block, Cidr};
use crate::ports::{PortSpan, Transport};
use crate::unit::*;
use cranelift_entity::{EntityRef, PrimaryMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest text that [`parse`] reads, in bytes.
pub const MAX_BYTES: usize = 1 << 28;

/// Why a text is not a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in bytes, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

type Result<T> = std::result::Result<T, ParseError>;

/// Reads a unit. The result is well formed as text only: [`crate::verify::verify`] says whether it means something.
///
/// # Errors
///
/// The first place that does not fit the grammar, or a text above [`MAX_BYTES`].
pub fn parse(text: &str) -> Result<Unit> {
    if text.len() > MAX_BYTES {
        return Err(ParseError { line: 1, column: 1, message: format!("more than {MAX_BYTES} bytes") });
    }
    let mut unit = Unit::default();
    let mut begun = false;
    let mut last = 0;
    for (i, text) in text.split('\n').enumerate() {
        last = i + 1;
        let mut line = Line { number: i + 1, text, pos: 0, start: 0 };
        match line.next()? {
            None => continue,
            Some(Token::Word(word)) if !begun => {
                line.check(word == "unit", "expected `unit 1`")?;
                line.keyword("1")?;
                begun = true;
            }
            Some(Token::Word(word)) => statement(&mut unit, &mut line, word)?,
            Some(_) => return Err(line.error("expected a statement")),
        }
        line.end()?;
    }
    if begun { Ok(unit) } else { Err(ParseError { line: last, column: 1, message: "no `unit 1`".into() }) }
}

fn statement(unit: &mut Unit, line: &mut Line<'_>, word: &str) -> Result<()> {
    let kind = word.trim_end_matches(|c: char| c.is_ascii_digit());
    if kind == word {
        line.check(word == "isolate", "unknown statement")?;
        unit.isolations.push(isolation(line)?);
        return Ok(());
    }
    match kind {
        "node" => define(&mut unit.hosts, line, word, host),
        "class" => define(&mut unit.classes, line, word, |line| line.string()),
        "pod" => define(&mut unit.endpoints, line, word, endpoint),
        "set" => define(&mut unit.sets, line, word, set),
        "ports" => define(&mut unit.ports, line, word, ports),
        "rule" => define(&mut unit.rules, line, word, rule),
        _ => Err(line.error("unknown statement")),
    }
}

/// `ID = value`, where the id is the next one of its kind.
fn define<K: EntityRef + std::fmt::Display, V>(
    map: &mut PrimaryMap<K, V>,
    line: &mut Line<'_>,
    word: &str,
    value: impl FnOnce(&mut Line<'_>) -> Result<V>,
) -> Result<()> {
    let expected = map.next_key().to_string();
    line.check(word == expected, &format!("expected {expected}: numbers are dense and ascend"))?;
    line.punct('=')?;
    let value = value(line)?;
    map.push(value);
    Ok(())
}

fn host(line: &mut Line<'_>) -> Result<HostData> {
    let name = line.string()?;
    let mut addrs = Vec::new();
    while let Some(word) = line.more()? {
        addrs.push(word.parse().map_err(|_| line.error("not an address"))?);
    }
    Ok(HostData { name, addrs })
}

fn endpoint(line: &mut Line<'_>) -> Result<EndpointData> {
    let name = line.string()?;
    let host = line.id("node", Host::from_u32)?;
    let mut addrs = Vec::new();
    while let Some(word) = line.more()? {
        addrs.push(bound(line, word)?);
    }
    Ok(EndpointData { name, host, addrs })
}

fn bound(line: &Line<'_>, word: &str) -> Result<(IpAddr, Class)> {
    let bad = || line.error("expected `10.0.0.1:class0` or `[fd00::1]:class0`");
    let (addr, class): (IpAddr, &str) = match word.strip_prefix('[') {
        Some(rest) => {
            let (addr, class) = rest.split_once("]:").ok_or_else(bad)?;
            (addr.parse::<Ipv6Addr>().map_err(|_| bad())?.into(), class)
        }
        None => {
            let (addr, class) = word.split_once(':').ok_or_else(bad)?;
            (addr.parse::<Ipv4Addr>().map_err(|_| bad())?.into(), class)
        }
    };
    Ok((addr, Class::from_u32(entity(class, "class").ok_or_else(bad)?)))
}

fn set(line: &mut Line<'_>) -> Result<SetData> {
    let mut set = SetData::default();
    line.punct('{')?;
    let mut token = line.some()?;
    if token == Token::Punct('}') {
        return Ok(set);
    }
    loop {
        let Token::Word(word) = token else { return Err(line.error("expected a class or a block")) };
        if word.starts_with("class") {
            line.check(set.blocks.is_empty(), "classes come before blocks")?;
            let class = entity(word, "class").ok_or_else(|| line.error("not a class"))?;
            set.classes.push(Class::from_u32(class));
            token = line.some()?;
        } else {
            let (block, next) = block(line, word)?;
            set.blocks.push(block);
            token = next;
        }
        match token {
            Token::Punct('}') => return Ok(set),
            Token::Punct(',') => token = line.some()?,
            _ => return Err(line.error("expected `,` or `}`")),
        }
    }
}

/// A block whose first word has been read, and the token after it.
fn block<'a>(line: &mut Line<'a>, word: &str) -> Result<(Block, Token<'a>)> {
    let mut block = Block::whole(line.cidr(word)?);
    let mut token = line.some()?;
    if token == Token::Word("except") {
        loop {
            token = line.some()?;
            let Token::Word(word) = token else { break };
            block.except.push(line.cidr(word)?);
        }
        line.check(!block.except.is_empty(), "expected a CIDR block")?;
    }
    Ok((block, token))
}

fn ports(line: &mut Line<'_>) -> Result<PortsData> {
    line.punct('{')?;
    let mut spans = Vec::new();
    loop {
        match line.some()? {
            Token::Punct('}') => return Ok(spans),
            Token::Word(word) => spans.push(span(word).ok_or_else(|| line.error("not a list of ports"))?),
            _ => return Err(line.error("expected ports or `}`")),
        }
    }
}

fn span(word: &str) -> Option<PortSpan> {
    if word == "any" {
        return Some(PortSpan::Any);
    }
    let (name, ports) = word.split_once('/').map_or((word, None), |(n, p)| (n, Some(p)));
    let transport = Transport::ALL.into_iter().find(|t| t.to_string() == name)?;
    let Some(ports) = ports else { return Some(PortSpan::whole(transport)) };
    let (lo, hi) = ports.split_once('-').unwrap_or((ports, ports));
    let port = |text| number(text).and_then(|n| u16::try_from(n).ok());
    Some(PortSpan::Ports { transport, lo: port(lo)?, hi: port(hi)? })
}

fn isolation(line: &mut Line<'_>) -> Result<Isolation> {
    let direction = line.one_of(Direction::ALL)?;
    let subject = line.id("set", Set::from_u32)?;
    Ok(Isolation { direction, subject, origins: line.origins()? })
}

fn rule(line: &mut Line<'_>) -> Result<RuleData> {
    let tier = line.one_of([Tier::Admin, Tier::NetworkPolicy, Tier::Baseline])?;
    let direction = line.one_of(Direction::ALL)?;
    let word = line.word()?;
    let order = number(word).ok_or_else(|| line.error("expected the rule's order, a number"))?;
    let subject = line.id("set", Set::from_u32)?;
    line.keyword(super::peers_word(direction))?;
    let peers = line.id("set", Set::from_u32)?;
    let ports = line.id("ports", Ports::from_u32)?;
    let action = line.one_of([Action::Accept, Action::Deny, Action::Pass])?;
    Ok(RuleData { tier, direction, order, subject, peers, ports, action, origins: line.origins()? })
}

/// A decimal number without sign and leading zeros.
fn number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// The number of an id. The greatest number is no id: entity types keep it for themselves.
fn entity(word: &str, prefix: &str) -> Option<u32> {
    number(word.strip_prefix(prefix)?).filter(|&n| n != u32::MAX)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Text(String),
    Punct(char),
}

struct Line<'a> {
    number: usize,
    text: &'a str,
    /// Where the next token is looked for.
    pos: usize,
    /// Where the last token began.
    start: usize,
}

impl<'a> Line<'a> {
    fn error(&self, message: &str) -> ParseError {
        ParseError { line: self.number, column: self.start + 1, message: message.to_owned() }
    }

    fn check(&self, ok: bool, message: &str) -> Result<()> {
        if ok { Ok(()) } else { Err(self.error(message)) }
    }

    fn next(&mut self) -> Result<Option<Token<'a>>> {
        let rest = self.text[self.pos..].trim_start_matches([' ', '\t']);
        self.start = self.text.len() - rest.len();
        self.pos = self.start;
        let Some(first) = rest.chars().next() else { return Ok(None) };
        match first {
            '#' if self.text[..self.start].trim().is_empty() => {
                self.pos = self.text.len();
                Ok(None)
            }
            '{' | '}' | ',' | '=' => {
                self.pos += 1;
                Ok(Some(Token::Punct(first)))
            }
            '"' => self.quoted().map(|text| Some(Token::Text(text))),
            _ => {
                let end = rest.find([' ', '\t', '{', '}', ',', '=', '"']).unwrap_or(rest.len());
                self.pos += end;
                Ok(Some(Token::Word(&rest[..end])))
            }
        }
    }

    fn quoted(&mut self) -> Result<String> {
        let mut out = String::new();
        let rest = &self.text[self.start + 1..];
        let mut chars = rest.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => {
                    self.pos = self.text.len() - chars.as_str().len();
                    return Ok(out);
                }
                '\\' => {
                    let escaped = escape(&mut chars);
                    out.push(escaped.ok_or_else(|| self.error("bad escape in the string"))?);
                }
                c => out.push(c),
            }
        }
        Err(self.error("the string does not end"))
    }

    fn some(&mut self) -> Result<Token<'a>> {
        self.next()?.ok_or_else(|| self.error("the line ends too early"))
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.some()? {
            Token::Word(word) => Ok(word),
            _ => Err(self.error("expected a word")),
        }
    }

    /// A word, or nothing at the end of the line.
    fn more(&mut self) -> Result<Option<&'a str>> {
        match self.next()? {
            None => Ok(None),
            Some(Token::Word(word)) => Ok(Some(word)),
            Some(_) => Err(self.error("expected a word")),
        }
    }

    fn keyword(&mut self, expected: &str) -> Result<()> {
        let token = self.next()?;
        self.check(token == Some(Token::Word(expected)), &format!("expected `{expected}`"))
    }

    fn punct(&mut self, expected: char) -> Result<()> {
        let token = self.next()?;
        self.check(token == Some(Token::Punct(expected)), &format!("expected `{expected}`"))
    }

    fn string(&mut self) -> Result<String> {
        match self.next()? {
            Some(Token::Text(text)) => Ok(text),
            _ => Err(self.error("expected a string in quotes")),
        }
    }

    fn id<T>(&mut self, prefix: &str, make: impl FnOnce(u32) -> T) -> Result<T> {
        let word = self.word()?;
        entity(word, prefix).map(make).ok_or_else(|| self.error(&format!("expected a {prefix} id")))
    }

    fn cidr(&self, word: &str) -> Result<Cidr> {
        let length_is_plain = word.split_once('/').is_some_and(|(_, len)| number(len).is_some());
        self.check(length_is_plain, "expected a CIDR block")?;
        word.parse().map_err(|_| self.error("expected a CIDR block without host bits"))
    }

    fn one_of<T: Copy + std::fmt::Display, const N: usize>(&mut self, all: [T; N]) -> Result<T> {
        let word = self.word()?;
        let names = all.map(|t| t.to_string());
        let found = names.iter().position(|n| n == word);
        found.map(|i| all[i]).ok_or_else(|| self.error(&format!("expected one of {}", names.join(", "))))
    }

    fn origins(&mut self) -> Result<Vec<Origin>> {
        let mut out = Vec::new();
        while let Some(word) = self.more()? {
            let origin = word.strip_prefix('@').and_then(number);
            out.push(Origin(origin.ok_or_else(|| self.error("expected an origin such as @3"))?));
        }
        Ok(out)
    }

    fn end(&mut self) -> Result<()> {
        let token = self.next()?;
        self.check(token.is_none(), "unexpected text at the end of the line")
    }
}

/// The character of an escape whose backslash has been read.
fn escape(chars: &mut std::str::Chars<'_>) -> Option<char> {
    match chars.next()? {
        c @ ('"' | '\\') => Some(c),
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        'u' => {
            let digits = chars.as_str().strip_prefix('{')?.split_once('}')?.0;
            let plain = (1..=6).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            *chars = chars.as_str().get(digits.len() + 2..)?.chars();
            char::from_u32(u32::from_str_radix(digits, 16).ok().filter(|_| plain)?)
        }
        _ => None,
    }
}
