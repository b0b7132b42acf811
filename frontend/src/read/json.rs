//! JSON into the tree. Strict, and with places: concatenated objects, duplicate keys noted, depth bounded.

use super::tree::{Entries, Entry, MAX_DEPTH, MAX_PROBLEMS, Node, Problem, Value, quote};
use crate::diagnostic::{DEPTH, DUPLICATE_KEY, JSON};
use std::borrow::Cow;
use std::rc::Rc;

/// Reads the values of a text one after the other. `base` is the place of the text in its source.
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
    base: u32,
    /// Keys that are there twice. The reading goes on.
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    /// A reader at the start of a text.
    pub(super) fn new(text: &'a str, base: u32) -> Reader<'a> {
        Reader { text, at: 0, base, problems: Vec::new() }
    }

    /// The next value, or `None` at the end of the text. After an error the rest cannot be read.
    pub(super) fn next(&mut self) -> Option<Result<Node<'a>, Problem>> {
        self.space();
        (self.at < self.text.len()).then(|| self.value(0))
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn place(&self, at: usize) -> u32 {
        self.base + at as u32
    }

    fn fail<T>(&self, message: &str) -> Result<T, Problem> {
        let end = (self.at + 1).min(self.text.len());
        let message = if self.at >= self.text.len() { "unexpected end of JSON input" } else { message };
        Err(Problem::new(JSON, self.place(self.at), self.place(end), message))
    }

    fn space(&mut self) {
        while matches!(self.byte(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Node<'a>, Problem> {
        let start = self.at;
        let value = match self.byte() {
            Some(b'{' | b'[') if depth >= MAX_DEPTH => {
                let message = format!("nested more than {MAX_DEPTH} levels deep");
                return Err(Problem::new(DEPTH, self.place(start), self.place(start + 1), message));
            }
            Some(b'{') => self.map(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::Str(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => self.word()?,
        };
        Ok(Node { start: self.place(start), end: self.place(self.at), value })
    }

    fn word(&mut self) -> Result<Value<'a>, Problem> {
        let rest = &self.text[self.at..];
        for (word, value) in
            [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))]
        {
            if rest.starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        self.fail("invalid character, a JSON value was expected")
    }

    fn map(&mut self, depth: usize) -> Result<Value<'a>, Problem> {
        let mut entries = Entries::default();
        self.at += 1;
        self.space();
        if self.byte() == Some(b'}') {
            self.at += 1;
            return Ok(entries.finish());
        }
        loop {
            self.space();
            if self.byte() != Some(b'"') {
                return self.fail("a key in double quotes was expected");
            }
            let start = self.place(self.at);
            let key = self.string()?;
            let end = self.place(self.at);
            self.space();
            if self.byte() != Some(b':') {
                return self.fail("`:` was expected after a key");
            }
            self.at += 1;
            self.space();
            let value = self.value(depth + 1)?;
            if let Some(taken) = entries.push(Entry { key, start, end, value })
                && self.problems.len() < MAX_PROBLEMS
            {
                let message = format!("key {} already set in map", quote(&taken.key));
                self.problems.push(Problem::new(DUPLICATE_KEY, start, end, message));
            }
            self.space();
            match self.byte() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(entries.finish());
                }
                _ => return self.fail("`,` or `}` was expected"),
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value<'a>, Problem> {
        let mut items = Vec::new();
        self.at += 1;
        self.space();
        if self.byte() == Some(b']') {
            self.at += 1;
            return Ok(Value::List(Rc::new(items)));
        }
        loop {
            self.space();
            items.push(self.value(depth + 1)?);
            self.space();
            match self.byte() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    items.shrink_to_fit();
                    return Ok(Value::List(Rc::new(items)));
                }
                _ => return self.fail("`,` or `]` was expected"),
            }
        }
    }

    /// A string, from its opening quote; borrowed unless it has an escape.
    fn string(&mut self) -> Result<Cow<'a, str>, Problem> {
        self.at += 1;
        let mut owned: Option<String> = None;
        let mut from = self.at;
        loop {
            let run = self.text.as_bytes()[self.at..]
                .iter()
                .take_while(|b| **b >= 0x20 && !matches!(b, b'"' | b'\\'));
            self.at += run.count();
            match self.byte() {
                Some(b'"') => {
                    let part = &self.text[from..self.at];
                    self.at += 1;
                    return Ok(match owned {
                        None => Cow::Borrowed(part),
                        Some(text) => Cow::Owned(text + part),
                    });
                }
                Some(b'\\') => {
                    let text = owned.get_or_insert_default();
                    text.push_str(&self.text[from..self.at]);
                    let c = self.escape()?;
                    owned.get_or_insert_default().push(c);
                    from = self.at;
                }
                _ => return self.fail("invalid character in a string"),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Problem> {
        self.at += 1;
        let c = match self.byte() {
            Some(b @ (b'"' | b'\\' | b'/')) => char::from(b),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode();
            }
            _ => return self.fail("invalid escape in a string"),
        };
        self.at += 1;
        Ok(c)
    }

    /// What follows `\u`. Half of a surrogate pair becomes the replacement character, as in Go.
    fn unicode(&mut self) -> Result<char, Problem> {
        let first = self.hex()?;
        if (0xd800..0xdc00).contains(&first) && self.text[self.at..].starts_with("\\u") {
            let back = self.at;
            self.at += 2;
            let second = self.hex()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex(&mut self) -> Result<u32, Problem> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).unwrap_or_default();
        if digits.len() != 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return self.fail("invalid escape in a string");
        }
        let code = digits.iter().fold(0, |n, d| n * 16 + char::from(*d).to_digit(16).unwrap_or(0));
        self.at += 4;
        Ok(code)
    }

    fn number(&mut self) -> Result<Value<'a>, Problem> {
        let start = self.at;
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        match self.byte() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.fail("invalid number"),
        }
        let mut integer = true;
        if self.byte() == Some(b'.') {
            self.at += 1;
            integer = false;
            self.some_digits()?;
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            integer = false;
            if matches!(self.byte(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        let text = &self.text[start..self.at];
        if integer {
            if let Ok(n) = text.parse() {
                return Ok(Value::Int(n));
            }
            if let Ok(n) = text.parse() {
                return Ok(Value::Big(n));
            }
        }
        match text.parse::<f64>() {
            Ok(f) if f.is_finite() => Ok(Value::Float(f)),
            _ => Err(Problem::new(JSON, self.place(start), self.place(self.at), "the number is too large")),
        }
    }

    fn digits(&mut self) {
        while matches!(self.byte(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Result<(), Problem> {
        let before = self.at;
        self.digits();
        if self.at == before { self.fail("invalid number") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::Reader;

    fn check(text: &str, expect: &str) {
        let mut reader = Reader::new(text, 0);
        let mut out = Vec::new();
        while let Some(next) = reader.next() {
            match next {
                Ok(node) => out.push(format!("{}..{} {}", node.start, node.end, node.value.describe())),
                Err(p) => {
                    out.push(format!("{}..{} {}", p.start, p.end, p.message));
                    break;
                }
            }
        }
        out.extend(reader.problems.iter().map(|p| format!("{}..{} {}", p.start, p.end, p.message)));
        assert_eq!(out.join("; "), expect, "{text}");
    }

    #[test]
    fn values_and_errors_have_places() {
        check(r#" "a" 1 -0.5e1"#, r#"1..4 the string "a"; 5..6 the number 1; 7..13 the number -5"#);
        check(r#""\u00e9\ud83d\ude00\ud83dx\n""#, r#"0..29 the string "é😀�x\n""#);
        check("{} [] null true", "0..2 a mapping; 3..5 a list; 6..10 null; 11..15 the boolean true");
        check(r#"{"a":1,"a":2}"#, r#"0..13 a mapping; 7..10 key "a" already set in map"#);
        check("99999999999999999999", "0..20 the number 100000000000000000000");
        check(r#"{"a""#, "4..4 unexpected end of JSON input");
        check("[1,]", "3..4 invalid character, a JSON value was expected");
        check("01", "0..1 the number 0; 1..2 the number 1");
        check("\"a\nb\"", "2..3 invalid character in a string");
        check(r#""\u12"#, "3..4 invalid escape in a string");
        check("1e999", "0..5 the number is too large");
    }

    #[test]
    fn depth_is_bounded() {
        check(&"[".repeat(100_000), "200..201 nested more than 200 levels deep");
        check(&r#"{"a":"#.repeat(100_000), "1000..1001 nested more than 200 levels deep");
    }
}
