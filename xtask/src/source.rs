//! Looking at our own sources, as text.

use crate::shell::root;
use std::fs;
use std::path::{Path, PathBuf};

/// The files below a folder whose names end so, sorted.
pub(crate) fn files(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let fail = |e: std::io::Error| format!("{}: {e}", dir.display());
        for entry in fs::read_dir(&dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The text of a file.
pub(crate) fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", relative(path)))
}

/// A path as seen from the top of the repository.
pub(crate) fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The code of a file without line comments and without its module of tests, line for line.
pub(crate) fn code(text: &str) -> String {
    let tests = text.lines().position(|l| l.trim() == "#[cfg(test)]");
    let is_module = |i: usize| text.lines().nth(i + 1).is_some_and(|l| l.trim_start().starts_with("mod "));
    let end = tests.filter(|&i| is_module(i)).unwrap_or(usize::MAX);
    let kept = text.lines().take(end).map(|l| if l.trim_start().starts_with("//") { "" } else { l });
    kept.collect::<Vec<_>>().join("\n")
}

/// The modules of the standard library that code names, as `fs` of `std::fs::File` and of `use std::{fs, io};`, each
/// with its line.
pub(crate) fn std_modules(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("std::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "std::".len()..];
        let heads = match rest.strip_prefix('{') {
            Some(group) => top_level(group),
            None => vec![rest],
        };
        let word = |text: &str| -> String {
            text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        };
        found.extend(heads.into_iter().map(|head| (line, word(head))));
    }
    found
}

/// The items of a `{...}` group, whose opening brace is gone, up to its closing one.
fn top_level(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..i]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_modules_in_paths_and_groups() {
        let text =
            "use std::{fmt, fs::{self, File}, io};\nfn f() { std::process::exit(1) }\nlet x = my_std::env;";
        let found: Vec<String> =
            std_modules(text).into_iter().map(|(line, name)| format!("{line}:{name}")).collect();
        assert_eq!(found, ["1:fmt", "1:fs", "1:io", "2:process"]);
    }

    #[test]
    fn comments_and_tests_are_not_code() {
        let text = "// unsafe\nfn f() {}\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert_eq!(code(text), "\nfn f() {}");
        // An attribute on a single function does not end the file.
        assert_eq!(code("#[cfg(test)]\nfn f() {}\nfn g() {}"), "#[cfg(test)]\nfn f() {}\nfn g() {}");
    }
}
