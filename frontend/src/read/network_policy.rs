//! NetworkPolicy of `networking.k8s.io/v1`.

use super::decode::{Unknown, decode};
use super::report::Report;
use super::tree::Path;
use super::validate::selector::selector;
use super::validate::{cidr, invalid, meta, ports, unsupported};
use crate::diagnostic::{EMPTY_EGRESS, FORBIDDEN, INERT_RULES, INVALID, REQUIRED};
use crate::objects::{PeerKind, Policy, PolicyPeer, PolicyPort, PolicyRule, Selector};
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netpolc_ir::ports::Transport;

/// Reads the object of a report; `None` if it has errors.
pub(super) fn read(report: &Report<'_, '_>) -> Option<Policy> {
    let written: api::NetworkPolicy = decode(report, Unknown::Refuse)?;
    // A value of the wrong type was replaced by an empty one, about which nothing more can be said.
    if report.wrong_types() {
        return None;
    }
    meta::check_policy(&written.metadata, meta::Scope::Namespaced, report);
    let spec = written.spec.unwrap_or_default();
    let path = Path::ROOT.key("spec");
    let subject = selector(&spec.pod_selector.unwrap_or_default(), report, &path.key("podSelector"));
    let ingress = spec.ingress.unwrap_or_default();
    let egress = spec.egress.unwrap_or_default();
    let types = spec.policy_types.unwrap_or_default();
    let (has_ingress, has_egress) = directions(&types, ingress.len(), egress.len(), report, &path);

    let list = path.key("ingress");
    let ingress: Vec<PolicyRule> = (ingress.into_iter().enumerate())
        .map(|(i, rule)| self::rule(rule.from, rule.ports, "from", report, &list.index(i)))
        .collect();
    let list = path.key("egress");
    let egress: Vec<PolicyRule> = (egress.into_iter().enumerate())
        .map(|(i, rule)| self::rule(rule.to, rule.ports, "to", report, &list.index(i)))
        .collect();
    (report.errors() == 0).then(|| Policy {
        namespace: meta::namespace(written.metadata.namespace.as_deref()).to_string(),
        name: meta::name(written.metadata.name.as_deref(), written.metadata.generate_name.as_deref(), report),
        at: report.at(&Path::ROOT),
        subject,
        ingress: has_ingress.then_some(ingress),
        egress: has_egress.then_some(egress),
    })
}

/// Which directions the policy isolates, by `policyTypes` or, where that is missing, as the API server fills it in.
fn directions(
    types: &[String],
    ingress: usize,
    egress: usize,
    report: &Report<'_, '_>,
    spec: &Path<'_>,
) -> (bool, bool) {
    let path = spec.key("policyTypes");
    if types.is_empty() {
        if egress == 0 && spec.key("egress").is_list(report.root()) {
            let message = "an empty `egress` isolates nothing, since `policyTypes` does not list Egress";
            report.warn(EMPTY_EGRESS, &spec.key("egress"), message);
        }
        return (true, egress > 0);
    }
    if types.len() > 2 {
        report.error(INVALID, &path, "Invalid value: may not specify more than two policyTypes");
    }
    for (i, name) in types.iter().enumerate() {
        if name != "Ingress" && name != "Egress" {
            unsupported(report, &path.index(i), name, &["Ingress", "Egress"]);
        }
    }
    let listed = |name| types.iter().any(|t| t == name);
    let (has_ingress, has_egress) = (listed("Ingress"), listed("Egress"));
    for (rules, has, field, name) in
        [(ingress, has_ingress, "ingress", "Ingress"), (egress, has_egress, "egress", "Egress")]
    {
        if rules > 0 && !has {
            let message = format!("these rules have no effect: `policyTypes` does not list {name}");
            report.warn(INERT_RULES, &spec.key(field), message);
        }
    }
    (has_ingress, has_egress)
}

fn rule(
    peers: Option<Vec<api::NetworkPolicyPeer>>,
    ports: Option<Vec<api::NetworkPolicyPort>>,
    field: &str,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> PolicyRule {
    let ports = ports.filter(|p| !p.is_empty()).map(|written| {
        let list = path.key("ports");
        written.into_iter().enumerate().filter_map(|(i, p)| port(p, report, &list.index(i))).collect()
    });
    let list = path.key(field);
    let peers = list.nodes(report.root()).filter(|n| !n.is_empty()).map(|nodes| {
        let written = peers.unwrap_or_default().into_iter().zip(nodes).enumerate();
        written
            .filter_map(|(i, (peer, node))| {
                let kind = self::peer(peer, report, &list.index(i))?;
                Some(PolicyPeer { at: report.span(node), kind })
            })
            .collect()
    });
    PolicyRule { at: report.at(path), path: path.to_string(), peers, ports }
}

fn peer(written: api::NetworkPolicyPeer, report: &Report<'_, '_>, path: &Path<'_>) -> Option<PeerKind> {
    let read = |s: &_, field: &'static str| selector(s, report, &path.key(field));
    let pods = written.pod_selector.as_ref().map(|s| read(s, "podSelector"));
    let namespaces = written.namespace_selector.as_ref().map(|s| read(s, "namespaceSelector"));
    match (written.ip_block, namespaces, pods) {
        (None, None, None) => {
            report.error(REQUIRED, path, "Required value: must specify a peer");
            None
        }
        (None, namespaces, pods) => {
            Some(PeerKind::Pods { namespaces, pods: pods.unwrap_or_else(Selector::default) })
        }
        (Some(block), namespaces, pods) => {
            let except = block.except.unwrap_or_default();
            let read = cidr::block(&block.cidr, &except, report, &path.key("ipBlock"));
            if namespaces.is_some() || pods.is_some() {
                report.error(FORBIDDEN, path, "Forbidden: may not specify both ipBlock and another peer");
            }
            read.map(PeerKind::Block)
        }
    }
}

fn port(written: api::NetworkPolicyPort, report: &Report<'_, '_>, path: &Path<'_>) -> Option<PolicyPort> {
    let transport = match &written.protocol {
        None => Some(Transport::Tcp),
        Some(name) => ports::transport(name, report, &path.key("protocol")),
    };
    let at_end = path.key("endPort");
    let at = path.key("port");
    match (written.port, written.end_port) {
        (None, None) => Some(PolicyPort::Range { transport: transport?, lo: 0, hi: u16::MAX }),
        (None, Some(end)) => {
            let why = "may not be specified when `port` is not specified";
            report.error(INVALID, &at_end, format!("Invalid value: {end}: {why}"));
            None
        }
        (Some(IntOrString::Int(lo)), end) => {
            let first = ports::number(lo, report, &at);
            let last = match end {
                None => first,
                Some(hi) => {
                    if hi < lo {
                        let why = "must be greater than or equal to `port`";
                        report.error(INVALID, &at_end, format!("Invalid value: {hi}: {why}"));
                    }
                    ports::number(hi, report, &at_end)
                }
            };
            Some(PolicyPort::Range { transport: transport?, lo: first?, hi: last? })
        }
        (Some(IntOrString::String(name)), end) => {
            if let Some(end) = end {
                invalid(report, &at_end, &end.to_string(), "may not be specified when `port` is non-numeric");
            }
            let name = ports::name(&name, report, &at);
            Some(PolicyPort::Named { transport: Some(transport?), name: name? })
        }
    }
}
