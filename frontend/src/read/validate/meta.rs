//! Metadata of objects.

use super::super::report::Report;
use super::super::tree::Path;
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

/// The name of an object: `metadata.name`, or a stand-in for what the server would make of `metadata.generateName`.
pub(in crate::read) fn name(name: Option<&str>, generate_name: Option<&str>) -> String {
    match name.filter(|n| !n.is_empty()) {
        Some(name) => name.to_string(),
        None => generate_name.unwrap_or_default().trim_end_matches(['-', '.']).to_string(),
    }
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
    let own = name(meta.name.as_deref(), meta.generate_name.as_deref());
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
