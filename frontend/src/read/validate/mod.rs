//! Validation with the rules and in the words of the API server (`k8s.io/apimachinery/pkg/util/validation` and
//! `pkg/apis/networking/validation`).

pub(super) mod cidr;
pub(super) mod meta;
pub(super) mod names;
pub(super) mod ports;
pub(super) mod selector;

use super::report::Report;
use super::tree::{Path, quote};
use crate::diagnostic::{INVALID, UNSUPPORTED};

/// Reports "Invalid value".
pub(super) fn invalid(report: &Report<'_, '_>, path: &Path<'_>, value: &str, why: &str) {
    report.error(INVALID, path, format!("Invalid value: {}: {why}", quote(value)));
}

/// Reports "Unsupported value" with the values that are supported.
pub(super) fn unsupported(report: &Report<'_, '_>, path: &Path<'_>, value: &str, supported: &[&str]) {
    let supported: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
    let message = format!("Unsupported value: {}: supported values: {}", quote(value), supported.join(", "));
    report.error(UNSUPPORTED, path, message);
}
