//! Objects that are given more than once.
//!
//! A copy that says the same is dropped, so that giving a file twice changes nothing. Two that differ cannot both be in
//! a cluster, and which one is meant is not for us to guess.

use crate::diagnostic::{CONFLICT, Diagnostic, Severity};
use crate::objects::{ClusterPolicy, Namespace, Node, Objects, Pod, Policy, PolicyRule, Workload};
use crate::source::{SourceId, Sources, Span};
use std::collections::BTreeMap;

const NOWHERE: Span = Span { source: SourceId(0), start: 0, end: 0 };

/// An object that is identified by kind, namespace and name.
trait Named: Clone + PartialEq {
    /// Kind, namespace (empty if it has none) and name.
    fn id(&self) -> (&str, &str, &str);
    /// Where it stands.
    fn at(&self) -> Span;
    /// Forgets where it stands, so that copies from different places are equal.
    fn forget(&mut self);
}

/// Drops copies and reports conflicts; of those that conflict the first stays.
pub(super) fn check(objects: &mut Objects, sources: &Sources, diagnostics: &mut Vec<Diagnostic>) {
    only_first(&mut objects.namespaces, sources, diagnostics);
    only_first(&mut objects.nodes, sources, diagnostics);
    only_first(&mut objects.pods, sources, diagnostics);
    only_first(&mut objects.workloads, sources, diagnostics);
    only_first(&mut objects.policies, sources, diagnostics);
    only_first(&mut objects.cluster_policies, sources, diagnostics);
}

fn only_first<T: Named>(list: &mut Vec<T>, sources: &Sources, diagnostics: &mut Vec<Diagnostic>) {
    let mut keep = vec![true; list.len()];
    let mut seen: BTreeMap<(&str, &str, &str), &T> = BTreeMap::new();
    for (object, keep) in list.iter().zip(&mut keep) {
        if let Some(first) = seen.get(&object.id()) {
            *keep = false;
            if !same(*first, object) {
                diagnostics.push(conflict(*first, object, sources));
            }
        } else {
            seen.insert(object.id(), object);
        }
    }
    let mut keep = keep.into_iter();
    list.retain(|_| keep.next().unwrap_or(true));
}

fn same<T: Named>(a: &T, b: &T) -> bool {
    let (mut a, mut b) = (a.clone(), b.clone());
    a.forget();
    b.forget();
    a == b
}

fn conflict<T: Named>(first: &T, second: &T, sources: &Sources) -> Diagnostic {
    let (kind, namespace, name) = second.id();
    let object =
        if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") };
    let place = sources.place(first.at());
    Diagnostic {
        code: CONFLICT,
        severity: Severity::Error,
        message: format!("{object} is given twice with different content; the first is at {place}"),
        span: Some(second.at()),
        path: Some("metadata.name".into()),
        object: Some(object),
        help: Some("remove or rename one of them".into()),
    }
}

impl Named for Namespace {
    fn id(&self) -> (&str, &str, &str) {
        ("Namespace", "", &self.name)
    }
    fn at(&self) -> Span {
        self.at
    }
    fn forget(&mut self) {
        self.at = NOWHERE;
    }
}

impl Named for Node {
    fn id(&self) -> (&str, &str, &str) {
        ("Node", "", &self.name)
    }
    fn at(&self) -> Span {
        self.at
    }
    fn forget(&mut self) {
        self.at = NOWHERE;
    }
}

impl Named for Pod {
    fn id(&self) -> (&str, &str, &str) {
        ("Pod", &self.namespace, &self.name)
    }
    fn at(&self) -> Span {
        self.at
    }
    fn forget(&mut self) {
        self.at = NOWHERE;
    }
}

impl Named for Workload {
    fn id(&self) -> (&str, &str, &str) {
        (&self.kind, &self.template.namespace, &self.template.name)
    }
    fn at(&self) -> Span {
        self.template.at
    }
    fn forget(&mut self) {
        self.template.at = NOWHERE;
    }
}

impl Named for Policy {
    fn id(&self) -> (&str, &str, &str) {
        ("NetworkPolicy", &self.namespace, &self.name)
    }
    fn at(&self) -> Span {
        self.at
    }
    fn forget(&mut self) {
        self.at = NOWHERE;
        self.ingress.iter_mut().chain(&mut self.egress).flatten().for_each(forget_rule);
    }
}

fn forget_rule(rule: &mut PolicyRule) {
    rule.at = NOWHERE;
    rule.peers.iter_mut().flatten().for_each(|p| p.at = NOWHERE);
}

impl Named for ClusterPolicy {
    fn id(&self) -> (&str, &str, &str) {
        (&self.kind, "", &self.name)
    }
    fn at(&self) -> Span {
        self.at
    }
    fn forget(&mut self) {
        self.at = NOWHERE;
        self.ingress.iter_mut().chain(&mut self.egress).for_each(|r| r.at = NOWHERE);
    }
}
