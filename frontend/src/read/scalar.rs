//! What an unquoted YAML scalar is, by the rules of the YAML library that `kubectl` and the API server use.
//!
//! They are those of YAML 1.1 with some of 1.2: `yes`, `no`, `on`, `off`, `y`, `n` are booleans; a leading `0` makes an
//! integer octal, as does `0o`; `0x` and `0b` work; underscores between digits are ignored; a float may be written for
//! an integer; base 60 is not supported, and timestamps stay strings.

/// What a scalar is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    /// An integer above `i64::MAX`.
    Big(u64),
    Float(f64),
    Text,
}

/// Resolves a scalar that stands there without quotes.
pub(super) fn resolve(text: &str) -> Scalar {
    match text.as_bytes().first() {
        None => Scalar::Null,
        Some(b'y' | b'Y' | b'n' | b'N' | b't' | b'T' | b'f' | b'F' | b'o' | b'O' | b'~') => word(text),
        Some(b'.') => word_or(text, || float(text)),
        Some(b'0'..=b'9' | b'+' | b'-') => word_or(text, || number(text)),
        Some(_) => Scalar::Text,
    }
}

fn word_or(text: &str, otherwise: impl FnOnce() -> Option<Scalar>) -> Scalar {
    match word(text) {
        Scalar::Text => otherwise().unwrap_or(Scalar::Text),
        known => known,
    }
}

fn word(text: &str) -> Scalar {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Scalar::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Scalar::Bool(false)
        }
        "~" | "null" | "Null" | "NULL" => Scalar::Null,
        ".nan" | ".NaN" | ".NAN" => Scalar::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Scalar::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Scalar::Float(f64::NEG_INFINITY),
        _ => Scalar::Text,
    }
}

fn number(text: &str) -> Option<Scalar> {
    let plain;
    let text = if text.contains('_') {
        plain = text.replace('_', "");
        &plain
    } else {
        text
    };
    integer(text).or_else(|| float(text))
}

/// An integer with an optional sign and a prefix for its base, as Go's `ParseInt` with base 0 reads it.
fn integer(text: &str) -> Option<Scalar> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', _, ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', _, ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', _, ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // `from_str_radix` would take a second sign.
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let size = u64::from_str_radix(digits, base).ok()?;
    match (negative, i64::try_from(size)) {
        (false, Ok(n)) => Some(Scalar::Int(n)),
        (true, Ok(n)) => Some(Scalar::Int(-n)),
        (true, Err(_)) if size == 1 << 63 => Some(Scalar::Int(i64::MIN)),
        (true, Err(_)) => None,
        // An explicit plus is not understood for numbers of this size.
        (false, Err(_)) => (!text.starts_with('+')).then_some(Scalar::Big(size)),
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`; what is too large for a float is no number.
fn float(text: &str) -> Option<Scalar> {
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let whole = digits(rest);
    rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix('.') {
        let n = digits(fraction);
        if whole == 0 && n == 0 {
            return None;
        }
        rest = &fraction[n..];
    } else if whole == 0 {
        return None;
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        let n = digits(exponent);
        if n == 0 {
            return None;
        }
        rest = &exponent[n..];
    }
    if !rest.is_empty() {
        return None;
    }
    text.parse().ok().filter(|f: &f64| f.is_finite()).map(Scalar::Float)
}

/// The integer that a float stands for, if it is whole: `80.0` and `8e1` are written to JSON as 80.
pub(super) fn whole(f: f64) -> Option<i64> {
    // Above 2^53 not every integer is a float, and no field of ours takes such numbers.
    (f.fract() == 0.0 && f.abs() <= 9_007_199_254_740_992.0).then_some(f as i64)
}

#[cfg(test)]
mod tests {
    use super::{Scalar, resolve};

    #[test]
    fn scalars_are_what_kubectl_takes_them_for() {
        for word in ["y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"] {
            assert_eq!(resolve(word), Scalar::Bool(true), "{word}");
        }
        for word in ["n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"] {
            assert_eq!(resolve(word), Scalar::Bool(false), "{word}");
        }
        for word in ["", "~", "null", "Null", "NULL"] {
            assert_eq!(resolve(word), Scalar::Null, "{word}");
        }
        for text in ["80", "0120", "0o120", "0x50", "0b1010000", "+80", "8_0", "0X50", "0_120", "+0x50"] {
            assert_eq!(resolve(text), Scalar::Int(80), "{text}");
        }
        for (text, n) in
            [("0", 0), ("00", 0), ("-0b101", -5), ("8_080", 8080), ("-9223372036854775808", i64::MIN)]
        {
            assert_eq!(resolve(text), Scalar::Int(n), "{text}");
        }
        for (text, f) in
            [("80.0", 80.0), ("8e1", 80.0), ("08", 8.0), (".5", 0.5), ("1.", 1.0), ("-1.5E+1", -15.0)]
        {
            assert_eq!(resolve(text), Scalar::Float(f), "{text}");
        }
        assert_eq!(resolve("18446744073709551615"), Scalar::Big(u64::MAX));
        assert_eq!(resolve("99999999999999999999"), Scalar::Float(1e20));
        for text in [
            "1:20",
            "yEs",
            "tRUE",
            "nULL",
            "0x",
            "0b2",
            "0o9",
            "1e999",
            "-",
            "+",
            "--1",
            "+-1",
            "0x-1",
            ".",
            "._5",
            "_1",
            "1e",
            "2026-01-01",
            "10.0.0.0/8",
            "-http",
            "é",
            ".inff",
            "0é",
        ] {
            assert_eq!(resolve(text), Scalar::Text, "{text}");
        }
    }
}
