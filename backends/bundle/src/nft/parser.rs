//! The parser: tables, sets, chains. Elements are in [`super::element`], rules in [`super::rule`].
//!
//! Recursive descent with one token in hand; nothing nests deeper than table, object, element list, so there is no
//! recursion. What a construct means to nft is decided by nft's grammar (`src/parser_bison.y`); of the spellings that it
//! has for a thing, those are read that netpolc writes and that some version of nft prints.

use super::lexer::{Lexer, Message, Token};
use super::{Chain, Elements, Family, Hook, KeyType, Ruleset, Set, TABLE, Table};
use crate::limits;

/// Why a text is not of our subset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: u32,
    /// What is wrong there.
    pub message: String,
}

/// Reads a script, or a listing of our tables as `nft list table` prints it.
///
/// References between objects are not looked at; [`super::check()`] does that.
///
/// # Errors
/// Whatever is not of the subset, or beyond a limit of [`crate::limits`], is an error with its line.
pub fn parse(text: &str) -> Result<Ruleset, ParseError> {
    if text.len() as u64 > limits::SCRIPT_BYTES {
        let message = format!("more than {} bytes", limits::SCRIPT_BYTES);
        return Err(ParseError { line: 1, message });
    }
    let mut parser = Parser {
        lexer: Lexer::new(text),
        token: Token::Newline,
        elements: limits::ELEMENTS,
        rules: limits::RULES,
        objects: limits::OBJECTS,
    };
    parser.script().map_err(|message| ParseError { line: parser.lexer.line(), message })
}

pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The token that is to be read next.
    pub(super) token: Token<'a>,
    /// How many more of each the limits allow.
    elements: usize,
    rules: usize,
    objects: usize,
}

/// How a token reads in a message.
pub(super) fn shown(token: Token<'_>) -> String {
    match token {
        Token::Word(word) if word.len() > 80 => "a very long word".into(),
        Token::Word(word) => format!("`{word}`"),
        Token::Quoted(_) => "a quoted string".into(),
        Token::Punct(byte) => format!("`{}`", char::from(byte)),
        Token::NotEqual => "`!=`".into(),
        Token::Equal => "`==`".into(),
        Token::Newline => "the end of the line".into(),
        Token::End => "the end of the text".into(),
    }
}

impl<'a> Parser<'a> {
    pub(super) fn advance(&mut self) -> Result<(), Message> {
        self.token = self.lexer.next()?;
        Ok(())
    }

    pub(super) fn unexpected<T>(&self, wanted: &str) -> Result<T, Message> {
        Err(format!("expected {wanted}, found {}", shown(self.token)))
    }

    /// Takes a word, whatever it is.
    pub(super) fn word(&mut self, wanted: &str) -> Result<&'a str, Message> {
        match self.token {
            Token::Word(word) => {
                self.advance()?;
                Ok(word)
            }
            _ => self.unexpected(wanted),
        }
    }

    pub(super) fn at(&self, word: &str) -> bool {
        self.token == Token::Word(word)
    }

    /// Takes this word if it is next.
    pub(super) fn eat(&mut self, word: &str) -> Result<bool, Message> {
        let found = self.at(word);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    pub(super) fn expect(&mut self, word: &str) -> Result<(), Message> {
        if self.eat(word)? { Ok(()) } else { self.unexpected(&format!("`{word}`")) }
    }

    pub(super) fn eat_punct(&mut self, byte: u8) -> Result<bool, Message> {
        let found = self.token == Token::Punct(byte);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    pub(super) fn expect_punct(&mut self, byte: u8) -> Result<(), Message> {
        if self.eat_punct(byte)? { Ok(()) } else { self.unexpected(&format!("`{}`", char::from(byte))) }
    }

    pub(super) fn skip_newlines(&mut self) -> Result<(), Message> {
        while self.token == Token::Newline {
            self.advance()?;
        }
        Ok(())
    }

    fn skip_separators(&mut self) -> Result<(), Message> {
        while matches!(self.token, Token::Newline | Token::Punct(b';')) {
            self.advance()?;
        }
        Ok(())
    }

    /// The end of a statement: a newline or a semicolon.
    pub(super) fn terminator(&mut self) -> Result<(), Message> {
        match self.token {
            Token::Newline | Token::Punct(b';') => self.advance(),
            _ => self.unexpected("the end of the statement"),
        }
    }

    /// The name of a chain, set or map.
    pub(super) fn name(&mut self) -> Result<String, Message> {
        let word = self.word("a name")?;
        let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !plain || !word.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err("a name begins with a letter and has only letters, digits and `_`".into());
        }
        if word.len() > limits::NAME_BYTES {
            return Err(format!("a name of more than {} bytes", limits::NAME_BYTES));
        }
        Ok(word.to_owned())
    }

    /// `"..."` after `comment`.
    pub(super) fn comment(&mut self) -> Result<String, Message> {
        let Token::Quoted(text) = self.token else { return self.unexpected("a quoted string") };
        if text.len() > limits::COMMENT_BYTES {
            return Err(format!("a comment of more than {} bytes", limits::COMMENT_BYTES));
        }
        self.advance()?;
        Ok(text.to_owned())
    }

    fn spend(left: &mut usize, limit: usize, what: &str) -> Result<(), Message> {
        *left = left.checked_sub(1).ok_or_else(|| format!("more than {limit} {what}"))?;
        Ok(())
    }

    pub(super) fn spend_element(&mut self) -> Result<(), Message> {
        Self::spend(&mut self.elements, limits::ELEMENTS, "elements")
    }

    fn script(&mut self) -> Result<Ruleset, Message> {
        let mut ruleset = Ruleset::default();
        loop {
            self.skip_separators()?;
            if self.token == Token::End {
                return Ok(ruleset);
            }
            if self.eat("table")? {
                let family = self.our_table()?;
                self.table(family, ruleset.tables.entry(family).or_default())?;
            } else if self.eat("flush")? {
                self.expect("table")?;
                let family = self.our_table()?;
                match ruleset.tables.get_mut(&family) {
                    Some(table) if table.sets.is_empty() && table.chains.is_empty() => table.flush = true,
                    // A flush removes the rules that the script itself added before it.
                    Some(_) => return Err("a flush after something was declared".into()),
                    None => return Err("a flush before the table is declared".into()),
                }
            } else {
                return self.unexpected("`table` or `flush table`");
            }
            if self.token != Token::End {
                self.terminator()?;
            }
        }
    }

    /// The family and the name, which must be ours.
    fn our_table(&mut self) -> Result<Family, Message> {
        let family = match self.word("a family")? {
            "ip" => Family::Ip,
            "ip6" => Family::Ip6,
            _ => return Err("a table of another family than `ip` and `ip6`".into()),
        };
        if self.word("the name of a table")? != TABLE {
            return Err(format!("a table of another name than `{TABLE}`"));
        }
        Ok(family)
    }

    fn table(&mut self, family: Family, table: &mut Table) -> Result<(), Message> {
        self.expect_punct(b'{')?;
        loop {
            self.skip_separators()?;
            if self.eat_punct(b'}')? {
                return Ok(());
            }
            Self::spend(&mut self.objects, limits::OBJECTS, "chains and sets")?;
            let kind = self.word("`set`, `map`, `chain` or `}`")?;
            if !matches!(kind, "set" | "map" | "chain") {
                return Err("expected `set`, `map`, `chain` or `}`".into());
            }
            let name = self.name()?;
            let known = if kind == "chain" {
                table.chains.contains_key(&name)
            } else {
                table.sets.contains_key(&name)
            };
            if known {
                return Err(format!("`{name}` is declared twice"));
            }
            if kind == "chain" {
                table.chains.insert(name, self.chain(family)?);
            } else {
                table.sets.insert(name, self.set(family, kind == "map")?);
            }
            if self.token != Token::Punct(b'}') {
                self.terminator()?;
            }
        }
    }

    fn set(&mut self, family: Family, map: bool) -> Result<Set, Message> {
        let mut set = Set { map, ..Set::default() };
        let mut elements = None;
        self.expect_punct(b'{')?;
        loop {
            self.skip_separators()?;
            if self.eat_punct(b'}')? {
                break;
            }
            let property = self.word("a property of a set")?;
            match property {
                "type" if set.key.is_empty() => set.key = self.key_types(family, map)?,
                "flags" if !set.interval && elements.is_none() => {
                    self.expect("interval")?;
                    set.interval = true;
                }
                "comment" if set.comment.is_none() => set.comment = Some(self.comment()?),
                "elements" if elements.is_none() && !set.key.is_empty() => {
                    self.expect_punct(b'=')?;
                    elements = Some(self.elements(family, &set)?);
                }
                "type" | "flags" | "comment" | "elements" => {
                    return Err(format!("`{property}` twice or out of order"));
                }
                _ => return Err(format!("unknown property {}", shown(Token::Word(property)))),
            }
            if self.token != Token::Punct(b'}') {
                self.terminator()?;
            }
        }
        if set.key.is_empty() {
            return Err("a set without a type".into());
        }
        set.elements = elements.unwrap_or_else(|| {
            if set.is_plain() { Elements::Addrs(Vec::new()) } else { Elements::default() }
        });
        Ok(set)
    }

    fn key_types(&mut self, family: Family, map: bool) -> Result<Vec<KeyType>, Message> {
        let mut key = Vec::new();
        loop {
            key.push(match self.word("a type")? {
                "ipv4_addr" if family == Family::Ip => KeyType::Addr,
                "ipv6_addr" if family == Family::Ip6 => KeyType::Addr,
                "inet_proto" => KeyType::Proto,
                "inet_service" => KeyType::Service,
                "ifname" => KeyType::Ifname,
                other => return Err(format!("unknown type {}", shown(Token::Word(other)))),
            });
            if key.len() > limits::FIELDS {
                return Err(format!("more than {} fields", limits::FIELDS));
            }
            if !self.eat(".")? {
                break;
            }
        }
        if map {
            self.expect_punct(b':')?;
            self.expect("verdict")?;
        }
        Ok(key)
    }

    fn chain(&mut self, family: Family) -> Result<Chain, Message> {
        let mut chain = Chain::default();
        self.expect_punct(b'{')?;
        loop {
            self.skip_separators()?;
            if self.eat_punct(b'}')? {
                return Ok(chain);
            }
            if self.at("type") {
                if chain.hook.is_some() || !chain.rules.is_empty() {
                    return Err("`type` twice or after a rule".into());
                }
                chain.hook = Some(self.hook()?);
            } else if self.at("comment") {
                if chain.comment.is_some() || !chain.rules.is_empty() {
                    return Err("`comment` twice or after a rule".into());
                }
                self.advance()?;
                chain.comment = Some(self.comment()?);
            } else {
                Self::spend(&mut self.rules, limits::RULES, "rules")?;
                chain.rules.push(self.rule(family)?);
            }
            self.terminator()?;
        }
    }

    /// `type filter hook forward priority N; policy accept`, without the last separator.
    fn hook(&mut self) -> Result<Hook, Message> {
        for word in ["type", "filter", "hook", "forward", "priority"] {
            self.expect(word)?;
        }
        let priority = self.priority()?;
        self.expect_punct(b';')?;
        self.skip_newlines()?;
        self.expect("policy")?;
        self.expect("accept")?;
        Ok(Hook { priority })
    }

    /// A number, or a name with an offset (the names: `std_prios` in `src/rule.c` of nftables).
    fn priority(&mut self) -> Result<i32, Message> {
        let word = self.word("a priority")?;
        let base = match word {
            "raw" => -300,
            "mangle" => -150,
            "filter" => 0,
            "security" => 50,
            _ => {
                let (sign, digits) = word.strip_prefix('-').map_or((1, word), |digits| (-1, digits));
                return Ok(sign * offset(digits)?);
            }
        };
        if self.eat("-")? {
            return Ok(base - offset(self.word("a number")?)?);
        }
        if self.eat_punct(b'+')? {
            return Ok(base + offset(self.word("a number")?)?);
        }
        Ok(base)
    }
}

/// A part of a priority; small, so that sums of two cannot overflow.
fn offset(digits: &str) -> Result<i32, Message> {
    decimal(digits, 1_000_000)
        .and_then(|number| i32::try_from(number).ok())
        .ok_or_else(|| "expected a priority of at most 1000000".to_owned())
}

/// A decimal number of at most `max`. A leading zero is refused: nft would read the rest as octal.
pub(super) fn decimal(digits: &str, max: u64) -> Option<u64> {
    let plain = !digits.is_empty() && digits.len() <= 20 && digits.bytes().all(|b| b.is_ascii_digit());
    if !plain || (digits.len() > 1 && digits.starts_with('0')) {
        return None;
    }
    digits.parse().ok().filter(|number| *number <= max)
}
