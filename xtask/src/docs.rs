//! `cargo xtask docs`: the pages of `docs/` that are generated, and checks of those that are not.
//!
//! - `docs/diagnostics.md` is written from the registry of the front end.
//! - Every relative link in `README.md` and `docs/` leads to a file that exists.
//! - Every row of `docs/limits.md` names a constant that exists, with its present value; and every constant of the two
//!   modules `limits` has a row.
//! - Every sample is named in `docs/semantics.md`.

use crate::shell::root;
use crate::source::{files, read, relative};
use netpolc_frontend::diagnostic::CODES;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const DIAGNOSTICS: &str = "docs/diagnostics.md";
const LIMITS: &str = "docs/limits.md";
const SEMANTICS: &str = "docs/semantics.md";

/// Modules whose public constants must all have a row in `docs/limits.md`.
const LIMIT_MODULES: &[&str] = &["backends/bundle/src/limits.rs", "backends/nftables/src/limits.rs"];

/// Writes the generated pages.
pub(crate) fn write() -> Result<(), String> {
    let path = root().join(DIAGNOSTICS);
    fs::write(&path, diagnostics()).map_err(|e| format!("{DIAGNOSTICS}: {e}"))?;
    println!("{DIAGNOSTICS}: {} codes", CODES.len());
    Ok(())
}

/// Checks all pages.
pub(crate) fn check() -> Result<(), String> {
    let mut found = Vec::new();
    if read(&root().join(DIAGNOSTICS)).ok() != Some(diagnostics()) {
        found.push(format!("{DIAGNOSTICS} is not what the registry says: cargo xtask docs"));
    }
    let mut pages = files(&root().join("docs"), ".md")?;
    pages.push(root().join("README.md"));
    for page in &pages {
        found.extend(dead_links(page, &read(page)?));
    }
    found.extend(limits(&read(&root().join(LIMITS))?)?);
    found.extend(unguarded(&read(&root().join(SEMANTICS))?)?);
    if !found.is_empty() {
        return Err(format!("the docs do not hold:\n  {}", found.join("\n  ")));
    }
    println!("{} pages: generated ones are up to date, links lead somewhere, limits are true", pages.len());
    Ok(())
}

/// The page of all diagnostics.
fn diagnostics() -> String {
    let mut out = String::from(
        "# Diagnostics\n\n<!-- Written by `cargo xtask docs` from frontend/src/diagnostic/codes.rs. -->\n\n\
         An error (`E`) makes the input unusable, a warning (`W`) says that it probably means something else than it\n\
         seems to, a note (`N`) is worth knowing. `netpolc code E0012` prints one of these texts.\n\n",
    );
    // Writing to a String cannot fail.
    for c in CODES {
        let _ = writeln!(out, "- [{}](#{}): {}", c.code, c.code.to_lowercase(), c.title);
    }
    for c in CODES {
        let _ = writeln!(out, "\n## {}\n\n**{}**\n\n{}", c.code, c.title, wrap(c.explanation));
    }
    out
}

/// Breaks a paragraph into lines of at most 110 characters.
fn wrap(text: &str) -> String {
    let (mut out, mut length) = (String::new(), 0);
    for word in text.split_whitespace() {
        if length > 0 && length + 1 + word.len() > 110 {
            out.push('\n');
            length = 0;
        } else if length > 0 {
            out.push(' ');
            length += 1;
        }
        out.push_str(word);
        length += word.len();
    }
    out
}

/// The targets of the inline links of a page, `(target)` after `]`. Code blocks have none.
fn links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        } else if !code {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            links.extend(targets);
        }
    }
    links
}

fn dead_links(page: &Path, text: &str) -> Vec<String> {
    let dir = page.parent().map_or_else(PathBuf::new, Path::to_owned);
    let local = links(text).into_iter().filter(|l| !l.contains("://") && !l.starts_with('#'));
    let dead = local.filter(|l| !dir.join(l.split('#').next().unwrap_or(l)).exists());
    dead.map(|l| format!("{}: {l} leads nowhere", relative(page))).collect()
}

/// A row of `docs/limits.md`: `` | what | `value` ... | [`NAME`](../path) | source | ``.
fn limit_rows(text: &str) -> Vec<(String, String, String)> {
    let rows = text.lines().filter(|l| l.starts_with('|') && l.contains("`]("));
    let row = |line: &str| {
        let mut columns = line.split('|').skip(2);
        let value = columns.next()?.split('`').nth(1)?;
        let (name, rest) = columns.next()?.trim().strip_prefix("[`")?.split_once("`](")?;
        let path = rest.split(')').next()?.trim_start_matches("../");
        Some((name.to_owned(), value.to_owned(), path.to_owned()))
    };
    rows.filter_map(row).collect()
}

/// The constants that a source file defines, with their expressions.
fn constants(text: &str) -> Vec<(&str, &str)> {
    let constant = |line: &'_ str| -> Option<(usize, usize)> {
        let at = line.find("const ")? + "const ".len();
        Some((at, line[at..].find(':')? + at))
    };
    let lines = text.lines().filter(|l| !l.trim_start().starts_with("//"));
    lines
        .filter_map(|line| {
            let (start, end) = constant(line)?;
            let (_, value) = line[end..].split_once(" = ")?;
            Some((&line[start..end], value.trim_end_matches(';')))
        })
        .collect()
}

fn limits(page: &str) -> Result<Vec<String>, String> {
    let rows = limit_rows(page);
    let mut found = Vec::new();
    for (name, value, path) in &rows {
        let text = read(&root().join(path))?;
        match constants(&text).iter().find(|(n, _)| n == name) {
            None => found.push(format!("{LIMITS}: {path} has no constant {name}")),
            Some((_, now)) if now != value => {
                found.push(format!("{LIMITS}: {name} of {path} is {now}, not {value}"));
            }
            Some(_) => {}
        }
    }
    for path in LIMIT_MODULES {
        let text = read(&root().join(path))?;
        let missing = constants(&text)
            .into_iter()
            .filter(|(name, _)| !rows.iter().any(|(n, _, p)| n == name && p == path));
        found.extend(missing.map(|(name, _)| format!("{LIMITS}: {name} of {path} has no row")));
    }
    Ok(found)
}

/// The samples that no row of `docs/semantics.md` names.
fn unguarded(page: &str) -> Result<Vec<String>, String> {
    let dir = root().join("samples");
    let fail = |e: std::io::Error| format!("samples: {e}");
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
        if !page.contains(&format!("](../samples/{name}/)")) {
            found.push(format!("{SEMANTICS} does not name the sample {name}"));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_outside_of_code_and_dead_ones_reported() {
        let text = "[a](x.md) and [b](y.md#part)\n```\n[c](z.md)\n```\n[d](https://example.org/) [e](#here)";
        assert_eq!(links(text), ["x.md", "y.md#part", "https://example.org/", "#here"]);
        let found = dead_links(&root().join("docs/no-such-page.md"), text);
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_row_with_a_wrong_value_or_name_is_found() {
        let row = |value: &str, name: &str| {
            format!("| x | `{value}` (1 MiB) | [`{name}`](../backends/bundle/src/limits.rs) | ours |")
        };
        let faults = |row: String| {
            let found = limits(&row).unwrap();
            found.into_iter().filter(|f| !f.ends_with("has no row")).count()
        };
        assert_eq!(faults(row("1 << 20", "MANIFEST_BYTES")), 0);
        assert_eq!(faults(row("1 << 21", "MANIFEST_BYTES")), 1);
        assert_eq!(faults(row("1 << 20", "NO_SUCH_BYTES")), 1);
        assert!(limits("").unwrap().iter().any(|f| f.contains("MANIFEST_BYTES")));
    }

    #[test]
    fn every_sample_must_be_named() {
        assert!(unguarded("").unwrap().iter().any(|f| f.ends_with(" course")));
        let named = unguarded("[`course`](../samples/course/)").unwrap();
        assert!(!named.iter().any(|f| f.ends_with(" course")));
    }
}
