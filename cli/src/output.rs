//! The one place that prints: results to standard output, everything for people to standard error.

use std::io::{ErrorKind, IsTerminal, Write};

/// Whether messages may be coloured: standard error is a terminal and `NO_COLOR` is unset or empty.
pub(crate) fn color() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Prints a result. A reader that went away (a closed pipe) ends the program quietly, as for any filter; any other failure
/// is one of the program, for whoever keeps the output must not take a part of it for the whole.
pub(crate) fn result(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(failed) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        if failed.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        error(&format!("standard output: {failed}"));
        std::process::exit(2);
    }
}

/// Prints text for people. If standard error is gone there is no one to tell.
pub(crate) fn message(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(text.as_bytes());
    if !text.ends_with('\n') {
        let _ = err.write_all(b"\n");
    }
}

/// A number with its noun, as `1 policy` or `3 policies`.
pub(crate) fn count(n: usize, noun: &str) -> String {
    match (n, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (n, Some(stem)) => format!("{n} {stem}ies"),
        (n, None) => format!("{n} {noun}{}", if noun.ends_with("ss") { "es" } else { "s" }),
    }
}

/// Prints an error line.
pub(crate) fn error(text: &str) {
    message(&if color() { format!("\u{1b}[1;31merror\u{1b}[0m: {text}") } else { format!("error: {text}") });
}

/// Whether progress is worth showing: someone is watching.
pub(crate) fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        let mut err = std::io::stderr().lock();
        let _ = write!(err, "\r\u{1b}[K{text}");
        let _ = err.flush();
    }
}

/// Ends a line of progress.
pub(crate) fn progress_done() {
    progress("");
}
