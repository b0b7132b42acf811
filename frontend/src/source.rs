//! Texts that were read, and places in them.

use std::fmt;

/// A text that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

/// A stretch of bytes of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The source.
    pub source: SourceId,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// One text with the name that people know it by.
#[derive(Debug, Clone)]
pub struct Source {
    /// The path as the user gave it, or `<stdin>`.
    pub name: String,
    /// The bytes, not necessarily UTF-8. At most `u32::MAX` bytes (the caller checks).
    pub bytes: Vec<u8>,
}

/// All sources of a run.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    list: Vec<Source>,
}

/// A place for people: name, line and column, both from 1; the column counts characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The source's name.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl Sources {
    /// Adds a source.
    pub fn add(&mut self, name: impl Into<String>, bytes: Vec<u8>) -> SourceId {
        self.list.push(Source { name: name.into(), bytes });
        SourceId((self.list.len() - 1) as u32)
    }

    /// All sources with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (SourceId, &Source)> {
        self.list.iter().enumerate().map(|(i, s)| (SourceId(i as u32), s))
    }

    /// One source.
    pub fn get(&self, id: SourceId) -> &Source {
        &self.list[id.0 as usize]
    }

    /// File, line and column of the start of a span.
    pub fn place(&self, span: Span) -> Place {
        let source = self.get(span.source);
        let before = &source.bytes[..(span.start as usize).min(source.bytes.len())];
        let line_start = before.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        Place {
            file: source.name.clone(),
            line: 1 + before.iter().filter(|&&b| b == b'\n').count() as u32,
            column: 1 + String::from_utf8_lossy(&before[line_start..]).chars().count() as u32,
        }
    }
}
