//! One line for each event on standard error: `time=... level=... event=... key=value ...`.
//!
//! A value that has anything but plain characters is quoted and escaped, so whatever a message contains, it stays one
//! line and cannot pretend to be another field.

use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Most characters of one value.
const VALUE_CHARS: usize = 2048;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What one expects to read.
    Info,
    /// Something was not as it should be, and was mended or can be lived with.
    Warn,
    /// Something could not be done.
    Error,
}

/// Writes one line. If standard error is gone, there is no one to tell.
pub fn log(level: Level, event: &str, fields: &[(&str, &dyn Display)]) {
    let text = line(SystemTime::now(), level, event, fields);
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn line(now: SystemTime, level: Level, event: &str, fields: &[(&str, &dyn Display)]) -> String {
    let level = match level {
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    let mut text = format!("time={} level={level} event={event}", timestamp(now));
    for (key, value) in fields {
        let value: String = value.to_string().chars().take(VALUE_CHARS).collect();
        let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '=' && c != '\\';
        // Writing into a string cannot fail.
        let _ = if !value.is_empty() && value.chars().all(plain) {
            write!(text, " {key}={value}")
        } else {
            write!(text, " {key}={value:?}")
        };
    }
    text.push('\n');
    text
}

/// `2026-11-02T10:00:00.123Z`.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Year, month and day of a day since 1970. The calendar repeats after 146,097 days; a year that begins in March has its
/// leap day at the end, so that the months' lengths follow one formula.
fn date(days: u64) -> (u64, u64, u64) {
    // Days from 1 March of the year 0 to 1 January 1970.
    let days = days + 719_468;
    let (cycle, rest) = (days / 146_097, days % 146_097);
    let year = (rest - rest / 1_460 + rest / 36_524 - rest / 146_096) / 365;
    let day_of_year = rest - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_read_off_the_calendar() {
        let at = |seconds: u64| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59.000Z");
        assert_eq!(at(4_102_444_800), "2100-01-01T00:00:00.000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn a_value_cannot_end_its_line_or_its_field() {
        let text = line(
            UNIX_EPOCH,
            Level::Warn,
            "x",
            &[("a", &"b"), ("why", &"two\nlines level=\"info\""), ("e", &"")],
        );
        assert_eq!(
            text,
            "time=1970-01-01T00:00:00.000Z level=warn event=x a=b why=\"two\\nlines level=\\\"info\\\"\" e=\"\"\n"
        );
    }
}
