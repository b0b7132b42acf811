//! YAML into the tree, as `kubectl` understands it.
//!
//! The events of `saphyr-parser` are put together with aliases expanded and merges (`<<`) done. What would make a tree
//! much larger than its text is refused: depth and the expansion of aliases are bounded.

use super::scalar::{Scalar, resolve, whole};
use super::tree::{Entries, Entry, MAX_DEPTH, MAX_PROBLEMS, Node, Problem, Value, quote};
use crate::diagnostic::{ALIAS, BAD_KEY, DEPTH, DUPLICATE_KEY, SYNTAX, TAG};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What the aliases of one document may expand to: values, long strings counting as several.
const ALIAS_BUDGET: usize = 100_000;

/// This many bytes of a string weigh as much as a value.
const BYTES_PER_WEIGHT: usize = 32;

const TEMPLATE_HELP: &str = "this looks like a template: render it first, for instance with `helm template`";

/// What a text has in it.
#[derive(Default)]
pub(super) struct Parsed<'a> {
    /// The documents, in order, without the empty ones. More than one only where a marker separates them that is not on a line
    /// of its own.
    pub(super) documents: Vec<Node<'a>>,
    /// Keys that are there twice; the documents are complete apart from them.
    pub(super) problems: Vec<Problem>,
    /// Why the rest could not be read.
    pub(super) fatal: Option<Problem>,
    /// If that was the indentation inside of a flow collection: the character at which the outermost one starts.
    pub(super) flow: Option<usize>,
}

/// Reads a text that starts at `base` in its source.
pub(super) fn parse<'a>(text: &'a str, original: &str, base: u32) -> Parsed<'a> {
    let mut builder = Builder {
        // Line breaks that were replaced are shorter, so equal length means equal text.
        shared: if text.len() == original.len() { text } else { "" },
        places: Places { text: original, chars: 0, bytes: 0, base, ascii: original.is_ascii() },
        stack: Vec::new(),
        anchors: BTreeMap::new(),
        spent: 0,
        begun: false,
        parsed: Parsed::default(),
    };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let outcome = match event {
            Ok((Event::StreamEnd, _)) => break,
            Ok((event, span)) => builder.event(event, span.start.index(), span.end.index()),
            Err(error) => {
                if error.info().contains("indentation") {
                    builder.parsed.flow = builder.outermost_flow();
                }
                Err(builder.syntax(&error))
            }
        };
        if let Err(mut problem) = outcome {
            if problem.help.is_none() && text.contains("{{") {
                problem.help = Some(TEMPLATE_HELP.into());
            }
            builder.parsed.fatal = Some(problem);
            break;
        }
    }
    builder.parsed
}

/// Turns positions in characters, which the parser counts, into bytes. Events come nearly in order, so it steps from
/// the last position.
struct Places<'t> {
    text: &'t str,
    chars: usize,
    bytes: usize,
    base: u32,
    ascii: bool,
}

impl Places<'_> {
    fn at(&mut self, chars: usize) -> u32 {
        if self.ascii {
            return self.base + chars.min(self.text.len()) as u32;
        }
        let starts = |b: u8| b & 0xc0 != 0x80;
        let bytes = self.text.as_bytes();
        while self.chars < chars && self.bytes < bytes.len() {
            self.bytes += 1;
            while bytes.get(self.bytes).is_some_and(|b| !starts(*b)) {
                self.bytes += 1;
            }
            self.chars += 1;
        }
        while self.chars > chars && self.bytes > 0 {
            self.bytes -= 1;
            while !starts(bytes[self.bytes]) && self.bytes > 0 {
                self.bytes -= 1;
            }
            self.chars -= 1;
        }
        self.base + self.bytes as u32
    }
}

/// A list or mapping that is not finished.
struct Frame<'a> {
    start: u32,
    anchor: usize,
    weight: usize,
    height: usize,
    kind: Kind<'a>,
}

enum Kind<'a> {
    List(Vec<Node<'a>>),
    Map(Entries<'a>, Option<Key<'a>>),
}

/// The key whose value comes next.
struct Key<'a> {
    text: Cow<'a, str>,
    start: u32,
    end: u32,
    merge: bool,
}

/// A finished value: how much it expands to and how many levels it has.
#[derive(Clone)]
struct Done<'a> {
    node: Node<'a>,
    weight: usize,
    height: usize,
    /// Whether it is a plain `<<`, which as a key means a merge.
    merge: bool,
}

struct Builder<'a, 't> {
    /// The text, if places in it are the same as in the original: strings can then be borrowed from it.
    shared: &'a str,
    places: Places<'t>,
    stack: Vec<Frame<'a>>,
    anchors: BTreeMap<usize, Done<'a>>,
    spent: usize,
    /// Whether a document has begun.
    begun: bool,
    parsed: Parsed<'a>,
}

impl<'a> Builder<'a, '_> {
    fn event(&mut self, event: Event<'a>, start: usize, end: usize) -> Result<(), Problem> {
        let start = self.places.at(start);
        let end = self.places.at(end).max(start);
        let start = match &event {
            Event::Scalar(_, _, anchor, tag) if *anchor != 0 || tag.is_some() => self.content(start).min(end),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag)
                if *anchor != 0 || tag.is_some() =>
            {
                self.content(start)
            }
            _ => start,
        };
        match event {
            // Only `...` can be in between, and there kubectl stops to read until the next `---`.
            Event::DocumentStart(false) if self.begun => {
                let what = "yaml: kubectl does not read what follows `...`";
                let mut problem = Problem::new(SYNTAX, start, end.max(start + 1), what);
                problem.help = Some("begin the document with a line `---`".into());
                Err(problem)
            }
            Event::DocumentStart(_) => {
                self.begun = true;
                self.anchors.clear();
                self.spent = 0;
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let text = self.borrowed(text, start, end);
                let done = scalar(text, style, tag.as_deref(), start, end)?;
                self.remember(anchor, &done);
                self.add(done)
            }
            Event::SequenceStart(anchor, _) => self.open(start, anchor, Kind::List(Vec::new())),
            Event::MappingStart(anchor, _) => self.open(start, anchor, Kind::Map(Entries::default(), None)),
            // The end of a block has no text of its own.
            Event::SequenceEnd | Event::MappingEnd => self.close((end > start).then_some(end)),
            Event::Alias(id) => {
                let done = self.alias(id, start, end)?;
                self.add(done)
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    /// The same string without its own memory, where the text has it literally.
    fn borrowed(&self, string: Cow<'a, str>, start: u32, end: u32) -> Cow<'a, str> {
        let base = self.places.base;
        let (start, end) = ((start - base) as usize, (end - base) as usize);
        for part in [self.shared.get(start..end), self.shared.get(start + 1..end.saturating_sub(1))] {
            if let Some(part) = part.filter(|p| **p == *string) {
                return Cow::Borrowed(part);
            }
        }
        string
    }

    /// Where the content starts of a value that starts here with its anchor or tag.
    fn content(&self, start: u32) -> u32 {
        let mut at = (start - self.places.base) as usize;
        let bytes = self.places.text.as_bytes();
        while matches!(bytes.get(at), Some(b'&' | b'!')) {
            let rest = &bytes[at..];
            let word = rest.iter().take_while(|b| !b.is_ascii_whitespace()).count();
            let space = rest[word..].iter().take_while(|b| b.is_ascii_whitespace()).count();
            at += word + space;
        }
        self.places.base + at as u32
    }

    fn syntax(&mut self, error: &ScanError) -> Problem {
        let at = self.places.at(error.marker().index());
        Problem::new(SYNTAX, at, at + 1, format!("yaml: {}", error.info()))
    }

    fn open(&mut self, start: u32, anchor: usize, kind: Kind<'a>) -> Result<(), Problem> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(too_deep(start, start + 1));
        }
        self.stack.push(Frame { start, anchor, weight: 1, height: 1, kind });
        Ok(())
    }

    /// The character at which the outermost collection in brackets starts that is not finished.
    fn outermost_flow(&self) -> Option<usize> {
        let text = self.places.text;
        let starts = self.stack.iter().map(|f| (f.start - self.places.base) as usize);
        let at = starts.into_iter().find(|at| matches!(text.as_bytes().get(*at), Some(b'{' | b'[')))?;
        text.get(..at).map(|before| before.chars().count())
    }

    /// Finishes a list or mapping, with its closing bracket or where its last value ends.
    fn close(&mut self, bracket: Option<u32>) -> Result<(), Problem> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let (value, last) = match frame.kind {
            Kind::List(mut items) => {
                items.shrink_to_fit();
                let last = items.last().map(|n| n.end);
                (Value::List(Rc::new(items)), last)
            }
            Kind::Map(entries, _) => {
                let last = entries.end();
                (entries.finish(), last)
            }
        };
        let end = bracket.or(last).unwrap_or(frame.start).max(frame.start);
        let node = Node { start: frame.start, end, value };
        let done = Done { node, weight: frame.weight, height: frame.height, merge: false };
        self.remember(frame.anchor, &done);
        self.add(done)
    }

    fn remember(&mut self, anchor: usize, done: &Done<'a>) {
        if anchor != 0 {
            self.anchors.insert(anchor, Done { merge: false, ..done.clone() });
        }
    }

    fn alias(&mut self, id: usize, start: u32, end: u32) -> Result<Done<'a>, Problem> {
        let Some(done) = self.anchors.get(&id) else {
            return Err(Problem::new(ALIAS, start, end, "the anchor's value contains itself"));
        };
        self.spent = self.spent.saturating_add(done.weight);
        if self.spent > ALIAS_BUDGET {
            let message = format!("the aliases of this document expand to more than {ALIAS_BUDGET} values");
            return Err(Problem::new(ALIAS, start, end, message));
        }
        if self.stack.len() + done.height > MAX_DEPTH {
            return Err(too_deep(start, end));
        }
        Ok(done.clone())
    }

    /// Puts a value where it belongs: it is an item, a key, the value of a key, or a document.
    fn add(&mut self, done: Done<'a>) -> Result<(), Problem> {
        let Some(frame) = self.stack.last_mut() else {
            if !matches!(done.node.value, Value::Null) {
                self.parsed.documents.push(done.node);
            }
            return Ok(());
        };
        frame.weight = frame.weight.saturating_add(done.weight);
        frame.height = frame.height.max(done.height + 1);
        match &mut frame.kind {
            Kind::List(items) => items.push(done.node),
            Kind::Map(entries, pending) => match pending.take() {
                None => *pending = Some(key(done)?),
                Some(key) if key.merge => merge(entries, &key, &done.node, &mut self.parsed.problems)?,
                Some(key) => {
                    let entry = Entry { key: key.text, start: key.start, end: key.end, value: done.node };
                    if let Some(taken) = entries.push(entry) {
                        duplicate(&taken.key, key.start, key.end, &mut self.parsed.problems);
                    }
                }
            },
        }
        Ok(())
    }
}

fn too_deep(start: u32, end: u32) -> Problem {
    Problem::new(DEPTH, start, end, format!("nested more than {MAX_DEPTH} levels deep"))
}

fn duplicate(key: &str, start: u32, end: u32, problems: &mut Vec<Problem>) {
    if problems.len() < MAX_PROBLEMS {
        let message = format!("key {} already set in map", quote(key));
        problems.push(Problem::new(DUPLICATE_KEY, start, end, message));
    }
}

/// A mapping key as the string that it is in JSON.
fn key<'a>(done: Done<'a>) -> Result<Key<'a>, Problem> {
    let Node { start, end, value } = done.node;
    let text = match value {
        Value::Str(text) => text,
        Value::Bool(b) => Cow::Borrowed(if b { "true" } else { "false" }),
        Value::Int(n) => Cow::Owned(n.to_string()),
        Value::Float(f) if f.is_finite() => {
            Cow::Owned(whole(f).map_or_else(|| f.to_string(), |n| n.to_string()))
        }
        other => {
            let message = format!("yaml: invalid map key: {}", other.describe());
            return Err(Problem::new(BAD_KEY, start, end, message));
        }
    };
    Ok(Key { text, start, end, merge: done.merge })
}

/// Takes over the entries of a merged mapping, or of each in a list. One that is there already is a duplicate, as it is
/// for the strict reader of the API server.
fn merge<'a>(
    entries: &mut Entries<'a>,
    key: &Key<'a>,
    from: &Node<'a>,
    problems: &mut Vec<Problem>,
) -> Result<(), Problem> {
    let refuse = || {
        let message = "map merge requires map or sequence of maps as the value";
        Problem::new(BAD_KEY, key.start, key.end, message)
    };
    let maps = match &from.value {
        Value::Map(_) => std::slice::from_ref(from),
        Value::List(items) => items.as_slice(),
        _ => return Err(refuse()),
    };
    for map in maps {
        let Value::Map(merged) = &map.value else { return Err(refuse()) };
        for entry in merged.iter() {
            if let Some(taken) = entries.push(entry.clone()) {
                duplicate(&taken.key, key.start, key.end, problems);
            }
        }
    }
    Ok(())
}

fn scalar<'a>(
    text: Cow<'a, str>,
    style: ScalarStyle,
    tag: Option<&Tag>,
    start: u32,
    end: u32,
) -> Result<Done<'a>, Problem> {
    let plain = style == ScalarStyle::Plain;
    let merge = plain && tag.is_none() && text == "<<";
    let weight = 1 + text.len() / BYTES_PER_WEIGHT;
    let value = match tag {
        None if plain => resolved(text),
        None => Value::Str(text),
        Some(tag) => tagged(text, tag).map_err(|message| Problem::new(TAG, start, end, message))?,
    };
    Ok(Done { node: Node { start, end, value }, weight, height: 0, merge })
}

fn resolved(text: Cow<'_, str>) -> Value<'_> {
    match resolve(&text) {
        Scalar::Null => Value::Null,
        Scalar::Bool(b) => Value::Bool(b),
        Scalar::Int(n) => Value::Int(n),
        Scalar::Big(n) => Value::Big(n),
        Scalar::Float(f) => Value::Float(f),
        Scalar::Text => Value::Str(text),
    }
}

/// A scalar with an explicit tag. A tag that is not YAML's own makes it a string.
fn tagged<'a>(text: Cow<'a, str>, tag: &Tag) -> Result<Value<'a>, String> {
    let name = match (tag.handle.as_str(), tag.suffix.as_str()) {
        ("tag:yaml.org,2002:", name) => name,
        ("", name) => name.strip_prefix("tag:yaml.org,2002:").unwrap_or(""),
        _ => "",
    };
    let refuse = || Err(format!("cannot decode {} as a !!{name}", quote(&text)));
    match (name, resolve(&text)) {
        ("null", Scalar::Null) => Ok(Value::Null),
        ("bool", Scalar::Bool(b)) => Ok(Value::Bool(b)),
        ("int", Scalar::Int(n)) => Ok(Value::Int(n)),
        ("int", Scalar::Big(n)) => Ok(Value::Big(n)),
        ("float", Scalar::Float(f)) => Ok(Value::Float(f)),
        ("float", Scalar::Int(n)) => Ok(Value::Float(n as f64)),
        ("null" | "bool" | "int" | "float", _) => refuse(),
        ("binary", _) => match base64(&text).map(String::from_utf8) {
            Some(Ok(decoded)) => Ok(Value::Str(Cow::Owned(decoded))),
            _ => refuse(),
        },
        _ => Ok(Value::Str(text)),
    }
}

/// Standard base64 with padding; line breaks are ignored.
fn base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let pad = text.iter().rev().take_while(|b| **b == b'=').count();
    if pad > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for b in &text[..text.len() - pad] {
        let digit = ALPHABET.iter().position(|a| a == b)?;
        bits = bits << 6 | digit as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests;
