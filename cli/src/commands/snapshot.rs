//! `netpolc snapshot`: the generated rules under version control.
//!
//! A snapshot is a directory with one `<node>.nft` for each node (and `<node>.iptables`, `<node>.ebpf` for those backends): the node's rules under names for review, without
//! places, so that a line inserted above a policy changes nothing. The rules of a snapshot are proven before they are
//! compared or written.

use super::build::{folder_name, review_text};
use super::nodes::{builder, choose, labels, pod_names};
use crate::args::{Backend, SnapshotArgs};
use crate::failure::{Answer, Failure};
use crate::output;
use crate::pipeline::{Compiled, Input, compile};
use clap::ValueEnum as _;
use netpolc_ir::unit::{Host, Origin};
use netpolc_nftables::emit::emit_named;
use netpolc_nftables::review::for_review;
use netpolc_node::{Labels, NodeBuilder};
use similar::{ChangeTag, TextDiff};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The ending of a snapshot file.
fn ending(backend: Backend) -> &'static str {
    match backend {
        Backend::Nftables => "nft",
        Backend::Iptables => "iptables",
        Backend::Ebpf => "ebpf",
    }
}

/// The rules of one node for review.
struct Snapshot {
    text: String,
    /// The policies behind each object, by its name for review.
    origins: BTreeMap<String, Vec<Origin>>,
}

/// Runs the command.
pub(crate) fn run(args: &SnapshotArgs) -> Result<Answer, Failure> {
    let compiled = compile(Input::sound(&args.paths)?)?;
    let snapshots = snapshots(&compiled, &args.backend)?;
    match (&args.check, &args.accept) {
        (Some(dir), _) => check(&compiled, &snapshots, dir, args),
        (None, Some(dir)) => accept(&snapshots, dir, &args.backend),
        (None, None) => Err(Failure::Unusable("one of --check and --accept is needed".to_owned())),
    }
}

fn snapshots(compiled: &Compiled, backends: &[Backend]) -> Result<BTreeMap<String, Snapshot>, Failure> {
    let mut all = BTreeMap::new();
    for &backend in backends {
        let labels = labels(compiled, false);
        let mut builder = builder(compiled, &labels, &[backend], None);
        for host in choose(&compiled.matrix, &[])? {
            builder.build(host)?;
            let snapshot = match backend {
                Backend::Nftables => nftables(compiled, &mut builder, &labels, host)?,
                _ => Snapshot { text: review_text(&builder.artifacts(host)?), origins: BTreeMap::new() },
            };
            let name = format!("{}.{}", folder_name(&compiled.matrix.hosts[host].name)?, ending(backend));
            all.insert(name, snapshot);
        }
    }
    Ok(all)
}

fn nftables(
    compiled: &Compiled,
    builder: &mut NodeBuilder<'_>,
    labels: &Labels,
    host: Host,
) -> Result<Snapshot, Failure> {
    let plan = builder.nftables_plan(host)?;
    let (review, artifact_names) = for_review(&plan, labels);
    let header =
        [format!("The rules of node {}, kept by `netpolc snapshot`.", compiled.matrix.hosts[host].name)];
    let text = emit_named(&review, &header, &pod_names(&compiled.matrix));
    let behind =
        |(review, artifact): (String, String)| Some((review, plan.provenance.get(&artifact)?.clone()));
    let origins = artifact_names.into_iter().filter_map(behind).collect();
    Ok(Snapshot { text, origins })
}

/// The snapshot files of a directory, by name.
fn stored(dir: &Path, backends: &[Backend]) -> Result<BTreeMap<String, String>, Failure> {
    let mut files = BTreeMap::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(Failure::io(dir, &error)),
    };
    for entry in entries {
        let path = entry.map_err(|e| Failure::io(dir, &e))?.path();
        if path.extension().is_some_and(|e| backends.iter().any(|backend| e == ending(*backend))) {
            let text = fs::read_to_string(&path).map_err(|e| Failure::io(&path, &e))?;
            files.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text);
        }
    }
    Ok(files)
}

fn check(
    compiled: &Compiled,
    snapshots: &BTreeMap<String, Snapshot>,
    dir: &Path,
    args: &SnapshotArgs,
) -> Result<Answer, Failure> {
    let stored = stored(dir, &args.backend)?;
    let names: BTreeSet<&String> = stored.keys().chain(snapshots.keys()).collect();
    let mut report = String::new();
    for name in names {
        match (stored.get(name), snapshots.get(name)) {
            (Some(old), Some(new)) if *old == new.text => {}
            (Some(old), Some(new)) => report.push_str(&difference(compiled, name, old, new)),
            (None, _) => report.push_str(&format!("{name}: there is no such snapshot\n")),
            (_, None) => report.push_str(&format!("{name}: there is no such node any more\n")),
        }
    }
    if report.is_empty() {
        output::message(&format!("the rules of {} nodes are as they were accepted", snapshots.len()));
        return Ok(Answer::Yes);
    }
    output::result(&report);
    let paths: Vec<String> = args.paths.iter().map(|p| p.display().to_string()).collect();
    let names: Vec<String> = args
        .backend
        .iter()
        .filter_map(|backend| Some(backend.to_possible_value()?.get_name().to_owned()))
        .collect();
    output::message(&format!(
        "the rules changed; if that is meant, accept them: netpolc snapshot --backend {} --accept {} {}",
        names.join(","),
        dir.display(),
        paths.join(" ")
    ));
    Ok(Answer::No)
}

/// A unified diff, and below each hunk the policies behind the objects in it.
fn difference(compiled: &Compiled, name: &str, old: &str, new: &Snapshot) -> String {
    let diff = TextDiff::from_lines(old, &new.text);
    let mut out = format!("--- {name} (accepted)\n+++ {name} (now)\n");
    let new_lines: Vec<&str> = new.text.lines().collect();
    for hunk in diff.unified_diff().context_radius(3).iter_hunks() {
        // Writing to a String cannot fail.
        let _ = write!(out, "{hunk}");
        let mut behind: BTreeSet<Origin> = BTreeSet::new();
        for change in hunk.iter_changes().filter(|c| c.tag() != ChangeTag::Equal) {
            // A deleted line is looked up where it would stand now.
            let at =
                change.new_index().or_else(|| hunk.ops().first().map(|op| op.new_range().end)).unwrap_or(0);
            if let Some(origins) = enclosing(&new_lines, at).and_then(|object| new.origins.get(object)) {
                behind.extend(origins);
            }
        }
        for origin in behind {
            if let Some(data) = compiled.input.model.origin(origin) {
                let place = compiled.input.sources.place(data.at);
                let rule = if data.path.is_empty() { String::new() } else { format!(" {}", data.path) };
                let _ = writeln!(out, "  from {}{rule} at {place}", data.policy);
            }
        }
    }
    out
}

/// The name of the set, map or chain around a line.
fn enclosing<'t>(lines: &[&'t str], line: usize) -> Option<&'t str> {
    lines.iter().take(line + 1).rev().find_map(|text| {
        let mut words = text.split_whitespace();
        let kind = words.next()?;
        matches!(kind, "set" | "map" | "chain").then(|| words.next()).flatten()
    })
}

fn accept(
    snapshots: &BTreeMap<String, Snapshot>,
    dir: &Path,
    backends: &[Backend],
) -> Result<Answer, Failure> {
    fs::create_dir_all(dir).map_err(|e| Failure::io(dir, &e))?;
    let mut changed = 0;
    let old = stored(dir, backends)?;
    for (name, snapshot) in snapshots {
        if old.get(name) == Some(&snapshot.text) {
            continue;
        }
        changed += 1;
        let path = dir.join(name);
        // A temporary file is private unless told otherwise; what is under version control is not. The umask applies.
        let mut file = tempfile::Builder::new()
            .prefix(".netpolc-")
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(dir)
            .map_err(|e| Failure::io(dir, &e))?;
        file.write_all(snapshot.text.as_bytes()).map_err(|e| Failure::io(&path, &e))?;
        file.persist(&path).map_err(|e| Failure::io(&path, &e.error))?;
    }
    for name in old.keys().filter(|name| !snapshots.contains_key(*name)) {
        changed += 1;
        let path = dir.join(name);
        fs::remove_file(&path).map_err(|e| Failure::io(&path, &e))?;
    }
    output::message(&format!("{changed} of {} snapshots written to {}", snapshots.len(), dir.display()));
    Ok(Answer::Yes)
}
