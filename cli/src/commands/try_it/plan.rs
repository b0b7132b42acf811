//! What is tried: the cluster as a sandbox, and the packets.

use crate::failure::Failure;
use crate::flows::{self, Names, Resolved};
use crate::pipeline::Compiled;
use netpolc_frontend::model::Model;
use netpolc_ir::addr::Family;
use netpolc_ir::ports::{Protocol, Transport};
use netpolc_ir::unit::{Flow, Verdict};
use netpolc_sandbox::{self as sandbox, HostId, NodeSpec, OutsideSpec, PodSpec, Probe, Spec};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

/// The most flows that are tried without `--flows`.
const MAX_FLOWS: usize = 4_000;

/// An address that is no pod and no node, to try what everyone outside of the cluster may do (TEST-NET-3, RFC 5737).
const OUTSIDE: &str = "203.0.113.77";

/// One packet that is sent.
#[derive(Debug, Clone)]
pub(super) struct Try {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) flow: Flow,
    pub(super) predicted: Verdict,
    /// What the file of flows expects.
    pub(super) expect: Option<Verdict>,
    pub(super) probe: Probe,
}

/// The whole trial.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) spec: Spec,
    pub(super) tries: Vec<Try>,
    /// What is not tried, and why; for people.
    pub(super) left_out: Vec<String>,
}

impl Trial {
    pub(super) fn new(compiled: &Compiled, flows: Option<&Path>) -> Result<Trial, Failure> {
        let model = &compiled.input.model;
        let mut left_out = Vec::new();
        let wanted = match flows {
            Some(path) => from_file(path, model, &mut left_out)?,
            None => all_pairs(model, &mut left_out),
        };
        let mut builder = SpecBuilder::new(compiled);
        for wanted in &wanted {
            builder.add(&wanted.flow);
        }
        let mut tries = Vec::new();
        for Wanted { from, to, flow, expect } in wanted {
            let Some(probe) = builder.probe(&flow) else {
                left_out.push(format!("{flow}: protocol {} cannot be sent from here", flow.protocol));
                continue;
            };
            let predicted = model.decide(&flow).verdict;
            tries.push(Try { from, to, flow, predicted, expect, probe });
        }
        if tries.is_empty() {
            return Err(Failure::Unusable(
                "there is nothing to try: no pod with an address, or no flow".to_owned(),
            ));
        }
        Ok(Trial { spec: builder.spec, tries, left_out })
    }
}

/// A flow that is to be tried.
struct Wanted {
    from: String,
    to: String,
    flow: Flow,
    expect: Option<Verdict>,
}

fn from_file(path: &Path, model: &Model, left_out: &mut Vec<String>) -> Result<Vec<Wanted>, Failure> {
    let mut wanted = Vec::new();
    for line in flows::read(path, &Names::of(model))? {
        let name = |key: &str| line.object.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        match line.resolved {
            Resolved::Flow(flow) => {
                wanted.push(Wanted { from: name("from"), to: name("to"), flow, expect: line.expect });
            }
            Resolved::NoCommonFamily => {
                left_out.push(format!("{} -> {}: no common address family", name("from"), name("to")));
            }
        }
    }
    Ok(wanted)
}

/// All pairs of pods, and an address outside, on the ports that the destination declares and that policies name.
fn all_pairs(model: &Model, left_out: &mut Vec<String>) -> Vec<Wanted> {
    let named = named_ports(model);
    let mut ends: Vec<(String, Vec<IpAddr>)> =
        model.pods.iter().filter(|p| !p.host_network).map(|p| (p.full_name(), p.addrs.clone())).collect();
    if let Ok(outside) = OUTSIDE.parse::<IpAddr>() {
        ends.push((OUTSIDE.to_owned(), vec![outside]));
    }
    let mut wanted = Vec::new();
    for (from, sources) in &ends {
        for (to, targets) in &ends {
            let ports: BTreeSet<(Transport, u16)> = match model.pod_named(to) {
                Some(pod) => {
                    pod.ports.iter().map(|p| (p.transport, p.port)).chain(named.iter().copied()).collect()
                }
                None if from == to => continue,
                None => named.clone(),
            };
            for src in sources {
                for dst in targets.iter().filter(|d| Family::of(**d) == Family::of(*src)) {
                    for &(transport, port) in &ports {
                        let protocol = Protocol::Transport(transport);
                        let flow = Flow { src: *src, dst: *dst, protocol, port };
                        wanted.push(Wanted { from: from.clone(), to: to.clone(), flow, expect: None });
                    }
                }
            }
        }
    }
    if wanted.len() > MAX_FLOWS {
        let step = wanted.len().div_ceil(MAX_FLOWS);
        left_out.push(format!("of {} flows every {step}th is tried; name others with --flows", wanted.len()));
        wanted = wanted.into_iter().step_by(step).collect();
    }
    wanted
}

/// The ports that policies name: both ends of a range and their neighbours, as far as a packet can have them.
fn named_ports(model: &Model) -> BTreeSet<(Transport, u16)> {
    let bounds = netpolc_frontend::reference::SetReference::new(model);
    let bounds = netpolc_ir::proof::Reference::constants(&bounds);
    let mut ports = BTreeSet::new();
    for transport in Transport::ALL {
        // Each bound is the first port of a stretch, so all stretches are tried.
        ports.extend(bounds.ports[transport as usize].iter().filter(|p| **p > 0).map(|p| (transport, *p)));
    }
    if ports.is_empty() {
        ports.insert((Transport::Tcp, 80));
    }
    ports
}

/// The cluster as namespaces, with a listener wherever a packet is sent.
struct SpecBuilder {
    spec: Spec,
    hosts: BTreeMap<IpAddr, HostId>,
}

impl SpecBuilder {
    fn new(compiled: &Compiled) -> SpecBuilder {
        let mut builder = SpecBuilder { spec: Spec::default(), hosts: BTreeMap::new() };
        let matrix = &compiled.matrix;
        for (i, host) in matrix.hosts.values().enumerate() {
            builder.spec.nodes.push(NodeSpec {
                name: host.name.clone(),
                addrs: host.addrs.clone(),
                listen: Vec::new(),
            });
            builder.hosts.extend(host.addrs.iter().map(|a| (*a, HostId::Node(i))));
        }
        for (i, endpoint) in matrix.endpoints.values().enumerate() {
            let addrs: Vec<IpAddr> = endpoint.addrs.iter().map(|(a, _)| *a).collect();
            builder.hosts.extend(addrs.iter().map(|a| (*a, HostId::Pod(i))));
            let node = endpoint.host.as_u32() as usize;
            builder.spec.pods.push(PodSpec { name: endpoint.name.clone(), node, addrs, listen: Vec::new() });
        }
        builder
    }

    fn host(&mut self, addr: IpAddr) -> HostId {
        if let Some(host) = self.hosts.get(&addr) {
            return *host;
        }
        let host = HostId::Outside(self.spec.outside.len());
        self.spec.outside.push(OutsideSpec { addr, listen: Vec::new() });
        self.hosts.insert(addr, host);
        host
    }

    fn add(&mut self, flow: &Flow) {
        self.host(flow.src);
        let host = self.host(flow.dst);
        let Some(protocol) = sendable(flow.protocol).filter(|p| *p != sandbox::Protocol::Icmp) else {
            return;
        };
        let listen = match host {
            HostId::Node(i) => &mut self.spec.nodes[i].listen,
            HostId::Pod(i) => &mut self.spec.pods[i].listen,
            HostId::Outside(i) => &mut self.spec.outside[i].listen,
        };
        if !listen.contains(&(protocol, flow.port)) {
            listen.push((protocol, flow.port));
        }
    }

    fn probe(&mut self, flow: &Flow) -> Option<Probe> {
        let protocol = sendable(flow.protocol)?;
        Some(Probe {
            from: self.host(flow.src),
            from_addr: Some(flow.src),
            to: flow.dst,
            protocol,
            port: flow.port,
        })
    }
}

fn sendable(protocol: Protocol) -> Option<sandbox::Protocol> {
    match protocol {
        Protocol::TCP => Some(sandbox::Protocol::Tcp),
        Protocol::UDP => Some(sandbox::Protocol::Udp),
        Protocol::SCTP => Some(sandbox::Protocol::Sctp),
        Protocol::ICMP | Protocol::ICMPV6 => Some(sandbox::Protocol::Icmp),
        Protocol::Other(_) => None,
    }
}
