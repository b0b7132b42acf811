//! Protocols and ports of rules: `protocols` in v1alpha2, `ports` in v1alpha1.

use super::types::{Destination, DestinationPort, Port, Protocol};
use super::{at_least_one, at_most, one_of, required};
use crate::diagnostic::{INVALID, TOO_MANY};
use crate::objects::PolicyPort;
use crate::read::report::Report;
use crate::read::tree::Path;
use crate::read::validate::ports::{name, number, transport};
use netpolc_ir::ports::Transport;

/// Most entries of `protocols` (v1alpha2) and of `ports` (v1alpha1).
const MAX_PROTOCOLS: usize = 25;
const MAX_PORTS: usize = 100;

/// Whether one of the ports has a name.
pub(super) fn any_named(ports: Option<&[PolicyPort]>) -> bool {
    ports.into_iter().flatten().any(|p| matches!(p, PolicyPort::Named { .. }))
}

/// Checks `protocols`.
pub(super) fn protocols(
    written: Option<Vec<Protocol>>,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Option<Vec<PolicyPort>> {
    let written = written?;
    at_least_one(written.len(), report, path);
    at_most(MAX_PROTOCOLS, written.len(), report, path);
    let entries = written.into_iter().enumerate();
    Some(entries.filter_map(|(i, p)| protocol(p, report, &path.index(i))).collect())
}

fn protocol(written: Protocol, report: &Report<'_, '_>, path: &Path<'_>) -> Option<PolicyPort> {
    let Protocol { tcp, udp, sctp, destination_named_port: named } = written;
    let set = [tcp.is_some(), udp.is_some(), sctp.is_some(), named.is_some()];
    if !one_of(set.into_iter().filter(|s| *s).count(), report, path) {
        return None;
    }
    if let Some(name) = named {
        // The schema takes any text here. One that is no name of a port is that of no container's port.
        return Some(PolicyPort::Named { transport: None, name });
    }
    let all = [("tcp", Transport::Tcp, tcp), ("udp", Transport::Udp, udp), ("sctp", Transport::Sctp, sctp)];
    let (field, transport, written) = all.into_iter().find_map(|(f, t, w)| Some((f, t, w?)))?;
    destination(transport, written, report, &path.key(field))
}

fn destination(
    transport: Transport,
    written: Destination,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Option<PolicyPort> {
    let Some(port) = written.destination_port else {
        let message = format!("Invalid value: 0: {path} in body should have at least 1 properties");
        report.error(TOO_MANY, path, message);
        return None;
    };
    let path = path.key("destinationPort");
    let DestinationPort { number: single, range } = port;
    if !one_of(usize::from(single.is_some()) + usize::from(range.is_some()), report, &path) {
        return None;
    }
    if let Some(single) = single {
        let port = number(single, report, &path.key("number"))?;
        return Some(PolicyPort::Range { transport, lo: port, hi: port });
    }
    let range = range?;
    let path = path.key("range");
    let lo = end_of_range(range.start, report, &path.key("start"));
    let hi = end_of_range(range.end, report, &path.key("end"));
    let (lo, hi) = (lo?, hi?);
    if lo >= hi {
        report.error(INVALID, &path, "Invalid value: Start port must be less than End port");
    }
    Some(PolicyPort::Range { transport, lo, hi })
}

fn end_of_range(written: Option<i32>, report: &Report<'_, '_>, path: &Path<'_>) -> Option<u16> {
    if written.is_none() {
        required(report, path);
    }
    number(written?, report, path)
}

/// Checks `ports`. An empty list filters nothing.
pub(super) fn ports(
    written: Option<Vec<Port>>,
    report: &Report<'_, '_>,
    path: &Path<'_>,
) -> Option<Vec<PolicyPort>> {
    let written = written.filter(|p| !p.is_empty())?;
    at_most(MAX_PORTS, written.len(), report, path);
    let entries = written.into_iter().enumerate();
    Some(entries.filter_map(|(i, p)| port(p, report, &path.index(i))).collect())
}

fn port(written: Port, report: &Report<'_, '_>, path: &Path<'_>) -> Option<PolicyPort> {
    let Port { port_number, port_range, named_port } = written;
    let set = [port_number.is_some(), port_range.is_some(), named_port.is_some()];
    if !one_of(set.into_iter().filter(|s| *s).count(), report, path) {
        return None;
    }
    if let Some(named) = named_port {
        let name = name(&named, report, &path.key("namedPort"))?;
        return Some(PolicyPort::Named { transport: None, name });
    }
    let protocol = |written: Option<String>, path: &Path<'_>| match written {
        None => Some(Transport::Tcp),
        Some(name) => transport(&name, report, &path.key("protocol")),
    };
    if let Some(single) = port_number {
        let path = path.key("portNumber");
        let transport = protocol(single.protocol, &path);
        let port = end_of_range(single.port, report, &path.key("port"))?;
        return Some(PolicyPort::Range { transport: transport?, lo: port, hi: port });
    }
    let range = port_range?;
    let path = path.key("portRange");
    let transport = protocol(range.protocol, &path);
    let lo = end_of_range(range.start, report, &path.key("start"));
    let hi = end_of_range(range.end, report, &path.key("end"));
    let (lo, hi) = (lo?, hi?);
    if lo > hi {
        // The schema does not refuse this, and the rule would match nothing without a word.
        let message = format!("Invalid value: {hi}: must be greater than or equal to `start`");
        report.error(INVALID, &path.key("end"), message);
    }
    Some(PolicyPort::Range { transport: transport?, lo, hi })
}
