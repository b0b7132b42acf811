//! Brings rules into a node, and notes what that takes.

use super::Error;
use super::designs::{Design, Ours, Rules};
use netpolc_sandbox::{HostId, Sandbox, find_program};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The node of every sandbox.
pub const NODE: HostId = HostId::Node(0);

/// Where the loader pins programs: a sandbox gives us an empty file system there.
const PINS: &str = "/run/netpolc/bpf";

/// How long the kernel gets to free what it frees later.
const REST: Duration = Duration::from_millis(100);

/// What one process took, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Took {
    /// From its start to its end.
    pub wall: f64,
    /// On processors, with the programs that it ran.
    pub cpu: f64,
}

/// What it took to bring rules into force.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Loaded {
    /// Into a kernel that has none.
    pub first: Took,
    /// After a change of one policy, and back.
    pub updates: Vec<Took>,
    /// By how many bytes the kernel's memory has grown after the first load.
    pub grown: f64,
    /// How many bytes the rules have by the kernel's own account, where it keeps one.
    pub own: Option<f64>,
    /// What the loader had to say.
    pub notes: Vec<String>,
}

/// Brings a design into force. The node has no rules, and nothing was pinned since its sandbox was built.
///
/// # Errors
/// [`Error::Refused`] if it cannot be loaded here.
pub fn install(sandbox: &Sandbox, design: &Design, loader: &Path) -> Result<Loaded, Error> {
    if let Rules::Loader(ours, _) = &design.rules {
        hint(sandbox, *ours)?;
    }
    thread::sleep(REST);
    let before = kernel_memory()?;
    let (first, said) = timed(sandbox, command(design, false, loader)?)?;
    thread::sleep(REST);
    let grown = kernel_memory()? - before;
    let own = match &design.rules {
        Rules::Loader(Ours::Ebpf | Ours::EbpfJudging, _) => pinned_maps(Path::new(PINS)),
        Rules::Loader(Ours::IptablesNft | Ours::IptablesLegacy, _) => ipsets(sandbox)?,
        _ => None,
    };
    check_variant(design, &said)?;
    let mut updates = Vec::new();
    if !matches!(design.rules, Rules::Script(_, None)) {
        updates.push(timed(sandbox, command(design, true, loader)?)?.0);
        let back = match &design.rules {
            // In the way of the update, which begins with a deletion.
            Rules::Script(fresh, _) => replace_naive(fresh)?,
            Rules::Loader(..) => command(design, false, loader)?,
        };
        updates.push(timed(sandbox, back)?.0);
    }
    if matches!(design.rules, Rules::Loader(Ours::EbpfJudging, _)) {
        judge_again(sandbox)?;
    }
    let notes = said.lines().map(|line| line.trim_start_matches("netpol-loader: ").to_owned()).collect();
    Ok(Loaded { first, updates, grown, own, notes })
}

/// What brings the rules into force, before or after the change of a policy.
fn command(design: &Design, changed: bool, loader: &Path) -> Result<Command, Error> {
    match &design.rules {
        Rules::Script(fresh, other) => nft(other.as_ref().filter(|_| changed).unwrap_or(fresh)),
        Rules::Loader(ours, bundles) => {
            let mut command = Command::new(loader);
            command.args(["apply", "--backend", &ours.backend().to_string()]);
            command.arg(&bundles[usize::from(changed)]);
            Ok(command)
        }
    }
}

fn nft(script: &Path) -> Result<Command, Error> {
    let mut command = Command::new(find_program("nft", "nftables")?);
    command.arg("-f").arg(script);
    Ok(command)
}

/// The first script of a design, as an update.
fn replace_naive(fresh: &Path) -> Result<Command, Error> {
    let path = fresh.with_extension("again.nft");
    fs::write(&path, format!("delete table ip naive\n{}", fs::read_to_string(fresh)?))?;
    nft(&path)
}

/// Runs a program in the node; its complaint if it fails, else what it took and what it wrote to standard error.
fn timed(sandbox: &Sandbox, mut command: Command) -> Result<(Took, String), Error> {
    command.stdin(Stdio::null());
    let run = || -> Result<(Took, Output), Error> {
        let (start, cpu) = (Instant::now(), children()?);
        let output = command.output()?;
        let wall = start.elapsed().as_secs_f64() * 1e3;
        Ok((Took { wall, cpu: children()? - cpu }, output))
    };
    let (took, output) = sandbox.in_namespace(NODE, run)??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.success() {
        true => Ok((took, said)),
        false => Err(Error::Refused(said.trim().chars().take(500).collect())),
    }
}

/// CPU time of all processes that this one has started and waited for, in milliseconds.
fn children() -> Result<f64, Error> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let ms = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 * 1e3 + t.tv_usec() as f64 / 1e3;
    Ok(ms(usage.user_time()) + ms(usage.system_time()))
}

/// Leaves the mark by which a kubelet says which variant of iptables a node uses, in a table that the rules need anyway.
fn hint(sandbox: &Sandbox, ours: Ours) -> Result<(), Error> {
    let Some(variant) = ours.variant() else { return Ok(()) };
    let program = find_program(variant, "iptables").map_err(|error| Error::Refused(error.to_string()))?;
    let mut command = Command::new(program);
    command.args(["-t", "filter", "-N", "KUBE-IPTABLES-HINT"]);
    timed(sandbox, command).map(drop)
}

/// Whether the loader used the variant that was meant.
fn check_variant(design: &Design, said: &str) -> Result<(), Error> {
    let Rules::Loader(ours, _) = &design.rules else { return Ok(()) };
    match ours.variant() {
        Some(variant) if !said.contains(variant) => {
            Err(Error::Refused(format!("the loader does not say that it uses {variant}: {}", said.trim())))
        }
        _ => Ok(()),
    }
}

/// Bytes of the kernel's memory that rules may be in: slabs (large allocations too), vmalloc without stacks of threads, and
/// memory of each CPU. Other processes change it as well, so this is for quiet machines and medians.
fn kernel_memory() -> io::Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
    };
    Ok(field("SUnreclaim") + field("VmallocUsed") + field("Percpu") - field("KernelStack"))
}

/// `memlock` of all maps pinned below a directory; `None` without bpftool, or if there is none.
fn pinned_maps(dir: &Path) -> Option<f64> {
    let program = find_program("bpftool", "bpftool").ok()?;
    let mut sum = None;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            // Programs and links are no maps: then there is an error and no such field.
            let mut command = Command::new(&program);
            let output = command.args(["-j", "map", "show", "pinned"]).arg(&path).output().ok()?;
            let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if let Some(bytes) = shown["bytes_memlock"].as_f64() {
                *sum.get_or_insert(0.0) += bytes;
            }
        }
    }
    sum
}

/// Puts the program back that judges every packet: `apply` has walked over the connections already.
fn judge_again(sandbox: &Sandbox) -> Result<(), Error> {
    let missing = || Error::Wrong(format!("there is no version of eBPF rules below {PINS}"));
    let mut dirs = vec![PathBuf::from(PINS)];
    let mut found = (None, None);
    while let Some(dir) = dirs.pop() {
        let slot = dir.join("slot");
        found.0 = found.0.or(slot.exists().then_some(slot));
        // Beside the program that lets established packets pass.
        found.1 = found.1.or(dir.join("settled").exists().then(|| dir.join("program")));
        let entries = fs::read_dir(&dir)?.flatten().map(|entry| entry.path());
        dirs.extend(entries.filter(|path| path.is_dir()));
    }
    let (Some(slot), Some(program)) = found else { return Err(missing()) };
    let bpftool = find_program("bpftool", "bpftool").map_err(|error| Error::Refused(error.to_string()))?;
    let mut command = Command::new(bpftool);
    command.args(["map", "update", "pinned"]).arg(slot).args(["key", "0", "0", "0", "0", "value", "pinned"]);
    command.arg(program);
    timed(sandbox, command).map(drop)
}

/// What ipset says that its sets need.
fn ipsets(sandbox: &Sandbox) -> Result<Option<f64>, Error> {
    let Ok(program) = find_program("ipset", "ipset") else { return Ok(None) };
    let list = || Command::new(program).args(["list", "-t"]).stdin(Stdio::null()).output();
    let output = sandbox.in_namespace(NODE, list)??;
    let text = String::from_utf8_lossy(&output.stdout);
    let sizes =
        text.lines().filter_map(|line| line.strip_prefix("Size in memory:")?.trim().parse::<f64>().ok());
    let sizes: Vec<f64> = sizes.collect();
    Ok(Some(sizes.iter().sum()).filter(|_| !sizes.is_empty()))
}
