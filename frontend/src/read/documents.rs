//! From trees to objects: what a document is, lists taken apart, and who reads which kind.

use super::decode::suggestion;
use super::relax::relax;
use super::report::{Report, of_document};
use super::shared::External;
use super::split::{Unit, lines_of_yaml_1_1};
use super::tree::{Node, Path, Problem, Value, quote};
use super::written::Written;
use super::{cluster_policy, json, network_policy, pods, workloads, yaml};
use crate::diagnostic::{
    Diagnostic, JSON, NO_KIND, NOT_OBJECT, PASSED_OVER, Severity, UNKNOWN_FIELD, WRONG_TYPE,
};
use crate::objects::Objects;
use crate::source::{Source, SourceId, Span};
use std::collections::BTreeMap;

/// What a stretch of input has in it.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) objects: Objects,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) skipped: BTreeMap<String, usize>,
    pub(super) written: Written,
    /// By name of a node, its addresses that are no InternalIP.
    pub(super) external: External,
}

/// What we read.
#[derive(Debug, Clone, Copy)]
enum Reader {
    NetworkPolicy,
    ClusterPolicy(cluster_policy::Kind),
    Namespace,
    Node,
    Pod,
    Workload(&'static str),
}

/// The kinds that are read: API version, kind, reader.
const KINDS: &[(&str, &str, Reader)] = &[
    ("networking.k8s.io/v1", "NetworkPolicy", Reader::NetworkPolicy),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", CLUSTER),
    ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", ADMIN),
    ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", BASELINE),
    ("v1", "Namespace", Reader::Namespace),
    ("v1", "Node", Reader::Node),
    ("v1", "Pod", Reader::Pod),
    ("apps/v1", "Deployment", Reader::Workload("Deployment")),
    ("apps/v1", "StatefulSet", Reader::Workload("StatefulSet")),
    ("apps/v1", "DaemonSet", Reader::Workload("DaemonSet")),
    ("apps/v1", "ReplicaSet", Reader::Workload("ReplicaSet")),
    ("batch/v1", "Job", Reader::Workload("Job")),
    ("batch/v1", "CronJob", Reader::Workload("CronJob")),
];

/// The fields of a list.
const LIST_FIELDS: &[&str] = &["apiVersion", "items", "kind", "metadata"];

const CLUSTER: Reader = Reader::ClusterPolicy(cluster_policy::Kind::Cluster);
const ADMIN: Reader = Reader::ClusterPolicy(cluster_policy::Kind::Admin);
const BASELINE: Reader = Reader::ClusterPolicy(cluster_policy::Kind::Baseline);

/// Reads one unit.
pub(super) fn read_unit(unit: &Unit, source: &Source, found: &mut Found) {
    // The source was found to be UTF-8 when it was split.
    let text =
        source.bytes.get(unit.start..unit.end).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default();
    let mut documents = Documents { source: unit.source, found };
    if unit.json { documents.json(text, unit) } else { documents.yaml(text, unit) }
}

/// The kind that an object has or, in a typed list, inherits.
#[derive(Clone, Copy, Default)]
struct Inherited<'t> {
    api_version: Option<&'t str>,
    kind: Option<&'t str>,
}

struct Documents<'f> {
    source: SourceId,
    found: &'f mut Found,
}

impl Documents<'_> {
    fn yaml(&mut self, text: &str, unit: &Unit) {
        let base = unit.start as u32;
        // `kubectl` splits first, so each document may start with a byte order mark of its own.
        let (text, base) = match text.strip_prefix('\u{feff}') {
            Some(rest) => (rest, base + 3),
            None => (text, base),
        };
        let lines = match lines_of_yaml_1_1(text, base) {
            Ok(lines) => lines,
            Err(problem) => return self.problem(problem, Severity::Error),
        };
        let relaxed;
        let mut parsed = yaml::parse(&lines, text, base);
        if let Some(flow) = parsed.flow {
            relaxed = relax(&lines, flow, text);
            parsed = yaml::parse(&relaxed, text, base);
        }
        self.documents(&parsed.documents, parsed.problems, parsed.fatal.is_some());
        if let Some(problem) = parsed.fatal {
            self.problem(problem, Severity::Error);
        }
    }

    /// JSON objects one after the other. What is YAML that only looks like JSON is read as YAML.
    fn json(&mut self, text: &str, unit: &Unit) {
        let mut reader = json::Reader::new(text, unit.start as u32);
        let mut read = 0;
        while let Some(next) = reader.next() {
            match next {
                Ok(node) => {
                    let problems = std::mem::take(&mut reader.problems);
                    self.documents(std::slice::from_ref(&node), problems, false);
                    read += 1;
                }
                Err(problem) => return self.not_json(problem, text, unit, read),
            }
        }
    }

    fn not_json(&mut self, problem: Problem, text: &str, unit: &Unit, read: usize) {
        if read > 0 || problem.code != JSON {
            return self.problem(problem, Severity::Error);
        }
        let mut attempt = Found::default();
        for part in super::split::split_yaml(unit.source, text, unit.start) {
            let inner = &text[part.start - unit.start..part.end - unit.start];
            Documents { source: self.source, found: &mut attempt }.yaml(inner, &part);
        }
        let failed = attempt.diagnostics.iter().any(|d| d.severity == Severity::Error && d.object.is_none());
        let first = text.trim_start();
        if failed && !first.starts_with("{{") {
            return self.problem(problem, Severity::Error);
        }
        self.found.absorb(attempt);
    }

    fn problem(&mut self, problem: Problem, severity: Severity) {
        self.found.diagnostics.push(of_document(problem, self.source, severity));
    }

    fn documents(&mut self, documents: &[Node<'_>], problems: Vec<Problem>, broken: bool) {
        let mut used = broken;
        for node in documents {
            used |= self.document(node);
        }
        // A duplicate key in something that nobody reads is worth a warning only.
        let severity = if used { Severity::Error } else { Severity::Warning };
        for problem in problems {
            self.problem(problem, severity);
        }
    }

    /// Reads a document; false if it was passed over.
    fn document(&mut self, node: &Node<'_>) -> bool {
        match &node.value {
            Value::Null => true,
            Value::Map(_) => self.object(node, Inherited::default(), &Path::ROOT),
            other => {
                let message = format!("the document is {}, not a Kubernetes object", other.describe());
                self.problem(Problem::new(NOT_OBJECT, node.start, node.end, message), Severity::Error);
                true
            }
        }
    }

    /// Reads an object or the items of a list; false if it was passed over.
    fn object(&mut self, node: &Node<'_>, inherited: Inherited<'_>, path: &Path<'_>) -> bool {
        let api_version = self.type_field(node, "apiVersion", inherited.api_version, path);
        let kind = self.type_field(node, "kind", inherited.kind, path);
        let (Some(api_version), Some(kind)) = (api_version, kind) else { return true };
        if let Some(of) = kind.strip_suffix("List") {
            let ours = is_our_list(api_version, of);
            if ours {
                self.unknown_fields_of_list(node, path);
            }
            if ours || may_be_list(node) {
                return self.list(node, api_version, of, path);
            }
        }
        match KINDS.iter().find(|(v, k, _)| *v == api_version && *k == kind) {
            Some((_, _, reader)) => {
                self.read(*reader, node, (api_version, kind));
                true
            }
            None => {
                self.pass_over(node, api_version, kind);
                false
            }
        }
    }

    /// `kind` or `apiVersion`; reports it if it is missing or no string.
    fn type_field<'t>(
        &mut self,
        node: &'t Node<'_>,
        field: &str,
        inherited: Option<&'t str>,
        path: &Path<'_>,
    ) -> Option<&'t str> {
        let path = path.key(field);
        let (code, at, message) = match node.get(field) {
            Some(Node { value: Value::Str(text), .. }) if !text.is_empty() => return Some(text),
            None | Some(Node { value: Value::Null, .. }) if inherited.is_some() => return inherited,
            None | Some(Node { value: Value::Null | Value::Str(_), .. }) => {
                (NO_KIND, node, format!("Required value: the object has no `{field}`"))
            }
            Some(other) => {
                let got = other.value.describe();
                (WRONG_TYPE, other, format!("cannot use {got} here: a string is wanted"))
            }
        };
        self.found.diagnostics.push(Diagnostic {
            code,
            severity: Severity::Error,
            message,
            span: Some(at.span(self.source)),
            path: Some(path.to_string()),
            object: None,
            help: None,
        });
        None
    }

    /// A list without `items` would be empty without a word, so a misspelt field of it is an error as in other objects.
    fn unknown_fields_of_list(&mut self, node: &Node<'_>, path: &Path<'_>) {
        let Value::Map(entries) = &node.value else { return };
        for entry in entries.iter().filter(|e| !LIST_FIELDS.contains(&e.key.as_ref())) {
            let field = path.key(&entry.key).to_string();
            self.found.diagnostics.push(Diagnostic {
                code: UNKNOWN_FIELD,
                severity: Severity::Error,
                message: format!("unknown field \"{field}\""),
                span: Some(Span { source: self.source, start: entry.start, end: entry.end }),
                path: Some(field),
                object: None,
                help: suggestion(&entry.key, LIST_FIELDS).map(|known| format!("did you mean `{known}`?")),
            });
        }
    }

    fn list(&mut self, node: &Node<'_>, api_version: &str, of: &str, path: &Path<'_>) -> bool {
        let path = path.key("items");
        let typed = !of.is_empty();
        let inherited = Inherited { api_version: typed.then_some(api_version), kind: typed.then_some(of) };
        let items = match node.get("items") {
            Some(Node { value: Value::List(items), .. }) => items,
            None | Some(Node { value: Value::Null, .. }) => return true,
            Some(other) => {
                let message = format!("{path}: cannot use {} here: a list is wanted", other.value.describe());
                self.problem(Problem::new(WRONG_TYPE, other.start, other.end, message), Severity::Error);
                return true;
            }
        };
        let mut used = false;
        for (i, item) in items.iter().enumerate() {
            let path = path.index(i);
            if matches!(item.value, Value::Map(_)) {
                used |= self.object(item, inherited, &path);
            } else {
                let message = format!("{path} is {}, not a Kubernetes object", item.value.describe());
                self.problem(Problem::new(NOT_OBJECT, item.start, item.end, message), Severity::Error);
                used = true;
            }
        }
        used
    }

    fn read(&mut self, reader: Reader, node: &Node<'_>, (api_version, kind): (&str, &str)) {
        let report = Report::new(self.source, node, called(node, kind, reader));
        let Found { objects, written, external, .. } = self.found;
        match reader {
            Reader::NetworkPolicy => {
                objects.policies.extend(network_policy::read(&report).inspect(|policy| {
                    written.add(node, (api_version, kind), (&policy.namespace, &policy.name));
                }))
            }
            Reader::ClusterPolicy(of) => {
                objects.cluster_policies.extend(cluster_policy::read(of, &report).inspect(|policy| {
                    written.add(node, (api_version, kind), ("", &policy.name));
                }))
            }
            Reader::Namespace => objects.namespaces.extend(pods::namespace(&report)),
            Reader::Node => objects.nodes.extend(pods::node(&report).map(|(node, addrs)| {
                external.entry(node.name.clone()).or_default().extend(addrs);
                node
            })),
            Reader::Pod => objects.pods.extend(pods::pod(&report)),
            Reader::Workload(kind) => objects.workloads.extend(workloads::read(kind, &report)),
        }
        self.found.diagnostics.extend(report.finish());
    }

    fn pass_over(&mut self, node: &Node<'_>, api_version: &str, kind: &str) {
        let short = |text: &str| quote(text).trim_matches('"').to_string();
        *self.found.skipped.entry(format!("{} {}", short(api_version), short(kind))).or_default() += 1;
        let Some((version, known, _)) = KINDS.iter().find(|(_, k, _)| k.eq_ignore_ascii_case(kind)) else {
            return;
        };
        let field = if *known == kind { "apiVersion" } else { "kind" };
        let at = node.get(field).unwrap_or(node);
        self.found.diagnostics.push(Diagnostic {
            code: PASSED_OVER,
            severity: Severity::Note,
            message: format!(
                "passed over: apiVersion {}, kind {} is not the {known} of {version}",
                quote(api_version),
                quote(kind)
            ),
            span: Some(at.span(self.source)),
            path: Some(field.to_string()),
            object: None,
            help: None,
        });
    }
}

impl Found {
    /// Adds what was found after this.
    pub(super) fn absorb(&mut self, later: Found) {
        let Objects { namespaces, nodes, pods, workloads, policies, cluster_policies } = later.objects;
        self.objects.namespaces.extend(namespaces);
        self.objects.nodes.extend(nodes);
        self.objects.pods.extend(pods);
        self.objects.workloads.extend(workloads);
        self.objects.policies.extend(policies);
        self.objects.cluster_policies.extend(cluster_policies);
        self.diagnostics.extend(later.diagnostics);
        for (kind, count) in later.skipped {
            *self.skipped.entry(kind).or_default() += count;
        }
        self.written.absorb(later.written);
        for (node, addrs) in later.external {
            self.external.entry(node).or_default().extend(addrs);
        }
    }
}

/// Whether an object of a foreign kind that ends in `List` may be a list of objects: a kind can be called so and have
/// `items` of its own that are none.
fn may_be_list(node: &Node<'_>) -> bool {
    match node.get("items").map(|items| &items.value) {
        Some(Value::List(items)) => {
            items.is_empty() || items.iter().any(|item| matches!(item.value, Value::Map(_)))
        }
        Some(Value::Null) => true,
        _ => false,
    }
}

/// Whether a list of this kind is one that we would read, or the list of anything.
fn is_our_list(api_version: &str, of: &str) -> bool {
    (of.is_empty() && api_version == "v1") || KINDS.iter().any(|(v, k, _)| *v == api_version && *k == of)
}

/// What an object is called in messages, from whatever of its name is usable.
fn called(node: &Node<'_>, kind: &str, reader: Reader) -> String {
    let text = |field| match node.get("metadata").and_then(|m| m.get(field)).map(|n| &n.value) {
        Some(Value::Str(text)) if !text.is_empty() => Some(quote(text).trim_matches('"').to_string()),
        _ => None,
    };
    let name = text("name").or_else(|| text("generateName")).unwrap_or_else(|| "(no name)".into());
    match reader {
        Reader::ClusterPolicy(_) | Reader::Namespace | Reader::Node => format!("{kind} {name}"),
        Reader::NetworkPolicy | Reader::Pod | Reader::Workload(_) => {
            format!("{kind} {}/{name}", text("namespace").unwrap_or_else(|| "default".into()))
        }
    }
}
