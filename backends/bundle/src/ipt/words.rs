//! Lines and words, as iptables-restore and ipset see them.
//!
//! What could make those programs see other words than we do is refused: control characters, backslashes and single
//! quotes anywhere, anything that is not ASCII outside of double quotes. iptables-restore ends a word at a space, and
//! takes everything between double quotes as one word (`add_param_to_argv`, `iptables/xshared.c`).

use super::{Family, Prefix};
use crate::limits;
use std::net::IpAddr;

/// Why a text is not of our subset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}, line {line}: {message}")]
pub struct ParseError {
    /// Which of the three texts: `ipset`, `iptables` or `ip6tables`.
    pub file: &'static str,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

/// What is wrong, without the place.
pub(super) type Message = String;

/// What reading so many things costs is bounded over all three texts.
pub(super) struct Budget {
    pub(super) elements: usize,
    pub(super) rules: usize,
    pub(super) objects: usize,
}

impl Budget {
    pub(super) fn new() -> Budget {
        Budget { elements: limits::ELEMENTS, rules: limits::RULES, objects: limits::OBJECTS }
    }

    pub(super) fn spend(left: &mut usize, what: &str) -> Result<(), Message> {
        *left = left.checked_sub(1).ok_or_else(|| format!("too many {what}"))?;
        Ok(())
    }
}

/// Reads a text line by line.
pub(super) fn lines(
    file: &'static str,
    text: &str,
    mut line: impl FnMut(&str) -> Result<(), Message>,
) -> Result<(), ParseError> {
    let fail = |line: usize, message: Message| ParseError { file, line, message };
    if text.len() as u64 > limits::IPT_BYTES {
        return Err(fail(1, format!("more than {} bytes", limits::IPT_BYTES)));
    }
    for (i, content) in text.split('\n').enumerate() {
        let long = content.len() > limits::IPT_LINE_BYTES;
        let done = if long { Err("a line that is too long".to_owned()) } else { line(content) };
        done.map_err(|message| fail(i + 1, message))?;
    }
    Ok(())
}

/// Whether a line says nothing. A comment begins in the first column.
pub(super) fn is_blank(line: &str) -> bool {
    line.is_empty() || line.starts_with('#')
}

/// The words of a line, from the left.
pub(super) struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    pub(super) fn new(line: &'a str) -> Words<'a> {
        Words { rest: line }
    }

    /// A word of printable ASCII without quotes.
    pub(super) fn next(&mut self) -> Result<Option<&'a str>, Message> {
        self.rest = self.rest.trim_start_matches(' ');
        let (word, rest) = self.rest.split_once(' ').unwrap_or((self.rest, ""));
        if word.is_empty() {
            return Ok(None);
        }
        if !word.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\'' | b'\\')) {
            return Err("a character that netpolc does not use".into());
        }
        self.rest = rest;
        Ok(Some(word))
    }

    pub(super) fn word(&mut self, wanted: &str) -> Result<&'a str, Message> {
        self.next()?.ok_or_else(|| format!("expected {wanted}, found the end of the line"))
    }

    pub(super) fn expect(&mut self, word: &str) -> Result<(), Message> {
        let found = self.word(&format!("`{word}`"))?;
        if found == word { Ok(()) } else { Err(format!("expected `{word}`, found {}", shown(found))) }
    }

    pub(super) fn end(&mut self) -> Result<(), Message> {
        match self.next()? {
            None => Ok(()),
            Some(word) => Err(format!("expected the end of the line, found {}", shown(word))),
        }
    }

    /// A comment: in double quotes, or a word as iptables-save prints where it needs none.
    pub(super) fn comment(&mut self) -> Result<String, Message> {
        self.rest = self.rest.trim_start_matches(' ');
        let text = match self.rest.strip_prefix('"') {
            None => self.word("a comment")?,
            Some(quoted) => {
                let (text, rest) = quoted.split_once('"').ok_or("a quote that is not closed")?;
                if !rest.is_empty() && !rest.starts_with(' ') {
                    return Err("something stands right behind a quote".into());
                }
                self.rest = rest;
                text
            }
        };
        if text.chars().any(|c| c.is_control() || matches!(c, '\\' | '\'')) {
            return Err("a character in a comment that netpolc does not use".into());
        }
        if text.len() > limits::IPT_COMMENT_BYTES {
            return Err(format!("a comment of more than {} bytes", limits::IPT_COMMENT_BYTES));
        }
        Ok(text.to_owned())
    }
}

/// How a word reads in a message.
pub(super) fn shown(word: &str) -> String {
    if word.len() > 80 { "a very long word".into() } else { format!("`{word}`") }
}

/// A name of ours.
pub(super) fn name(word: &str, limit: usize) -> Result<&str, Message> {
    let rest = word.strip_prefix(super::PREFIX).unwrap_or_default();
    if rest.is_empty() || !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(format!("{} is not a name of netpolc's", shown(word)));
    }
    if word.len() > limit {
        return Err(format!("a name of more than {limit} bytes"));
    }
    Ok(word)
}

/// A decimal number of at most `max`, without leading zeros: iptables would read the rest as octal.
pub(super) fn decimal(word: &str, max: u64) -> Result<u64, Message> {
    let plain = !word.is_empty() && word.len() <= 20 && word.bytes().all(|b| b.is_ascii_digit());
    let number =
        if plain && (word.len() == 1 || !word.starts_with('0')) { word.parse::<u64>().ok() } else { None };
    number.filter(|n| *n <= max).ok_or_else(|| format!("{} is not a number up to {max}", shown(word)))
}

/// `ADDRESS/LENGTH`, or an address alone. Bits beyond the length must be zero.
pub(super) fn prefix(family: Family, word: &str) -> Result<Prefix, Message> {
    let bad = || format!("{} is not a prefix of this family without host bits", shown(word));
    let (addr, len) = match word.split_once('/') {
        None => (word, family.bits()),
        Some((addr, len)) => {
            let len = decimal(len, u64::from(family.bits())).map_err(|_| bad())?;
            (addr, u8::try_from(len).map_err(|_| bad())?)
        }
    };
    let base = match (addr.parse::<IpAddr>(), family) {
        (Ok(IpAddr::V4(addr)), Family::V4) => u128::from(u32::from(addr)),
        (Ok(IpAddr::V6(addr)), Family::V6) => u128::from(addr),
        _ => return Err(bad()),
    };
    if base & family.mask(len) == base { Ok(Prefix { base, len }) } else { Err(bad()) }
}
