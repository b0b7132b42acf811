//! Texts that were read, and places in them.

use std::fmt;
use std::sync::OnceLock;

/// Line and column are known at every so many bytes; a place between is counted from there.
const STRIDE: usize = 4096;

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
    /// For each source, made when a place in it is first asked for. Without it, naming the places of all policies of a
    /// large file would be quadratic, for JSON on one line too.
    marks: Vec<OnceLock<Vec<Mark>>>,
}

/// What stands before a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Mark {
    /// Ends of lines.
    lines: u32,
    /// Characters since the last end of line.
    characters: u32,
}

impl Mark {
    /// The mark behind some more bytes. A byte that continues a character of UTF-8 is no character of its own.
    fn past(self, bytes: &[u8]) -> Mark {
        bytes.iter().fold(self, |mark, byte| match byte {
            b'\n' => Mark { lines: mark.lines + 1, characters: 0 },
            0x80..=0xbf => mark,
            _ => Mark { characters: mark.characters + 1, ..mark },
        })
    }
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
        self.marks.push(OnceLock::new());
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
        let start = (span.start as usize).min(source.bytes.len());
        let marks = self.marks[span.source.0 as usize].get_or_init(|| {
            let chunks = source.bytes.chunks(STRIDE);
            let next = |mark: &mut Mark, chunk| Some(std::mem::replace(mark, mark.past(chunk)));
            chunks.chain([[].as_slice()]).scan(Mark::default(), next).collect()
        });
        let from = start / STRIDE;
        let mark = marks[from].past(&source.bytes[from * STRIDE..start]);
        Place { file: source.name.clone(), line: 1 + mark.lines, column: 1 + mark.characters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each byte's place, against counting from the beginning.
    #[test]
    fn places_are_those_that_counting_gives() {
        let line = "kéy: välue of a line\n".repeat(1000);
        let texts = [String::new(), line.clone(), line.replace('\n', ","), "a\n".repeat(2 * STRIDE)];
        for text in texts {
            let mut sources = Sources::default();
            let source = sources.add("f", text.clone().into_bytes());
            for (at, _) in text.char_indices().chain([(text.len(), ' '), (text.len() + 9, ' ')]) {
                let before = &text[..at.min(text.len())];
                let place = sources.place(Span { source, start: at as u32, end: at as u32 });
                let last = before.rsplit('\n').next().unwrap_or_default();
                let expected = (1 + before.matches('\n').count(), 1 + last.chars().count());
                assert_eq!((place.line as usize, place.column as usize), expected, "byte {at}");
            }
        }
    }
}
