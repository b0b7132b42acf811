//! ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2`) and its forerunners, AdminNetworkPolicy and
//! BaselineAdminNetworkPolicy (`v1alpha1`), validated as their CRDs do.

mod peers;
mod protocols;
mod types;

use super::decode::{Unknown, decode};
use super::report::Report;
use super::tree::Path;
use super::validate::selector::selector;
use super::validate::{invalid, meta, unsupported};
use crate::diagnostic::{INVALID, REQUIRED, TOO_MANY};
use crate::objects::{ClusterPolicy, ClusterRule, Selector};
use netpolc_ir::unit::{Action, Direction, Tier};
use types::{Namespaced, Rule, Subject, Written};

/// Largest priority (CRD: `spec.priority`).
const MAX_PRIORITY: i32 = 1000;

/// Longest name of a rule (CRD: `spec.ingress[].name`).
const MAX_RULE_NAME: usize = 100;

/// The three kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// ClusterNetworkPolicy.
    Cluster,
    /// AdminNetworkPolicy.
    Admin,
    /// BaselineAdminNetworkPolicy.
    Baseline,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Cluster => "ClusterNetworkPolicy",
            Kind::Admin => "AdminNetworkPolicy",
            Kind::Baseline => "BaselineAdminNetworkPolicy",
        }
    }

    /// Most items of any list: rules, peers, protocols.
    fn max_items(self) -> usize {
        match self {
            Kind::Cluster => 25,
            Kind::Admin | Kind::Baseline => 100,
        }
    }
}

/// Reads the object of a report; `None` if it has errors.
pub(super) fn read(kind: Kind, report: &Report<'_, '_>) -> Option<ClusterPolicy> {
    let written: Written = match kind {
        Kind::Cluster => decode::<types::Cluster>(report, Unknown::Refuse)?.into(),
        Kind::Admin => decode::<types::Admin>(report, Unknown::Refuse)?.into(),
        Kind::Baseline => decode::<types::Baseline>(report, Unknown::Refuse)?.into(),
    };
    if report.wrong_types() {
        return None;
    }
    meta::check_policy(&written.metadata, meta::Scope::Cluster, report);
    let name =
        meta::name(written.metadata.name.as_deref(), written.metadata.generate_name.as_deref(), report);
    if kind == Kind::Baseline && name != "default" {
        let metadata = Path::ROOT.key("metadata");
        let why = "Only one baseline admin network policy with metadata.name=\"default\" can be created in the cluster";
        invalid(report, &metadata.key("name"), &name, why);
    }
    let path = Path::ROOT.key("spec");
    let spec = written.spec;
    let tier = tier(kind, spec.tier.as_deref(), report, &path.key("tier"));
    let priority = priority(kind, spec.priority, report, &path.key("priority"));
    let subject = subject(kind, spec.subject, report, &path.key("subject"));
    let ingress = rules(kind, spec.ingress, Direction::Ingress, report, &path.key("ingress"));
    let egress = rules(kind, spec.egress, Direction::Egress, report, &path.key("egress"));
    if report.errors() > 0 {
        return None;
    }
    let at = report.at(&Path::ROOT);
    let (tier, priority, subject) = (tier?, priority?, subject?);
    Some(ClusterPolicy { kind: kind.name().to_string(), name, at, tier, priority, subject, ingress, egress })
}

/// Reports a field that must be there.
fn required(report: &Report<'_, '_>, path: &Path<'_>) {
    report.error(REQUIRED, path, "Required value");
}

/// Checks that exactly one field of an object is set.
fn one_of(set: usize, report: &Report<'_, '_>, path: &Path<'_>) -> bool {
    match set {
        0 => {
            let message = format!("Invalid value: 0: {path} in body should have at least 1 properties");
            report.error(TOO_MANY, path, message);
        }
        1 => {}
        n => report.error(TOO_MANY, path, format!("Too many: {n}: must have at most 1 item")),
    }
    set == 1
}

/// Checks the length of a list.
fn at_most(max: usize, len: usize, report: &Report<'_, '_>, path: &Path<'_>) {
    if len > max {
        report.error(TOO_MANY, path, format!("Too many: {len}: must have at most {max} items"));
    }
}

/// Checks that a list that is there is not empty.
fn at_least_one(len: usize, report: &Report<'_, '_>, path: &Path<'_>) {
    if len == 0 {
        let message = format!("Invalid value: 0: {path} in body should have at least 1 items");
        report.error(TOO_MANY, path, message);
    }
}

fn tier(kind: Kind, written: Option<&str>, report: &Report<'_, '_>, path: &Path<'_>) -> Option<Tier> {
    match (kind, written) {
        (Kind::Admin, _) => Some(Tier::Admin),
        (Kind::Baseline, _) => Some(Tier::Baseline),
        (Kind::Cluster, Some("Admin")) => Some(Tier::Admin),
        (Kind::Cluster, Some("Baseline")) => Some(Tier::Baseline),
        (Kind::Cluster, Some(other)) => {
            unsupported(report, path, other, &["Admin", "Baseline"]);
            None
        }
        (Kind::Cluster, None) => {
            required(report, path);
            None
        }
    }
}

fn priority(kind: Kind, written: Option<i32>, report: &Report<'_, '_>, path: &Path<'_>) -> Option<u32> {
    let Some(n) = written else {
        if kind == Kind::Baseline {
            return Some(0);
        }
        required(report, path);
        return None;
    };
    if (0..=MAX_PRIORITY).contains(&n) {
        return u32::try_from(n).ok();
    }
    let (bound, limit) = if n < 0 { ("greater", 0) } else { ("less", MAX_PRIORITY) };
    let message = format!("Invalid value: {n}: {path} in body should be {bound} than or equal to {limit}");
    report.error(INVALID, path, message);
    None
}

fn subject(
    kind: Kind,
    written: Option<Subject>,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Option<(Selector, Selector)> {
    let Some(written) = written else {
        required(report, path);
        return None;
    };
    let set = usize::from(written.namespaces.is_some()) + usize::from(written.pods.is_some());
    if !one_of(set, report, path) {
        return None;
    }
    match (written.namespaces, written.pods) {
        (Some(labels), _) => Some((selector(&labels, report, &path.key("namespaces")), Selector::default())),
        (None, Some(pods)) => namespaced(kind, pods, report, &path.key("pods")),
        (None, None) => None,
    }
}

/// Pods by labels of their namespace and their own. Only the older kinds demand that both are written.
fn namespaced(
    kind: Kind,
    written: Namespaced,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Option<(Selector, Selector)> {
    let (of_namespace, of_pod) = (path.key("namespaceSelector"), path.key("podSelector"));
    if written.namespace_selector.is_none() && kind != Kind::Cluster {
        required(report, &of_namespace);
    }
    if written.pod_selector.is_none() {
        required(report, &of_pod);
    }
    let namespaces = written.namespace_selector.unwrap_or_default();
    Some((selector(&namespaces, report, &of_namespace), selector(&written.pod_selector?, report, &of_pod)))
}

fn rules(
    kind: Kind,
    written: Vec<Rule>,
    direction: Direction,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Vec<ClusterRule> {
    at_most(kind.max_items(), written.len(), report, path);
    let rules = written.into_iter().enumerate();
    rules.filter_map(|(i, r)| rule(kind, r, direction, report, &path.index(i))).collect()
}

fn rule(
    kind: Kind,
    written: Rule,
    direction: Direction,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Option<ClusterRule> {
    let length = written.name.chars().count();
    if length > MAX_RULE_NAME {
        let message = format!("Too long: may not be more than {MAX_RULE_NAME} bytes");
        report.error(TOO_MANY, &path.key("name"), message);
    }
    let action = action(kind, written.action.as_deref(), report, &path.key("action"));
    let field = if direction == Direction::Ingress { "from" } else { "to" };
    let at = path.key(field);
    let ports = match kind {
        Kind::Cluster => protocols::protocols(written.protocols, report, &path.key("protocols")),
        Kind::Admin | Kind::Baseline => protocols::ports(written.ports, report, &path.key("ports")),
    };
    let Some(written) = written.peers else {
        required(report, &at);
        return None;
    };
    at_least_one(written.len(), report, &at);
    at_most(kind.max_items(), written.len(), report, &at);
    if protocols::any_named(ports.as_deref()) && written.iter().any(types::Peer::is_without_named_ports) {
        let why = "networks/nodes/domainNames peer cannot be set with namedPorts since there are no namedPorts for \
                   networks/nodes/domainNames";
        report.error(INVALID, path, format!("Invalid value: {why}"));
    }
    let peers = (written.into_iter().enumerate())
        .filter_map(|(i, peer)| peers::peer(kind, peer, report, &at.index(i)))
        .collect();
    Some(ClusterRule { at: report.at(path), path: path.to_string(), action: action?, peers, ports })
}

fn action(kind: Kind, written: Option<&str>, report: &Report<'_, '_>, path: &Path<'_>) -> Option<Action> {
    let known: &[(&str, Action)] = match kind {
        Kind::Cluster => &[("Accept", Action::Accept), ("Deny", Action::Deny), ("Pass", Action::Pass)],
        Kind::Admin => &[("Allow", Action::Accept), ("Deny", Action::Deny), ("Pass", Action::Pass)],
        Kind::Baseline => &[("Allow", Action::Accept), ("Deny", Action::Deny)],
    };
    let Some(name) = written else {
        required(report, path);
        return None;
    };
    let action = known.iter().find(|(n, _)| *n == name).map(|(_, a)| *a);
    if action.is_none() {
        let names: Vec<&str> = known.iter().map(|(n, _)| *n).collect();
        unsupported(report, path, name, &names);
    }
    action
}
