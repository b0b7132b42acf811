//! `netpolc try`: the rules in a real kernel, with real packets.
//!
//! The cluster is built from network namespaces that belong to this process alone, a control run without rules shows
//! that everything reaches everything, the real loader applies the bundles, and what the packets do is compared with
//! what the model predicts.

mod plan;
mod report;

use super::nodes::{builder, labels};
use crate::args::{Backend, TryArgs};
use crate::failure::{Answer, Failure};
use crate::output;
use crate::pipeline::{Compiled, Input, compile};
use netpolc_sandbox::{DEFAULT_TIMEOUT, Outcome, Probe, Sandbox, enter_user_namespace, find_program};
use plan::Trial;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a packet that should arrive, and did not, is waited for once more: these machines may be busy.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the command.
pub(crate) fn run(args: &TryArgs) -> Result<Answer, Failure> {
    // The process must be single-threaded for this, so it comes first.
    enter_user_namespace().map_err(|e| Failure::Unusable(e.to_string()))?;
    let loader = find_loader()?;
    let compiled = compile(Input::sound(&args.paths)?)?;
    let trial = Trial::new(&compiled, args.flows.as_deref())?;
    let dir = BundleDir::make()?;
    write_bundles(&compiled, args.backend, dir.path())?;
    output::progress(&format!("building {} pods", trial.spec.pods.len()));
    let sandbox = Sandbox::build(&trial.spec).map_err(sandbox_failure)?;
    output::progress(&format!("control run: {} flows without rules", trial.tries.len()));
    let probes: Vec<Probe> = trial.tries.iter().map(|t| t.probe).collect();
    let control = patient(&sandbox, &probes, |_| true);
    output::progress("applying the rules");
    for (node, host) in compiled.matrix.hosts.values().enumerate() {
        apply(&sandbox, node, &loader, args.backend, &dir.path().join(&host.name))?;
    }
    drop(dir);
    output::progress(&format!("sending {} flows", trial.tries.len()));
    let observed =
        patient(&sandbox, &probes, |i| trial.tries[i].predicted == netpolc_ir::unit::Verdict::Allow);
    output::progress_done();
    report::report(&trial, &control, &observed, args.format)
}

fn sandbox_failure(error: netpolc_sandbox::Error) -> Failure {
    Failure::Unusable(format!("the sandbox cannot be built: {error}"))
}

/// Sends probes; those that should arrive and did not are sent once more, with more patience.
fn patient(sandbox: &Sandbox, probes: &[Probe], should_arrive: impl Fn(usize) -> bool) -> Vec<Outcome> {
    let mut outcomes = sandbox.probe_all(probes, DEFAULT_TIMEOUT);
    let again: Vec<usize> =
        (0..probes.len()).filter(|&i| should_arrive(i) && outcomes[i].arrived() != Some(true)).collect();
    let probes: Vec<Probe> = again.iter().map(|&i| probes[i]).collect();
    for (i, outcome) in again.into_iter().zip(sandbox.probe_all(&probes, PATIENCE)) {
        outcomes[i] = outcome;
    }
    outcomes
}

/// The loader beside this program, or else in `PATH`.
fn find_loader() -> Result<PathBuf, Failure> {
    let beside =
        std::env::current_exe().ok().map(|exe| exe.with_file_name("netpol-loader")).filter(|p| p.is_file());
    match beside {
        Some(path) => Ok(path),
        None => find_program("netpol-loader", "netpolc").map_err(|e| Failure::Unusable(e.to_string())),
    }
}

fn write_bundles(compiled: &Compiled, backend: Backend, dir: &Path) -> Result<(), Failure> {
    let labels = labels(compiled, true);
    let mut builder = builder(compiled, &labels, &[backend], None);
    for (host, data) in compiled.matrix.hosts.iter() {
        super::build::write_bundle(dir, &data.name, &builder.build(host)?)?;
    }
    Ok(())
}

fn apply(
    sandbox: &Sandbox,
    node: usize,
    loader: &Path,
    backend: Backend,
    bundle: &Path,
) -> Result<(), Failure> {
    let backend = netpolc_bundle::Backend::from(backend).to_string();
    let mut command = Command::new(loader);
    command.args(["apply", "--backend", &backend]).arg(bundle);
    let done = sandbox.run_in_node(node, command, b"").map_err(sandbox_failure)?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(Failure::Unusable(format!("netpol-loader apply {}: {}", bundle.display(), said.trim())))
}

/// Where the bundles are while they are applied.
enum BundleDir {
    /// A file system that this process alone sees, and that goes with it, however it ends.
    Private(PathBuf),
    /// Where the kernel does not let us have that.
    Temporary(tempfile::TempDir),
}

impl BundleDir {
    fn make() -> Result<BundleDir, Failure> {
        let path = PathBuf::from("/run/netpolc-try");
        if mount_private_run().is_ok() && fs::create_dir(&path).is_ok() {
            return Ok(BundleDir::Private(path));
        }
        let dir = tempfile::Builder::new().prefix("netpolc-try-").tempdir();
        dir.map(BundleDir::Temporary).map_err(|e| Failure::Unusable(format!("no temporary directory: {e}")))
    }

    fn path(&self) -> &Path {
        match self {
            BundleDir::Private(path) => path,
            BundleDir::Temporary(dir) => dir.path(),
        }
    }
}

/// Mounts an empty file system over `/run`, in a mount namespace of our own.
fn mount_private_run() -> nix::Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, none)
}
