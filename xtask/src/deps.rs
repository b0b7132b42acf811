//! `cargo xtask deps`: the direction of the arrows between our crates, and which of them touch the system.
//!
//! `docs/architecture.md` says why; this is the table that is held against the sources. A crate that is not in the table
//! must be put there first.

use crate::shell::metadata;
use crate::source::{code, files, read, relative, std_modules};
use serde_json::Value;
use std::path::Path;

/// One crate of ours.
struct Room {
    name: &'static str,
    /// Which of our crates it may depend on; `None` = any.
    ours: Option<&'static [&'static str]>,
    /// Whether it may touch files, processes, the environment and clocks.
    system: bool,
}

/// All of them. A row may come before its crate.
const ROOMS: &[Room] = &[
    Room { name: "netpolc-ir", ours: Some(&[]), system: false },
    Room { name: "netpolc-frontend", ours: Some(&["netpolc-ir"]), system: false },
    Room { name: "netpolc-bundle", ours: Some(&[]), system: false },
    Room { name: "netpolc-nftables", ours: Some(&["netpolc-ir", "netpolc-bundle"]), system: false },
    Room { name: "netpolc-iptables", ours: Some(&["netpolc-ir", "netpolc-bundle"]), system: false },
    Room { name: "netpolc-ebpf", ours: Some(&["netpolc-ir", "netpolc-bundle"]), system: false },
    Room { name: "netpol-loader", ours: Some(&["netpolc-bundle"]), system: true },
    Room { name: "netpol-cni", ours: Some(&["netpolc-bundle"]), system: true },
    Room {
        name: "netpol-agent",
        ours: Some(&["netpolc-bundle", "netpolc-frontend", "netpolc-ir", "netpolc-node"]),
        system: true,
    },
    Room {
        name: "netpolc-node",
        ours: Some(&[
            "netpolc-frontend",
            "netpolc-ir",
            "netpolc-bundle",
            "netpolc-nftables",
            "netpolc-iptables",
            "netpolc-ebpf",
        ]),
        system: false,
    },
    Room { name: "netpolc-sandbox", ours: Some(&[]), system: true },
    Room {
        name: "netpolc",
        ours: Some(&[
            "netpolc-frontend",
            "netpolc-ir",
            "netpolc-bundle",
            "netpolc-node",
            "netpolc-nftables",
            "netpolc-sandbox",
        ]),
        system: true,
    },
    Room { name: "netpolc-standin", ours: Some(&[]), system: true },
    Room { name: "netpolc-testkit", ours: None, system: true },
    Room { name: "netpolc-bench", ours: None, system: true },
    Room { name: "xtask", ours: Some(&["netpolc-frontend"]), system: true },
];

/// What the tests of any crate may depend on besides.
const FOR_TESTS: &[&str] =
    &["netpolc-testkit", "netpolc-standin", "netpolc-frontend", "netpolc-node", "netpolc-sandbox"];

/// Modules of the standard library that only some crates may use.
const SYSTEM: &[&str] = &["env", "fs", "process", "time"];

/// Single files that may use one of them although their crate may not, and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    // The one module of the format that reads and writes bundles.
    ("backends/bundle/src/store.rs", "fs"),
];

/// Other people's crates that reach the system; not for crates that may not.
const REACHING: &[&str] = &["clap", "libc", "nix", "rustix", "socket2", "tempfile", "tokio"];

/// Files that may have `unsafe`: running compiled BPF in this process, the loader's bpf(2), and that of tests.
const UNSAFE: &[&str] = &[
    "backends/ebpf/src/machine/compiled/native.rs",
    "backends/ebpf/tests/it/bpf.rs",
    "runtime-loader/loader/src/ebpf/sys.rs",
];

/// Runs the task.
pub(crate) fn run() -> Result<(), String> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let mut found = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        match ROOMS.iter().find(|r| r.name == name) {
            Some(room) => check(room, package, &mut found)?,
            None => found.push(format!("{name} is not in the table of xtask/src/deps.rs")),
        }
    }
    if !found.is_empty() {
        return Err(format!("the architecture does not hold:\n  {}", found.join("\n  ")));
    }
    println!(
        "{} crates: who depends on whom and who touches the system is as docs/architecture.md says",
        packages.len()
    );
    Ok(())
}

fn check(room: &Room, package: &Value, found: &mut Vec<String>) -> Result<(), String> {
    let dir = Path::new(package["manifest_path"].as_str().unwrap_or_default());
    let dir = dir.parent().ok_or("a package without a folder")?;
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        let name = dependency["name"].as_str().unwrap_or_default();
        let test = dependency["kind"].as_str() == Some("dev");
        found.extend(judge(room, name, test));
    }
    if !read(&dir.join("Cargo.toml"))?.contains("[lints]\nworkspace = true") {
        found.push(format!("{} does not take the lints of the workspace", room.name));
    }
    for file in files(dir, ".rs")? {
        let (place, text) = (relative(&file), read(&file)?);
        let text = code(&text);
        let source = file.starts_with(dir.join("src")) && !file.ends_with("tests.rs");
        if source && !room.system {
            found.extend(system_uses(&place, &text));
        }
        let has_unsafe = |l: &str| l.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
        let line = text.lines().position(has_unsafe).filter(|_| !UNSAFE.contains(&place.as_str()));
        // The word itself stands in this file and in its tests.
        if let Some(line) = line.filter(|_| place != "xtask/src/deps.rs") {
            found.push(format!("{place}:{} has unsafe code", line + 1));
        }
    }
    Ok(())
}

/// What is wrong with one dependency of a room.
fn judge(room: &Room, name: &str, test: bool) -> Option<String> {
    let ours = ROOMS.iter().any(|r| r.name == name);
    let allowed = match room.ours {
        None => true,
        Some(list) if ours => list.contains(&name) || (test && FOR_TESTS.contains(&name)),
        Some(_) => room.system || test || !REACHING.contains(&name),
    };
    (!allowed).then(|| format!("{} may not depend on {name}", room.name))
}

fn system_uses(place: &str, code: &str) -> Vec<String> {
    let used = std_modules(code).into_iter().filter(|(_, module)| SYSTEM.contains(&module.as_str()));
    let used = used.filter(|(_, module)| !EXCEPTIONS.contains(&(place, module.as_str())));
    used.map(|(line, module)| format!("{place}:{line} uses std::{module}, which its crate may not")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::root;

    fn room(name: &str) -> &'static Room {
        ROOMS.iter().find(|r| r.name == name).unwrap()
    }

    #[test]
    fn forbidden_arrows_are_found() {
        let wrong = |name, on, test| judge(room(name), on, test).is_some();
        assert!(wrong("netpolc-ir", "netpolc-frontend", false));
        assert!(wrong("netpol-loader", "netpolc-ir", false));
        assert!(wrong("netpolc-sandbox", "netpolc-bundle", false));
        assert!(wrong("netpolc-frontend", "nix", false), "the front end reaches the system");
        assert!(!wrong("netpolc-frontend", "netpolc-testkit", true));
        assert!(!wrong("netpolc-frontend", "netpolc-ir", false));
        assert!(!wrong("netpolc-testkit", "netpolc-sandbox", false));
    }

    #[test]
    fn backends_never_depend_on_each_other() {
        let backends = ["netpolc-nftables", "netpolc-iptables", "netpolc-ebpf"];
        for room in ROOMS.iter().filter(|r| backends.contains(&r.name)) {
            let others = room.ours.unwrap().iter().filter(|n| backends.contains(n)).count();
            assert_eq!(others, 0, "{}", room.name);
        }
    }

    #[test]
    fn uses_of_the_system_are_found_but_for_the_exceptions() {
        let text = "use std::{fmt, fs};\nuse std::time::Instant;";
        assert_eq!(system_uses("ir/src/lib.rs", text).len(), 2);
        assert_eq!(system_uses("backends/bundle/src/store.rs", text).len(), 1);
    }

    #[test]
    fn exceptions_are_not_stale() {
        for (place, module) in EXCEPTIONS {
            let text = std::fs::read_to_string(root().join(place)).unwrap();
            assert!(
                std_modules(&code(&text)).iter().any(|(_, m)| m == module),
                "{place} does not use std::{module}"
            );
        }
    }

    #[test]
    fn the_sources_hold() {
        run().unwrap();
    }
}
