//! Metadata of objects.

use super::super::report::Report;
use super::super::tree::Path;
use super::super::written::as_written;
use super::{invalid, names, selector::check_labels};
use crate::diagnostic::{FORBIDDEN, INVALID, REQUIRED};
use crate::objects::Labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Largest size of all annotations of an object (`validation.TotalAnnotationSizeLimitB`).
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// The namespace of objects that name none.
pub(in crate::read) const DEFAULT_NAMESPACE: &str = "default";

/// Whether objects of a kind live in namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::read) enum Scope {
    /// They do.
    Namespaced,
    /// They do not.
    Cluster,
}

/// The namespace that a written one stands for.
pub(in crate::read) fn namespace(written: Option<&str>) -> &str {
    written.filter(|n| !n.is_empty()).unwrap_or(DEFAULT_NAMESPACE)
}

/// The name of an object: `metadata.name`, or a stand-in for what the server would make of `metadata.generateName`. The
/// server appends something random; this appends something that depends on the object, so that two objects with one
/// `generateName` are two, and the same object given twice is one.
pub(in crate::read) fn name(
    name: Option<&str>,
    generate_name: Option<&str>,
    report: &Report<'_, '_>,
) -> String {
    match (name.filter(|n| !n.is_empty()), generate_name.filter(|n| !n.is_empty())) {
        (Some(name), _) => name.to_string(),
        (None, Some(base)) => {
            let base: String = base.chars().take(MAX_GENERATED_BASE).collect();
            format!("{base}{}", suffix(&as_written(report.root())))
        }
        (None, None) => String::new(),
    }
}

/// Letters and digits that make no words, as the server has them (`k8s.io/apimachinery/pkg/util/rand`).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// How long the suffix of a generated name is (`names.randomLength`).
const SUFFIX_LENGTH: usize = 5;

/// The longest prefix of a generated name that the server keeps (`names.MaxGeneratedNameLength`).
const MAX_GENERATED_BASE: usize = 63 - SUFFIX_LENGTH;

/// A suffix for a generated name that depends on a text alone, by way of FNV-1a (64 bits).
fn suffix(text: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut number = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let mut next = || {
        let letter = ALPHABET[(number % 27) as usize];
        number /= 27;
        char::from(letter)
    };
    (0..SUFFIX_LENGTH).map(|_| next()).collect()
}

/// Checks name and namespace of any object, and the labels.
pub(in crate::read) fn check(
    object_name: &str,
    object_namespace: Option<&str>,
    labels: &Labels,
    name_rule: fn(&str) -> Vec<String>,
    report: &Report<'_, '_>,
) {
    let metadata = Path::ROOT.key("metadata");
    let at = metadata.key("name");
    if object_name.is_empty() {
        report.error(REQUIRED, &at, "Required value: name or generateName is required");
    } else {
        name_rule(object_name).iter().for_each(|why| invalid(report, &at, object_name, why));
    }
    if let Some(namespace) = object_namespace {
        let at = metadata.key("namespace");
        names::label(namespace).iter().for_each(|why| invalid(report, &at, namespace, why));
    }
    check_labels(labels, report, &metadata.key("labels"));
}

/// Checks the metadata of a policy.
pub(in crate::read) fn check_policy(meta: &ObjectMeta, scope: Scope, report: &Report<'_, '_>) {
    let none = Labels::new();
    let own = name(meta.name.as_deref(), meta.generate_name.as_deref(), report);
    let within = (scope == Scope::Namespaced).then(|| namespace(meta.namespace.as_deref()));
    check(&own, within, meta.labels.as_ref().unwrap_or(&none), names::subdomain, report);
    let metadata = Path::ROOT.key("metadata");
    if scope == Scope::Cluster && meta.namespace.as_ref().is_some_and(|n| !n.is_empty()) {
        report.error(FORBIDDEN, &metadata.key("namespace"), "Forbidden: not allowed on this type");
    }
    let at = metadata.key("annotations");
    let mut size = 0;
    for (key, value) in meta.annotations.iter().flatten() {
        // Unlike label keys, annotation keys are compared in lower case.
        names::qualified(&key.to_lowercase()).iter().for_each(|why| invalid(report, &at, key, why));
        size += key.len() + value.len();
    }
    if size > MAX_ANNOTATIONS {
        let message = format!("Too long: may not be more than {MAX_ANNOTATIONS} bytes");
        report.error(INVALID, &at, message);
    }
}
