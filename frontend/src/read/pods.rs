//! Objects of the core API group: Pods, Namespaces and Nodes. Only the fields that matter are decoded; there are many
//! such objects in a cluster dump, and their other fields are not ours to judge.

use super::decode::{Unknown, decode};
use super::report::Report;
use super::tree::Path;
use super::validate::{cidr, invalid, meta, names, ports, unsupported};
use crate::diagnostic::{INVALID, NAME_LABEL, TOO_MANY};
use crate::objects::{
    ContainerPort, Labels, MAX_ADDRESSES, NAMESPACE_NAME_LABEL, Namespace, Node, Phase, Pod,
};
use netpolc_ir::ports::Transport;
use serde::Deserialize;
use std::net::IpAddr;

/// What matters of `metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Meta {
    pub(super) name: String,
    generate_name: String,
    namespace: String,
    pub(super) labels: Labels,
    owner_references: Vec<Owner>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WrittenPod {
    metadata: Meta,
    spec: PodSpec,
    status: Option<PodStatus>,
}

/// What matters of a pod's `spec`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodSpec {
    node_name: Option<String>,
    host_network: bool,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    ports: Vec<WrittenPort>,
    restart_policy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WrittenPort {
    name: String,
    container_port: i32,
    protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WrittenNamespace {
    metadata: Meta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WrittenNode {
    metadata: Meta,
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Vec<NodeAddress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl Meta {
    /// The object's name.
    pub(super) fn own_name(&self, report: &Report<'_, '_>) -> String {
        meta::name(Some(&self.name), Some(&self.generate_name), report)
    }

    /// Kind and name of the object's controllers.
    pub(super) fn controllers(&self) -> Vec<(String, String)> {
        let owners = self.owner_references.iter().filter(|o| o.controller != Some(false));
        owners.map(|o| (o.kind.clone(), o.name.clone())).collect()
    }

    /// The object's namespace, if its kind has one.
    pub(super) fn own_namespace(&self) -> String {
        meta::namespace(Some(&self.namespace)).to_string()
    }
}

/// Reads a Pod; `None` if it has errors.
pub(super) fn pod(report: &Report<'_, '_>) -> Option<Pod> {
    let written: WrittenPod = decode(report, Unknown::Ignore)?;
    if report.wrong_types() {
        return None;
    }
    let (name, namespace) = (written.metadata.own_name(report), written.metadata.own_namespace());
    meta::check(&name, Some(&namespace), &written.metadata.labels, names::subdomain, report);
    let spec = Path::ROOT.key("spec");
    let node = node_name(written.spec.node_name.as_deref(), report, &spec);
    let ports = container_ports(&written.spec, report, &spec);
    let (phase, ips) = status(written.status.unwrap_or_default(), report);
    let owners = written.metadata.controllers();
    (report.errors() == 0).then(|| Pod {
        namespace,
        name,
        labels: written.metadata.labels,
        node,
        host_network: written.spec.host_network,
        phase,
        ips,
        ports,
        owners,
        at: report.at(&Path::ROOT),
    })
}

/// The pod of a workload's template.
pub(super) fn planned(
    namespace: String,
    name: String,
    labels: Labels,
    spec: PodSpec,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Pod {
    let node = node_name(spec.node_name.as_deref(), report, path);
    let ports = container_ports(&spec, report, path);
    Pod {
        namespace,
        name,
        labels,
        node,
        host_network: spec.host_network,
        phase: Phase::Planned,
        ips: Vec::new(),
        ports,
        owners: Vec::new(),
        at: report.at(&Path::ROOT),
    }
}

/// The node that a pod is bound to, checked as the API server does (`ValidateNodeName`): it names a folder of the output.
fn node_name(written: Option<&str>, report: &Report<'_, '_>, spec: &Path<'_>) -> Option<String> {
    let name = written.filter(|n| !n.is_empty())?;
    names::subdomain(name).iter().for_each(|why| invalid(report, &spec.key("nodeName"), name, why));
    Some(name.to_owned())
}

/// Ports of containers and of sidecars, which are init containers that always restart.
fn container_ports(spec: &PodSpec, report: &Report<'_, '_>, path: &Path<'_>) -> Vec<ContainerPort> {
    let mut out = Vec::new();
    let all = spec.containers.iter().enumerate().map(|c| ("containers", c));
    let inits = spec.init_containers.iter().enumerate().map(|c| ("initContainers", c));
    let sidecars = inits.filter(|(_, (_, c))| c.restart_policy == "Always");
    for (field, (i, container)) in all.chain(sidecars) {
        let list = path.key(field);
        let container_path = list.index(i);
        let ports = container_path.key("ports");
        out.extend(
            container
                .ports
                .iter()
                .enumerate()
                .filter_map(|(j, p)| container_port(p, report, &ports.index(j))),
        );
    }
    out
}

fn container_port(written: &WrittenPort, report: &Report<'_, '_>, path: &Path<'_>) -> Option<ContainerPort> {
    let transport = match &written.protocol {
        None => Some(Transport::Tcp),
        Some(name) => ports::transport(name, report, &path.key("protocol")),
    };
    let name = match written.name.as_str() {
        "" => None,
        name => Some(ports::name(name, report, &path.key("name"))?),
    };
    let port = ports::number(written.container_port, report, &path.key("containerPort"))?;
    Some(ContainerPort { name, transport: transport?, port })
}

fn status(written: PodStatus, report: &Report<'_, '_>) -> (Phase, Vec<IpAddr>) {
    let path = Path::ROOT.key("status");
    let list = path.key("podIPs");
    let mut ips: Vec<IpAddr> = Vec::new();
    not_too_many(written.pod_ips.len(), report, &list);
    for (i, entry) in written.pod_ips.iter().enumerate().take(MAX_ADDRESSES) {
        let item = list.index(i);
        if let Some(ip) = cidr::ip(&entry.ip, report, &item.key("ip"))
            && !ips.contains(&ip)
        {
            ips.push(ip);
        }
    }
    if !written.pod_ip.is_empty() {
        let at = path.key("podIP");
        let ip = cidr::ip(&written.pod_ip, report, &at);
        if let Some(ip) = ip.filter(|ip| !ips.contains(ip)) {
            if !ips.is_empty() {
                let message = format!("Invalid value: \"{ip}\": must be one of `podIPs`");
                report.error(INVALID, &at, message);
            }
            ips.push(ip);
        }
    }
    let phase = match written.phase.as_str() {
        "" if ips.is_empty() => Phase::Planned,
        "" | "Pending" | "Running" | "Unknown" => Phase::Live,
        "Succeeded" | "Failed" => Phase::Finished,
        other => {
            let known = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];
            unsupported(report, &path.key("phase"), other, &known);
            Phase::Live
        }
    };
    (phase, ips)
}

/// Reports more addresses than an object may have. More would also make it slow to look for one that is given twice.
fn not_too_many(len: usize, report: &Report<'_, '_>, list: &Path<'_>) {
    if len > MAX_ADDRESSES {
        report.error(TOO_MANY, list, format!("Too many: {len}: must have at most {MAX_ADDRESSES} items"));
    }
}

/// Reads a Namespace; `None` if it has errors.
pub(super) fn namespace(report: &Report<'_, '_>) -> Option<Namespace> {
    let written: WrittenNamespace = decode(report, Unknown::Ignore)?;
    if report.wrong_types() {
        return None;
    }
    let name = written.metadata.own_name(report);
    let mut labels = written.metadata.labels;
    meta::check(&name, None, &labels, names::label, report);
    if let Some(other) = labels.insert(NAMESPACE_NAME_LABEL.to_string(), name.clone()).filter(|l| *l != name)
    {
        let metadata = Path::ROOT.key("metadata");
        let at = metadata.key("labels");
        let message = format!("the API server sets this label to the name {name:?}, not {other:?}");
        report.warn(NAME_LABEL, &at.key(NAMESPACE_NAME_LABEL), message);
    }
    (report.errors() == 0).then(|| Namespace { name, labels, at: report.at(&Path::ROOT) })
}

/// Reads a Node, with those of its addresses that are of type ExternalIP only; `None` if it has errors.
pub(super) fn node(report: &Report<'_, '_>) -> Option<(Node, Vec<IpAddr>)> {
    let written: WrittenNode = decode(report, Unknown::Ignore)?;
    if report.wrong_types() {
        return None;
    }
    let name = written.metadata.own_name(report);
    meta::check(&name, None, &written.metadata.labels, names::subdomain, report);
    let (addrs, external) = node_addresses(&written.status.addresses, report);
    let spec = Path::ROOT.key("spec");
    let list = spec.key("podCIDRs");
    let mut pod_cidrs: Vec<_> = (written.spec.pod_cidrs.iter().enumerate())
        .filter_map(|(i, text)| cidr::cidr(text, report, &list.index(i)))
        .collect();
    if pod_cidrs.is_empty() && !written.spec.pod_cidr.is_empty() {
        pod_cidrs.extend(cidr::cidr(&written.spec.pod_cidr, report, &spec.key("podCIDR")));
    }
    let labels = written.metadata.labels;
    let node = Node { name, labels, addrs, pod_cidrs, at: report.at(&Path::ROOT) };
    (report.errors() == 0).then_some((node, external))
}

/// The addresses of a node in the order of its status, and those among them that are no InternalIP.
fn node_addresses(written: &[NodeAddress], report: &Report<'_, '_>) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let status = Path::ROOT.key("status");
    let list = status.key("addresses");
    let counts = |a: &&NodeAddress| matches!(a.kind.as_str(), "InternalIP" | "ExternalIP");
    not_too_many(written.iter().filter(counts).count(), report, &list);
    let (mut all, mut internal) = (Vec::new(), Vec::new());
    for (i, written) in written.iter().enumerate().filter(|(_, a)| counts(a)).take(MAX_ADDRESSES) {
        if let Some(addr) = cidr::ip(&written.address, report, &list.index(i).key("address")) {
            all.push(addr);
            internal.extend((written.kind == "InternalIP").then_some(addr));
        }
    }
    let external = all.iter().copied().filter(|addr| !internal.contains(addr)).collect();
    (all, external)
}
