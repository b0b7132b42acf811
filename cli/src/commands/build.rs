//! `netpolc build`.

use super::nodes::{builder, choose, labels, pod_names};
use crate::args::{Backend, BuildArgs, Stage};
use crate::failure::{Answer, Failure};
use crate::output;
use crate::pipeline::{Compiled, Input, compile};
use netpolc_ir::passes::Cost;
use netpolc_ir::proof::Proof;
use netpolc_ir::text;
use netpolc_ir::unit::Host;
use netpolc_nftables::emit::emit_named;
use netpolc_node::Built;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Runs the command.
pub(crate) fn run(args: &BuildArgs) -> Result<Answer, Failure> {
    let started = Instant::now();
    let input = Input::load(&args.paths)?;
    input.report_all();
    if input.has_errors() {
        return Err(Failure::Errors);
    }
    let compiled = compile(input)?;
    let hosts = choose(&compiled.matrix, &args.node)?;
    if let Some(stage) = args.emit {
        output::result(&print_stage(&compiled, &hosts, stage)?);
        return Ok(Answer::Yes);
    }
    let Some(out) = &args.out else { return Err(Failure::Unusable("--out is missing".to_owned())) };
    let staging = Staging::beside(out)?;
    let compiled_in = started.elapsed();
    let summary = build_nodes(&compiled, &hosts, &args.backend, staging.path())?;
    staging.replace(out)?;
    if args.stats {
        output::message(&stats(&compiled));
        summary.notes.iter().for_each(|note| output::message(note));
    }
    let model = &compiled.input.model;
    let policies = model.policies.len() + model.cluster_policies.len();
    output::message(&format!(
        "{}, {}, {} -> {} in {} ({}; proven with {}; compiled in {:.2?}, nodes in {:.2?})",
        output::count(policies, "policy"),
        output::count(model.pods.len(), "pod"),
        output::count(compiled.matrix.classes.len(), "class"),
        output::count(hosts.len(), "bundle"),
        out.display(),
        backend_names(&args.backend),
        output::count((summary.proof.comparisons + summary.proof.packets) as usize, "comparison"),
        compiled_in,
        started.elapsed() - compiled_in,
    ));
    Ok(Answer::Yes)
}

#[derive(Default)]
struct Summary {
    proof: Proof,
    notes: Vec<String>,
}

impl Summary {
    fn add(&mut self, proof: Proof, notes: Vec<String>) {
        self.proof += proof;
        self.notes.extend(notes);
    }
}

fn backend_names(backends: &[Backend]) -> String {
    let names: BTreeSet<String> =
        backends.iter().map(|b| netpolc_bundle::Backend::from(*b).to_string()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// Builds all nodes into a directory, on as many threads as the machine has cores. What nodes share is made once a
/// thread.
fn build_nodes(
    compiled: &Compiled,
    hosts: &[Host],
    backends: &[Backend],
    dir: &Path,
) -> Result<Summary, Failure> {
    let labels = labels(compiled, true);
    let policies = compiled.input.written.list();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let worker = || -> Result<Summary, Failure> {
        let mut builder = builder(compiled, &labels, backends, Some(&policies));
        let mut summary = Summary::default();
        while let Some(&host) = hosts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let built = builder.build(host)?;
            write_bundle(dir, &compiled.matrix.hosts[host].name, &built)?;
            built.proofs.into_values().for_each(|proof| summary.add(proof, Vec::new()));
            summary.notes.extend(built.notes);
            output::progress(&format!(
                "{} of {} nodes",
                done.fetch_add(1, Ordering::Relaxed) + 1,
                hosts.len()
            ));
        }
        Ok(summary)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(hosts.len().max(1));
    let results: Vec<Result<Summary, Failure>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let join = |h: std::thread::ScopedJoinHandle<'_, _>| {
            h.join().unwrap_or_else(|_| Err(Failure::Bug("a worker panicked".to_owned())))
        };
        handles.into_iter().map(join).collect()
    });
    output::progress_done();
    let mut total = Summary::default();
    for result in results {
        let Summary { proof, notes } = result?;
        total.add(proof, notes);
    }
    Ok(total)
}

pub(super) fn write_bundle(dir: &Path, node: &str, built: &Built) -> Result<(), Failure> {
    let folder = dir.join(folder_name(node)?);
    let files = built.bundle.to_files().map_err(|e| Failure::Unsupported(e.to_string()))?;
    fs::create_dir(&folder).map_err(|e| Failure::io(&folder, &e))?;
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|e| Failure::io(&path, &e))?;
    }
    Ok(())
}

/// The name of a node as that of one folder or file. The front end refuses names that are more than that; should one
/// slip through, nothing is written in a place that nobody asked for.
pub(super) fn folder_name(node: &str) -> Result<&str, Failure> {
    if node.is_empty() || node == "." || node == ".." || node.contains(['/', '\0']) {
        return Err(Failure::Bug(format!("the name {node:?} of a node is no name of a folder")));
    }
    Ok(node)
}

fn print_stage(compiled: &Compiled, hosts: &[Host], stage: Stage) -> Result<String, Failure> {
    match stage {
        Stage::Model => Ok(format!("{:#?}\n", compiled.input.model)),
        Stage::Ir => Ok(text::write(&compiled.unit)),
        Stage::Optimized => Ok(text::write(&compiled.optimized)),
        Stage::Matrix => Ok(text::write_matrix(&compiled.matrix)),
        Stage::Nftables => {
            let labels = labels(compiled, true);
            let mut builder = builder(compiled, &labels, &[Backend::Nftables], None);
            let mut out = String::new();
            for &host in hosts {
                let plan = builder.nftables_plan(host)?;
                let header = [format!("node {}", compiled.matrix.hosts[host].name)];
                out.push_str(&emit_named(&plan.ruleset, &header, &pod_names(&compiled.matrix)));
            }
            Ok(out)
        }
        Stage::Iptables => artifacts(compiled, hosts, Backend::Iptables),
        Stage::Ebpf => artifacts(compiled, hosts, Backend::Ebpf),
    }
}

fn artifacts(compiled: &Compiled, hosts: &[Host], backend: Backend) -> Result<String, Failure> {
    let labels = labels(compiled, true);
    let mut builder = builder(compiled, &labels, &[backend], None);
    let mut out = String::new();
    for &host in hosts {
        let _ = writeln!(out, "# node {}", compiled.matrix.hosts[host].name);
        out.push_str(&review_text(&builder.artifacts(host)?));
    }
    Ok(out)
}

/// Artifacts for iptables and eBPF as people review them: what differs between nodes and policies. (The programs are the
/// same for all, and their disassembly stands in `docs/ebpf.md`.)
pub(super) fn review_text(artifacts: &netpolc_bundle::Artifacts) -> String {
    let mut out = String::new();
    if let Some(files) = &artifacts.iptables {
        for (name, text) in [("ipset", &files.sets), ("iptables", &files.v4), ("ip6tables", &files.v6)] {
            let _ = writeln!(out, "# {name}");
            text.lines().filter(|line| !line.starts_with('#')).for_each(|line| {
                let _ = writeln!(out, "{line}");
            });
        }
    }
    if let Some(files) = &artifacts.ebpf {
        out.push_str(&files.maps);
    }
    out
}

/// How long each stage took, and what each pass gained.
fn stats(compiled: &Compiled) -> String {
    let mut out = String::from("stage            time\n");
    for (stage, took) in &compiled.input.took {
        let _ = writeln!(out, "{stage:<14} {:>6.1} ms", took.as_secs_f64() * 1e3);
    }
    out.push_str("\npass            rules  isolations  classes   sets  port lists  entries\n");
    let mut line = |name: &str, cost: &Cost| {
        let Cost { classes, sets, ports, isolations, rules, entries } = cost;
        let _ = writeln!(
            out,
            "{name:<14} {rules:>6}  {isolations:>10}  {classes:>7} {sets:>6}  {ports:>10}  {entries:>7}"
        );
    };
    if let Some(first) = compiled.passes.first() {
        line("(lowered)", &first.before);
    }
    for pass in compiled.passes.iter().filter(|p| p.before != p.after) {
        line(pass.name, &pass.after);
    }
    out
}

/// A directory beside the output that takes its place when everything is there.
struct Staging {
    dir: tempfile::TempDir,
}

impl Staging {
    fn beside(out: &Path) -> Result<Staging, Failure> {
        if let Some(foreign) = foreign_entry(out)? {
            let message = format!("{} holds {foreign}, which netpolc did not make", out.display());
            return Err(Failure::Unusable(format!("{message}: name a directory of its own with --out")));
        }
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&parent).map_err(|e| Failure::io(&parent, &e))?;
        let dir = tempfile::Builder::new()
            .prefix(".netpolc-")
            .tempdir_in(&parent)
            .map_err(|e| Failure::io(&parent, &e))?;
        Ok(Staging { dir })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Puts the new directory in the place of the old one in one step, so that a reader finds either.
    fn replace(self, out: &Path) -> Result<(), Failure> {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        use std::os::unix::fs::PermissionsExt;
        let (staged, fail) = (self.dir.path().to_owned(), |e: std::io::Error| Failure::io(out, &e));
        let mode = fs::metadata(out).map_or(0o755, |m| m.permissions().mode() & 0o7777);
        fs::set_permissions(&staged, fs::Permissions::from_mode(mode)).map_err(fail)?;
        if out.exists() {
            // The temporary directory now is the old output and goes when it is dropped.
            return renameat2(AT_FDCWD, &staged, AT_FDCWD, out, RenameFlags::RENAME_EXCHANGE)
                .map_err(|e| fail(e.into()));
        }
        fs::rename(&staged, out).map_err(fail)?;
        // Nothing is left to clean up.
        let _ = self.dir.keep();
        Ok(())
    }
}

/// Something in the output directory that is no bundle of ours. It would be lost.
fn foreign_entry(out: &Path) -> Result<Option<String>, Failure> {
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::io(out, &error)),
    };
    for entry in entries {
        let path = entry.map_err(|e| Failure::io(out, &e))?.path();
        if !path.join(netpolc_bundle::MANIFEST).is_file() {
            return Ok(Some(path.file_name().unwrap_or_default().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::folder_name;

    #[test]
    fn a_name_that_leads_elsewhere_is_no_folder() {
        for name in ["", ".", "..", "../x", "/x", "a/b", "a\0"] {
            assert!(folder_name(name).is_err(), "{name:?}");
        }
        for name in ["n1", "a.b", "..a"] {
            assert!(folder_name(name).is_ok(), "{name:?}");
        }
    }
}
