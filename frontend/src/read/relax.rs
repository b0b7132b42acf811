//! Flow collections with less indentation than YAML 1.2 demands.
//!
//! The reader of `kubectl` does not care how far the lines inside `{...}` and `[...]` are indented; our parser does. Where
//! it stops for that reason, the lines of that collection are joined: line breaks and comments outside of quotes become
//! spaces, so that every character keeps its position. (A plain scalar that goes over several lines keeps more spaces
//! than it should; no field that matters may have any.)

use super::yaml::parse;

/// At most so many characters are read again for the sake of one document.
const BUDGET: usize = 64 << 20;

/// The text with the lines of its flow collections joined where the parser needs it. `flow` is the character at which
/// the first such collection starts.
pub(super) fn relax(text: &str, flow: usize, original: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let mut joined = text.to_string();
    let (mut flow, mut spent) = (flow, 0);
    while join(&mut chars, flow) && spent < BUDGET {
        joined = chars.iter().collect();
        spent += chars.len();
        match parse(&joined, original, 0).flow {
            Some(next) => flow = next,
            None => break,
        }
    }
    joined
}

/// Joins the lines of the collection that starts here; false if it has but one.
fn join(chars: &mut [char], start: usize) -> bool {
    let (mut depth, mut at, mut changed) = (0usize, start, false);
    // Quotes and comments start only where a value may, not inside of a plain scalar.
    let mut before = ' ';
    while at < chars.len() {
        let c = chars[at];
        match c {
            '"' | '\'' if matches!(before, ' ' | ',' | '[' | '{' | ':') => {
                at = end_of_quotes(chars, at);
                before = c;
                continue;
            }
            '#' if before == ' ' => {
                while at < chars.len() && !matches!(chars[at], '\n' | '\r') {
                    chars[at] = ' ';
                    at += 1;
                }
                continue;
            }
            '\n' | '\r' => {
                chars[at] = ' ';
                changed = true;
            }
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            break;
        }
        before = if c.is_ascii_whitespace() { ' ' } else { c };
        at += 1;
    }
    changed
}

/// One past the closing quote of a quoted scalar.
fn end_of_quotes(chars: &[char], start: usize) -> usize {
    let quote = chars[start];
    let mut at = start + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' if quote == '"' => at += 1,
            c if c == quote && quote == '\'' && chars.get(at + 1) == Some(&'\'') => at += 1,
            c if c == quote => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn lines_are_joined_in_place() {
        let check = |text: &str, expect: &str| {
            let mut chars: Vec<char> = text.chars().collect();
            join(&mut chars, 0);
            assert_eq!(chars.into_iter().collect::<String>(), expect);
        };
        check("[a, # x]\nb]\n", "[a,      b]\n");
        check(
            "{a: \"b\n# ]\\\"\", 'c''\n}': it's,\nd: e#f}\n",
            "{a: \"b\n# ]\\\"\", 'c''\n}': it's, d: e#f}\n",
        );
        check("[\n", "[ ");
    }
}
