//! Sources into stretches that are read on their own, so that an error in one document does not lose the others.

use super::tree::Problem;
use crate::diagnostic::{CONTROL, ENCODING};
use crate::source::{Source, SourceId};
use std::borrow::Cow;

/// A stretch of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) source: SourceId,
    /// First byte.
    pub(super) start: usize,
    /// One past the last byte.
    pub(super) end: usize,
    /// Whether it starts as JSON does.
    pub(super) json: bool,
}

const BOM: &str = "\u{feff}";

/// The units of a source: a YAML document each, or all of a JSON text.
pub(super) fn split(id: SourceId, source: &Source) -> Result<Vec<Unit>, Problem> {
    let text = utf8(&source.bytes)?;
    let start = if text.starts_with(BOM) { BOM.len() } else { 0 };
    let text = &text[start..];
    let first = text.trim_start().bytes().next();
    if first == Some(b'{') || source.name.ends_with(".json") {
        return Ok(vec![Unit { source: id, start, end: start + text.len(), json: true }]);
    }
    Ok(split_yaml(id, text, start))
}

/// The documents of a YAML text that starts at `base` in its source.
pub(super) fn split_yaml(id: SourceId, text: &str, base: usize) -> Vec<Unit> {
    let unit = |start, end| Unit { source: id, start: base + start, end: base + end, json: false };
    let mut units = Vec::new();
    let mut from = 0;
    for marker in markers(text) {
        if from < marker.line && !only_directives(&text[from..marker.line]) {
            units.push(unit(from, marker.line));
            from = marker.next;
        } else if from >= marker.line {
            from = marker.next;
        }
        // Else: directives belong to the document that the marker opens, so the unit goes on.
    }
    if from < text.len() {
        units.push(unit(from, text.len()));
    }
    units
}

fn utf8(bytes: &[u8]) -> Result<&str, Problem> {
    let zeros = bytes.iter().take(64).filter(|b| **b == 0).count();
    let utf16 = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    if utf16 {
        let mut problem = Problem::new(ENCODING, 0, 0, "the text is UTF-16, not UTF-8");
        problem.help = Some("save it as UTF-8".into());
        return Err(problem);
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to() as u32;
        let what = if zeros > 0 { "this is no text" } else { "the text is not UTF-8" };
        let byte = bytes.get(at as usize).copied().unwrap_or(0);
        Problem::new(ENCODING, at, at + 1, format!("{what}: byte {byte:#04x} at offset {at}"))
    })
}

/// A line that starts with `---` and separates documents.
struct Marker {
    /// Where the line starts.
    line: usize,
    /// Where the document after it starts: on the next line, or on this one if it has content.
    next: usize,
}

/// All separators of a text. As for YAML and for `kubectl`, they count in block scalars too.
fn markers(text: &str) -> impl Iterator<Item = Marker> + '_ {
    let at_start = text.starts_with("---").then_some(0);
    let others = text.match_indices("\n---").map(|(i, _)| i + 1);
    at_start.into_iter().chain(others).filter_map(move |line| {
        let rest = &text[line + 3..];
        let end = rest.find('\n').map_or(rest.len(), |i| i + 1);
        let after = &rest[..end];
        if !after.is_empty() && !after.starts_with([' ', '\t', '\r', '\n']) {
            return None;
        }
        let content = after.trim();
        let next = if content.is_empty() || content.starts_with('#') { line + 3 + end } else { line };
        Some(Marker { line, next })
    })
}

/// Whether the text has directives (`%YAML 1.1`) and nothing but comments besides.
fn only_directives(text: &str) -> bool {
    let mut directives = false;
    for line in text.lines() {
        match line.trim_start().as_bytes().first() {
            Some(b'%') if line.starts_with('%') => directives = true,
            None | Some(b'#') => {}
            Some(_) => return false,
        }
    }
    directives
}

/// The text of a YAML unit as its parser needs it: characters that YAML 1.1 takes for line breaks become such, so that
/// nobody hides a line from us in a comment. Errs for control characters.
pub(super) fn lines_of_yaml_1_1(text: &str, base: u32) -> Result<Cow<'_, str>, Problem> {
    let refuse = |at: usize, c: char| {
        let at = base + at as u32;
        let message = format!("control characters are not allowed: U+{:04X}", u32::from(c));
        Problem::new(CONTROL, at, at + c.len_utf8() as u32, message)
    };
    if text.is_ascii() {
        let bad = text.bytes().position(|b| (b < 0x20 && !matches!(b, b'\t' | b'\n' | b'\r')) || b == 0x7f);
        return match bad {
            None => Ok(Cow::Borrowed(text)),
            Some(at) => Err(refuse(at, char::from(text.as_bytes()[at]))),
        };
    }
    let mut breaks = false;
    for (at, c) in text.char_indices() {
        match c {
            '\t' | '\n' | '\r' => {}
            '\u{85}' | '\u{2028}' | '\u{2029}' => breaks = true,
            '\u{fffe}' | '\u{ffff}' => return Err(refuse(at, c)),
            '\u{feff}' if at == 0 => {}
            c if c.is_control() => return Err(refuse(at, c)),
            _ => {}
        }
    }
    if !breaks {
        return Ok(Cow::Borrowed(text));
    }
    let line = |c| if matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}') { '\n' } else { c };
    Ok(Cow::Owned(text.chars().map(line).collect()))
}

#[cfg(test)]
mod tests {
    use super::{lines_of_yaml_1_1, split};
    use crate::source::{Source, Sources};

    fn check(text: &str, expect: &[&str]) {
        let mut sources = Sources::default();
        let id = sources.add("a.yaml", text.into());
        let source: &Source = sources.get(id);
        let units = split(id, source).unwrap();
        let got: Vec<&str> = units.iter().map(|u| &text[u.start..u.end]).collect();
        assert_eq!(got, expect, "{text:?}");
    }

    #[test]
    fn documents_are_separated_as_kubectl_does() {
        check("", &[]);
        check("---\n---\n---\n", &[]);
        check("a: 1\n---\nb: 2", &["a: 1\n", "b: 2"]);
        check("---\r\na: 1\r\n--- # c\r\nb: 2\r\n---", &["a: 1\r\n", "b: 2\r\n"]);
        check("a: |\n  x\n  ---\n  y\n", &["a: |\n  x\n  ---\n  y\n"]);
        check("a: |\n  x\n---\n  y\n", &["a: |\n  x\n", "  y\n"]);
        check("---a\n----\n", &["---a\n----\n"]);
        check("--- {a: 1}\n--- {b: 2}\n", &["--- {a: 1}\n", "--- {b: 2}\n"]);
        check("# c\n%YAML 1.1\n---\na: 1\n---\nb: 2\n", &["# c\n%YAML 1.1\n---\na: 1\n", "b: 2\n"]);
        check("\u{feff}---\na: 1\n", &["a: 1\n"]);
        check(" {\"a\": 1}\n---\n", &[" {\"a\": 1}\n---\n"]);
    }

    #[test]
    fn line_breaks_of_yaml_1_1_and_control_characters() {
        assert_eq!(lines_of_yaml_1_1("a # b\u{2028}c\u{85}d", 0).unwrap(), "a # b\nc\nd");
        assert_eq!(lines_of_yaml_1_1("ü\u{7}", 10).unwrap_err().start, 12);
        assert_eq!(lines_of_yaml_1_1("a\u{0}", 0).unwrap_err().start, 1);
        assert!(lines_of_yaml_1_1("ü\u{9f}", 0).is_err());
        assert!(lines_of_yaml_1_1("\t\r\n é", 0).is_ok());
    }
}
