//! Label selectors.

use super::super::report::Report;
use super::super::tree::Path;
use super::{invalid, names};
use crate::diagnostic::{FORBIDDEN, REQUIRED};
use crate::objects::{Labels, Requirement, Selector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use std::collections::BTreeSet;

/// Checks labels as they are written in metadata and in `matchLabels`.
pub(in crate::read) fn check_labels(labels: &Labels, report: &Report<'_, '_>, path: &Path<'_>) {
    for (key, value) in labels {
        names::qualified(key).iter().for_each(|why| invalid(report, path, key, why));
        names::label_value(value).iter().for_each(|why| invalid(report, &path.key(key), value, why));
    }
}

/// Checks a selector and gives its requirements. Where something is wrong it is reported, and the result is useless.
pub(in crate::read) fn selector(
    written: &LabelSelector,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Selector {
    let mut requirements = Vec::new();
    if let Some(labels) = &written.match_labels {
        check_labels(labels, report, &path.key("matchLabels"));
        let equal = |(k, v): (&String, &String)| Requirement::In(k.clone(), BTreeSet::from([v.clone()]));
        requirements.extend(labels.iter().map(equal));
    }
    let list = path.key("matchExpressions");
    for (i, expression) in written.match_expressions.iter().flatten().enumerate() {
        requirements.extend(requirement(expression, report, &list.index(i)));
    }
    Selector::new(requirements)
}

fn requirement(
    written: &LabelSelectorRequirement,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Option<Requirement> {
    let values: BTreeSet<String> = written.values.iter().flatten().cloned().collect();
    let key = written.key.clone();
    let at = path.key("values");
    let some = || {
        if values.is_empty() {
            let why = "Required value: must be specified when `operator` is 'In' or 'NotIn'";
            report.error(REQUIRED, &at, why);
        }
    };
    let none = || {
        if !values.is_empty() {
            let why = "Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            report.error(FORBIDDEN, &at, why);
        }
    };
    let known = match written.operator.as_str() {
        "In" => {
            some();
            Some(Requirement::In(key, values.clone()))
        }
        "NotIn" => {
            some();
            Some(Requirement::NotIn(key, values.clone()))
        }
        "Exists" => {
            none();
            Some(Requirement::Exists(key))
        }
        "DoesNotExist" => {
            none();
            Some(Requirement::DoesNotExist(key))
        }
        other => {
            invalid(report, &path.key("operator"), other, "not a valid selector operator");
            None
        }
    };
    names::qualified(&written.key)
        .iter()
        .for_each(|why| invalid(report, &path.key("key"), &written.key, why));
    for (i, value) in written.values.iter().flatten().enumerate() {
        names::label_value(value).iter().for_each(|why| invalid(report, &at.index(i), value, why));
    }
    known
}
