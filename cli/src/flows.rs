//! Flows: one JSON object a line, names resolved to addresses.

use crate::failure::Failure;
use crate::input;
use netpolc_frontend::model::Model;
use netpolc_ir::addr::Family;
use netpolc_ir::ports::Protocol;
use netpolc_ir::unit::{Flow, Verdict};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

/// The longest file of flows that is read, in lines.
const MAX_FLOWS: usize = 10_000_000;

/// What names stand for.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pods: BTreeMap<String, Vec<IpAddr>>,
    nodes: BTreeMap<String, Vec<IpAddr>>,
}

impl Names {
    /// The pods and nodes of a model.
    pub(crate) fn of(model: &Model) -> Names {
        Names {
            pods: model.pods.iter().map(|p| (p.full_name(), p.addrs.clone())).collect(),
            nodes: model.nodes.iter().map(|(name, node)| (name.clone(), node.addrs.clone())).collect(),
        }
    }

    /// Adds a pod, unless its name is known.
    pub(crate) fn add_pod(&mut self, name: &str, addrs: &[IpAddr]) {
        self.pods.entry(name.to_owned()).or_insert_with(|| addrs.to_vec());
    }

    /// Adds a node, unless its name is known with an address.
    pub(crate) fn add_node(&mut self, name: &str, addrs: &[IpAddr]) {
        let known = self.nodes.entry(name.to_owned()).or_default();
        if known.is_empty() {
            *known = addrs.to_vec();
        }
    }

    /// The addresses of `namespace/pod`, `node/NAME` or an address.
    pub(crate) fn resolve(&self, end: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(addr) = end.parse::<IpAddr>() {
            return Ok(vec![addr]);
        }
        // A namespace can be called "node" as well: its pods come first.
        if let Some(addrs) = self.pods.get(end) {
            return Ok(addrs.clone());
        }
        if let Some(node) = end.strip_prefix("node/") {
            return match self.nodes.get(node) {
                Some(addrs) if addrs.is_empty() => Err(format!("node {node} has no address")),
                Some(addrs) => Ok(addrs.clone()),
                None => Err(format!("there is no node {node}")),
            };
        }
        if !end.contains('/') {
            return Err(format!("{end:?} is neither namespace/pod, node/NAME nor an address"));
        }
        Err(format!("there is no pod {end} with an address"))
    }

    /// The flow between two ends: the first pair of addresses of one family, in the order of the source's.
    pub(crate) fn flow(
        &self,
        from: &str,
        to: &str,
        protocol: &str,
        port: Option<u16>,
        family: Option<Family>,
    ) -> Result<Resolved, String> {
        let (sources, targets) = (self.resolve(from)?, self.resolve(to)?);
        let fits = |a: &&IpAddr| family.is_none_or(|f| Family::of(**a) == f);
        let pair = sources.iter().filter(fits).find_map(|src| {
            let same = |dst: &&IpAddr| Family::of(**dst) == Family::of(*src);
            targets.iter().find(same).map(|dst| (*src, *dst))
        });
        let Some((src, dst)) = pair else { return Ok(Resolved::NoCommonFamily) };
        let protocol = parse_protocol(protocol, Family::of(src))?;
        let port = match (protocol, port) {
            (Protocol::Transport(t), None) => return Err(format!("{} needs a port", t.name())),
            (Protocol::Transport(_), Some(port)) => port,
            (Protocol::Other(_), _) => 0,
        };
        Ok(Resolved::Flow(Flow { src, dst, protocol, port }))
    }
}

/// A flow whose names were resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// The flow.
    Flow(Flow),
    /// The ends have no address family in common: no packet can pass.
    NoCommonFamily,
}

/// `TCP`, `UDP`, `SCTP`, `ICMP` (of the family), `ICMPv6` or a number.
pub(crate) fn parse_protocol(text: &str, family: Family) -> Result<Protocol, String> {
    match text.to_ascii_uppercase().as_str() {
        "TCP" => Ok(Protocol::TCP),
        "UDP" => Ok(Protocol::UDP),
        "SCTP" => Ok(Protocol::SCTP),
        "ICMP" if family == Family::V4 => Ok(Protocol::ICMP),
        "ICMP" | "ICMPV6" => Ok(Protocol::ICMPV6),
        number => number.parse().map(Protocol::from_number).map_err(|_| format!("unknown protocol {text:?}")),
    }
}

/// One line of a file of flows.
#[derive(Debug)]
pub(crate) struct Line {
    /// Its number, from 1.
    pub(crate) number: usize,
    /// The object as written.
    pub(crate) object: Map<String, Value>,
    /// What it means.
    pub(crate) resolved: Resolved,
    /// The verdict that it expects.
    pub(crate) expect: Option<Verdict>,
}

/// Reads a file of flows. Every line must be right: the first that is not is the error, with its number.
pub(crate) fn read(path: &Path, names: &Names) -> Result<Vec<Line>, Failure> {
    let bytes = input::read_file(path)?;
    let text =
        String::from_utf8(bytes).map_err(|_| Failure::Unusable(format!("{}: not UTF-8", path.display())))?;
    let mut lines = Vec::new();
    for (i, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let fail = |message: String| Failure::Unusable(format!("{}:{}: {message}", path.display(), i + 1));
        if lines.len() >= MAX_FLOWS {
            return Err(fail(format!("more than {MAX_FLOWS} flows")));
        }
        lines.push(line(i + 1, text, names).map_err(fail)?);
    }
    Ok(lines)
}

fn line(number: usize, text: &str, names: &Names) -> Result<Line, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let Value::Object(object) = value else { return Err("not a JSON object".to_owned()) };
    let string = |key: &str| match object.get(key) {
        Some(Value::String(s)) => Ok(Some(s.as_str())),
        Some(_) => Err(format!("\"{key}\" is not a string")),
        None => Ok(None),
    };
    let from = string("from")?.ok_or("\"from\" is missing")?;
    let to = string("to")?.ok_or("\"to\" is missing")?;
    let protocol = match object.get("protocol") {
        Some(Value::Number(n)) => n.to_string(),
        _ => string("protocol")?.unwrap_or("TCP").to_owned(),
    };
    let port = match object.get("port") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let port = value.as_u64().and_then(|n| u16::try_from(n).ok());
            Some(port.ok_or("\"port\" is not a number from 0 to 65535")?)
        }
    };
    let family = match object.get("family").map(Value::as_u64) {
        None => None,
        Some(Some(4)) => Some(Family::V4),
        Some(Some(6)) => Some(Family::V6),
        Some(_) => return Err("\"family\" is neither 4 nor 6".to_owned()),
    };
    let expect = match string("expect")? {
        None => None,
        Some("allow") => Some(Verdict::Allow),
        Some("deny") => Some(Verdict::Deny),
        Some(other) => return Err(format!("\"expect\" is {other:?}, neither \"allow\" nor \"deny\"")),
    };
    let resolved = names.flow(from, to, &protocol, port, family)?;
    Ok(Line { number, object, resolved, expect })
}
