//! Ports and protocols.

use super::super::report::Report;
use super::super::tree::Path;
use super::{names, unsupported};
use crate::diagnostic::INVALID;
use netpolc_ir::ports::Transport;

const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

/// A protocol by its name.
pub(in crate::read) fn transport(name: &str, report: &Report<'_, '_>, path: &Path<'_>) -> Option<Transport> {
    let known = Transport::ALL.into_iter().find(|t| t.name() == name);
    if known.is_none() {
        unsupported(report, path, name, &["TCP", "UDP", "SCTP"]);
    }
    known
}

/// A port number from 1.
pub(in crate::read) fn number(port: i32, report: &Report<'_, '_>, path: &Path<'_>) -> Option<u16> {
    let number = u16::try_from(port).ok().filter(|p| *p > 0);
    if number.is_none() {
        report.error(INVALID, path, format!("Invalid value: {port}: {PORT_RANGE}"));
    }
    number
}

/// The name of a port.
pub(in crate::read) fn name(name: &str, report: &Report<'_, '_>, path: &Path<'_>) -> Option<String> {
    let wrong = names::port(name);
    wrong.iter().for_each(|why| super::invalid(report, path, name, why));
    wrong.is_empty().then(|| name.to_string())
}
