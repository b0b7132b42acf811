//! Diagnostics for people, in the look of rustc.

use super::{Diagnostic, Severity};
use crate::source::{SourceId, Sources, Span};
use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use std::collections::BTreeMap;
use std::fmt::Write;

/// At most this many diagnostics are shown, the worst first; the rest is counted.
const SHOWN: usize = 200;

/// At most this many characters of a line are shown.
const LINE_CHARS: usize = 140;

/// Characters before the place that are shown where a line is cut.
const LEAD_CHARS: usize = 50;

/// At most this many characters of a message or a field path are shown.
const TEXT_CHARS: usize = 600;

/// The diagnostics as text: code and message, place, the line, field path, object and help. Each ends with an empty
/// line. `color` adds ANSI escapes. Control characters of the input never reach the output.
pub fn render(diagnostics: &[Diagnostic], sources: &Sources, color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.decor_style(DecorStyle::Ascii);
    let mut lines = LineTables::default();
    let mut out = String::new();
    let chosen = choose(diagnostics);
    for diagnostic in &chosen {
        out.push_str(&one(diagnostic, sources, &mut lines, &renderer));
        out.push_str("\n\n");
    }
    if chosen.len() < diagnostics.len() {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "... and {} more\n", diagnostics.len() - chosen.len());
    }
    out
}

fn choose(diagnostics: &[Diagnostic]) -> Vec<&Diagnostic> {
    let mut chosen: Vec<(usize, &Diagnostic)> = diagnostics.iter().enumerate().collect();
    if chosen.len() > SHOWN {
        chosen.sort_by_key(|(i, d)| (d.severity, *i));
        chosen.truncate(SHOWN);
        chosen.sort_by_key(|(i, _)| *i);
    }
    chosen.into_iter().map(|(_, d)| d).collect()
}

fn one(d: &Diagnostic, sources: &Sources, lines: &mut LineTables, renderer: &Renderer) -> String {
    let level = match d.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let title = level.primary_title(clean(&d.message)).id(d.code);
    let mut group = Group::with_title(title);
    if let Some(span) = d.span {
        let view = View::of(span, sources, lines);
        let snippet = Snippet::source(view.text)
            .line_start(view.line)
            .fold(false)
            .annotation(AnnotationKind::Primary.span(view.mark));
        let origin = || Origin::path(view.file.clone()).line(view.line).char_column(view.column);
        group = match (view.cut, d.code == super::ENCODING) {
            // Bytes that are no text cannot be shown.
            (_, true) => group.element(origin()),
            // In a part of a line the snippet's own columns would be wrong.
            (true, false) => group.element(origin()).element(snippet),
            (false, false) => group.element(snippet.path(view.file)),
        };
    }
    let mut text = String::new();
    for (name, about) in [("field", &d.path), ("object", &d.object), ("help", &d.help)] {
        let Some(about) = about else { continue };
        if d.span.is_none() {
            // Without a snippet the renderer would draw a margin with nothing beside it.
            let _ = write!(text, "\n  = {name}: {}", clean(about));
        } else {
            group = group.element(Level::NOTE.with_name(Some(name)).message(clean(about)));
        }
    }
    renderer.render(&[group]) + &text
}

/// One line of text without control characters, cut to a length that people read.
fn clean(text: &str) -> String {
    let mut out: String = text.chars().map(visible).take(TEXT_CHARS).collect();
    if text.chars().nth(TEXT_CHARS).is_some() {
        out.push_str("...");
    }
    out
}

fn visible(c: char) -> char {
    if c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    {
        '\u{fffd}'
    } else {
        c
    }
}

/// Line starts of the sources that were asked for.
#[derive(Default)]
struct LineTables(BTreeMap<SourceId, Vec<usize>>);

impl LineTables {
    /// Line (from 0) of a byte, the line's first byte and one past its last.
    fn line(&mut self, id: SourceId, bytes: &[u8], at: usize) -> (usize, usize, usize) {
        let starts = self.0.entry(id).or_insert_with(|| {
            std::iter::once(0)
                .chain(bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1))
                .collect()
        });
        let line = starts.partition_point(|&s| s <= at).saturating_sub(1);
        let start = starts.get(line).copied().unwrap_or(0);
        let end = starts.get(line + 1).map_or(bytes.len(), |next| next - 1);
        (line, start, end.max(start))
    }
}

/// What is shown of a source: one line, or a part of it.
struct View {
    file: String,
    line: usize,
    column: usize,
    /// Whether the line does not start where the text does.
    cut: bool,
    text: String,
    mark: std::ops::Range<usize>,
}

impl View {
    fn of(span: Span, sources: &Sources, lines: &mut LineTables) -> View {
        let source = sources.get(span.source);
        let bytes = &source.bytes;
        let at = (span.start as usize).min(bytes.len());
        let (line, start, end) = lines.line(span.source, bytes, at);
        let at = at.min(end);
        let stop = (span.end as usize).clamp(at, end);
        let text =
            |range: &[u8]| -> Vec<char> { String::from_utf8_lossy(range).chars().map(visible).collect() };
        // A file may be one line, so no more of it is looked at than can be shown, whatever the width of its characters.
        let mut from = at.saturating_sub(4 * LINE_CHARS).max(start);
        while from > start && from < at && bytes[from] & 0xc0 == 0x80 {
            from += 1;
        }
        let before = text(&bytes[from..at]);
        let column = sources.place(span).column as usize;
        let cut = before.len().saturating_sub(LEAD_CHARS);
        let long = from > start || before.len() + (end - at) > LINE_CHARS;
        let shown = if long { &before[cut..] } else { &before[..] };
        let rest = &bytes[at..end.min(at + 4 * LINE_CHARS)];
        let rest: Vec<char> = text(rest).into_iter().filter(|c| *c != '\r').take(LINE_CHARS).collect();
        let marked = text(&bytes[at..stop.min(at + 4 * LINE_CHARS)]).len().min(rest.len());
        let lead: String = shown.iter().collect();
        let tail: String = rest.iter().collect();
        let marked: usize = rest.iter().take(marked).map(|c| c.len_utf8()).sum();
        let text = lead.clone() + tail.trim_end();
        let mark = lead.len().min(text.len())..(lead.len() + marked).min(text.len());
        let file = source.name.chars().map(visible).collect();
        View { file, line: line + 1, column, cut: long && cut > 0, text, mark }
    }
}
