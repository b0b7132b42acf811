//! Logs for people and programs: a line of `key=value` pairs to standard error for each event, with the time as the loader
//! writes it.

use k8s_openapi::jiff::Timestamp;
use std::fmt::{Display, Write as _};
use std::io::Write as _;

/// Longest value that is shown; the rest is cut, since some come from other people's objects.
const MOST: usize = 2000;

/// Something that went as it should.
pub fn info(message: &str, fields: &[(&str, &dyn Display)]) {
    line("info", message, fields);
}

/// Something that is tried again, or that is done in another way.
pub fn warn(message: &str, fields: &[(&str, &dyn Display)]) {
    line("warn", message, fields);
}

/// Something that needs a person.
pub fn error(message: &str, fields: &[(&str, &dyn Display)]) {
    line("error", message, fields);
}

fn line(level: &str, message: &str, fields: &[(&str, &dyn Display)]) {
    let mut out = format!("time={:.3} level={level} msg=", Timestamp::now());
    quote(&mut out, message);
    for (key, value) in fields {
        let _ = write!(out, " {key}=");
        quote(&mut out, &value.to_string());
    }
    out.push('\n');
    // If standard error is gone, there is no one to tell.
    let _ = std::io::stderr().write_all(out.as_bytes());
}

/// Words as they are; anything else in quotes, on one line.
fn quote(out: &mut String, value: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@+".contains(c);
    if !value.is_empty() && value.len() <= MOST && value.chars().all(plain) {
        out.push_str(value);
        return;
    }
    out.push('"');
    for c in value.chars().take(MOST) {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_on_one_line() {
        let mut out = String::new();
        for value in ["shop/db", "two words", "a \"b\"\n\u{1b}[0m", ""] {
            quote(&mut out, value);
            out.push(' ');
        }
        assert_eq!(out, "shop/db \"two words\" \"a \\\"b\\\"\\n?[0m\" \"\" ");
    }
}
