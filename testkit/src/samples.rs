//! The samples: folders of YAML with flows whose verdicts were worked out by hand from the specification.
//!
//! `samples/<name>/` holds documents (`.yaml`, `.yml`, `.json`) and `flows.jsonl`, each line a flow with `"expect"`. Every
//! oracle, every backend and the kernel must agree with each line. What a sample guards stands on top of its
//! `policies.yaml`.

use netpolc_frontend::model::Model;
use netpolc_ir::addr::Family;
use netpolc_ir::ports::Protocol;
use netpolc_ir::unit::{Flow, Verdict};
use serde_json::Value;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file with the flows of a sample.
const FLOWS: &str = "flows.jsonl";

/// Calls a macro with the names of all samples (`_` for `-`), so that each can be a test of its own. A test holds the
/// list against the folders.
#[macro_export]
macro_rules! each_sample {
    ($with:ident) => {
        $with! {
            both_ends
            course
            course_default_deny
            dual_stack
            empty_and_missing
            end_port
            host_network
            ip_block
            ip_block_except_is_local
            ip_block_host_bits
            ipv6_only
            isolation_directions
            itself
            long_names
            named_ports
            named_ports_egress
            namespace_name_label
            namespace_scope
            narrow_block_inherits_ports
            one_node_and_three
            other_protocols
            overlapping_blocks
            own_node
            peer_selectors
            pods_that_count
            policies_add_up
            policy_types_absent
            protocols
            reading
            same_block_with_and_without_ports
            selector_operators
            service_addresses
            several_addresses
            shadowed_rules
            tiers
            tiers_v1alpha1
            workloads
        }
    };
}

/// A sample, read and resolved.
#[derive(Debug)]
pub struct Sample {
    /// The name of its folder.
    pub name: String,
    /// The cluster and its policies.
    pub model: Model,
    /// Its flows, in the order of the file; at least one.
    pub flows: Vec<Expected>,
}

/// A flow and its verdict by the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The line in `flows.jsonl`, from 1.
    pub line: usize,
    /// The line itself.
    pub text: String,
    /// The flow.
    pub flow: Flow,
    /// The verdict.
    pub expect: Verdict,
}

/// The top of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// The names of the folders below a folder of the repository, sorted.
///
/// # Errors
/// If it cannot be read, or has anything but folders.
pub fn folders(below: &str) -> Result<Vec<String>, String> {
    let dir = repository().join(below);
    let unreadable = |e: std::io::Error| format!("{}: {e}", dir.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !entry.path().is_dir() {
            return Err(format!("{below}/{name} is not a folder"));
        }
        names.push(name);
    }
    names.sort();
    Ok(names)
}

impl Sample {
    /// Reads a sample.
    ///
    /// # Errors
    /// If a document has errors, a flow cannot be understood, or there is no flow.
    pub fn load(name: &str) -> Result<Sample, String> {
        let dir = repository().join("samples").join(name);
        let model = crate::pipeline::model(&documents(&dir)?)?;
        let path = dir.join(FLOWS);
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let lines = text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty());
        let read = lines.map(|(i, text)| {
            let (flow, expect) =
                parse(text, &model).map_err(|e| format!("{}:{}: {e}", path.display(), i + 1))?;
            Ok(Expected { line: i + 1, text: text.to_owned(), flow, expect })
        });
        let flows = read.collect::<Result<Vec<Expected>, String>>()?;
        if flows.is_empty() {
            return Err(format!("{}: no flow", path.display()));
        }
        Ok(Sample { name: name.to_owned(), model, flows })
    }
}

/// The documents of a folder: name and text, sorted.
fn documents(dir: &Path) -> Result<Vec<(&'static str, String)>, String> {
    let unreadable = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| unreadable(dir, e))? {
        files.push(entry.map_err(|e| unreadable(dir, e))?.path());
    }
    files.retain(|path| path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json"));
    files.sort();
    let read = |path: &PathBuf| {
        fs::read_to_string(path).map(|text| ("sample", text)).map_err(|e| unreadable(path, e))
    };
    files.iter().map(read).collect()
}

/// One line of a file of flows.
fn parse(text: &str, model: &Model) -> Result<(Flow, Verdict), String> {
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let string = |key: &str| value[key].as_str().ok_or_else(|| format!("no text {key:?}"));
    let family = match value["family"].as_u64() {
        None => None,
        Some(4) => Some(Family::V4),
        Some(6) => Some(Family::V6),
        Some(other) => return Err(format!("family {other}")),
    };
    let (sources, targets) = (addresses(string("from")?, model)?, addresses(string("to")?, model)?);
    let fits = |a: &&IpAddr| family.is_none_or(|f| Family::of(**a) == f);
    let pair = sources.iter().filter(fits).find_map(|src| {
        let same = |dst: &&IpAddr| Family::of(**dst) == Family::of(*src);
        targets.iter().find(same).map(|dst| (*src, *dst))
    });
    let (src, dst) = pair.ok_or("the ends have no address family in common")?;
    let protocol = match (&value["protocol"], Family::of(src)) {
        (Value::Number(n), _) => {
            let number = n.as_u64().and_then(|n| u8::try_from(n).ok());
            Protocol::from_number(number.ok_or("the protocol is no number up to 255")?)
        }
        (Value::String(name), family) => match (name.as_str(), family) {
            ("TCP", _) => Protocol::TCP,
            ("UDP", _) => Protocol::UDP,
            ("SCTP", _) => Protocol::SCTP,
            ("ICMP", Family::V4) => Protocol::ICMP,
            ("ICMP", Family::V6) => Protocol::ICMPV6,
            _ => return Err(format!("unknown protocol {name}")),
        },
        (other, _) => return Err(format!("unknown protocol {other}")),
    };
    let port = match protocol {
        Protocol::Other(_) => 0,
        Protocol::Transport(_) => {
            let port = value["port"].as_u64().and_then(|n| u16::try_from(n).ok());
            port.ok_or("no port from 0 to 65535")?
        }
    };
    let expect = match string("expect")? {
        "allow" => Verdict::Allow,
        "deny" => Verdict::Deny,
        other => return Err(format!("expect {other:?}")),
    };
    Ok((Flow { src, dst, protocol, port }, expect))
}

/// The addresses of `namespace/pod`, `node/NAME` or an address.
fn addresses(end: &str, model: &Model) -> Result<Vec<IpAddr>, String> {
    if let Ok(addr) = end.parse() {
        return Ok(vec![addr]);
    }
    let pod = model.pod_named(end).map(|p| p.addrs.clone());
    let node = || end.strip_prefix("node/").and_then(|name| model.nodes.get(name)).map(|n| n.addrs.clone());
    pod.or_else(node).ok_or_else(|| format!("there is no {end}"))
}

/// The folder with the programs `netpolc`, `netpol-loader`, `netpol-agent` and `netpol-cni`, built from the sources as they are now by the cargo that
/// runs the tests. `NETPOLC_BIN_DIR` names a folder with programs to take as they are instead.
///
/// # Errors
/// If they cannot be built.
pub fn programs() -> Result<PathBuf, String> {
    if let Some(dir) = std::env::var_os("NETPOLC_BIN_DIR") {
        return Ok(PathBuf::from(dir));
    }
    // A test is `<target>/<profile>/deps/<name>`.
    let test = std::env::current_exe().map_err(|e| e.to_string())?;
    let dir = test.parent().and_then(Path::parent).ok_or("a test outside of a target directory")?;
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => return Err("a target directory without a profile".to_owned()),
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--bins"]);
    for package in ["netpolc", "netpol-loader", "netpol-agent", "netpol-cni"] {
        cargo.args(["--package", package]);
    }
    cargo.args(["--profile", profile, "--target-dir"]).args(dir.parent());
    let done = cargo.current_dir(repository()).output().map_err(|e| format!("cargo: {e}"))?;
    if !done.status.success() {
        return Err(format!("cargo build: {}", String::from_utf8_lossy(&done.stderr)));
    }
    Ok(dir.to_path_buf())
}
