//! Bytes to tokens, for the subset of the nftables language that [`super::parse`] reads.
//!
//! What could make nft see other tokens than this lexer is refused: control characters (a tab and a newline are fine),
//! a backslash (nft joins lines at it), `$` (variables), single quotes, anything that is not ASCII outside of comments
//! and quoted strings.

/// A token. Words are ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// Letters, digits and `_ . : / -`: keywords, names, numbers, addresses, ranges, prefixes.
    Word(&'a str),
    /// A quoted string, without the quotes.
    Quoted(&'a str),
    /// One of `{ } ( ) , ; = @ & | ! +` and a colon that stands alone.
    Punct(u8),
    /// `!=`.
    NotEqual,
    /// `==`.
    Equal,
    /// The end of a line.
    Newline,
    /// The end of the text.
    End,
}

/// What is wrong, without the line; see [`Lexer::line`].
pub(super) type Message = String;

pub(super) struct Lexer<'a> {
    text: &'a str,
    pos: usize,
    /// The line of the token that was read last, from 1.
    line: u32,
    /// Lines begin after the next token; a newline token belongs to the line that it ends.
    pending: bool,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'/' | b'-')
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Lexer<'a> {
        Lexer { text, pos: 0, line: 1, pending: false }
    }

    pub(super) fn line(&self) -> u32 {
        self.line
    }

    fn slice(&self, from: usize, to: usize) -> &'a str {
        self.text.get(from..to).unwrap_or_default()
    }

    pub(super) fn next(&mut self) -> Result<Token<'a>, Message> {
        if self.pending {
            self.line = self.line.saturating_add(1);
            self.pending = false;
        }
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.pos), Some(b' ' | b'\t')) {
            self.pos += 1;
        }
        let Some(&byte) = bytes.get(self.pos) else { return Ok(Token::End) };
        let start = self.pos;
        if is_word(byte) {
            while bytes.get(self.pos).is_some_and(|b| is_word(*b)) {
                self.pos += 1;
            }
            let word = self.slice(start, self.pos);
            return Ok(if word == ":" { Token::Punct(b':') } else { Token::Word(word) });
        }
        self.pos += 1;
        match byte {
            b'\n' => {
                self.pending = true;
                Ok(Token::Newline)
            }
            b'#' => self.comment(),
            b'"' => self.quoted(start + 1),
            b'!' | b'=' if bytes.get(self.pos) == Some(&b'=') => {
                self.pos += 1;
                Ok(if byte == b'!' { Token::NotEqual } else { Token::Equal })
            }
            b'{' | b'}' | b'(' | b')' | b',' | b';' | b'=' | b'@' | b'&' | b'|' | b'!' | b'+' => {
                Ok(Token::Punct(byte))
            }
            _ if byte.is_ascii_graphic() => Err(format!("unexpected character `{}`", char::from(byte))),
            _ => Err(format!("unexpected byte 0x{byte:02x}")),
        }
    }

    /// A comment runs to the end of its line; the answer is the token after it, a newline or the end.
    fn comment(&mut self) -> Result<Token<'a>, Message> {
        let rest = self.text.as_bytes().get(self.pos..).unwrap_or_default();
        let length = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let body = rest.get(..length).unwrap_or_default();
        if let Some(bad) = body.iter().find(|b| (b.is_ascii_control() && **b != b'\t') || **b == b'\\') {
            return Err(format!("byte 0x{bad:02x} in a comment"));
        }
        self.pos += length;
        if length == rest.len() {
            return Ok(Token::End);
        }
        self.pos += 1;
        self.pending = true;
        Ok(Token::Newline)
    }

    fn quoted(&mut self, start: usize) -> Result<Token<'a>, Message> {
        let rest = self.text.as_bytes().get(start..).unwrap_or_default();
        let end = rest.iter().position(|b| *b == b'"' || *b == b'\\' || b.is_ascii_control());
        match end.and_then(|at| rest.get(at).map(|byte| (at, *byte))) {
            Some((length, b'"')) => {
                self.pos = start + length + 1;
                Ok(Token::Quoted(self.slice(start, start + length)))
            }
            Some((_, byte)) => Err(format!("byte 0x{byte:02x} in a quoted string")),
            None => Err("a quoted string without an end".into()),
        }
    }
}
