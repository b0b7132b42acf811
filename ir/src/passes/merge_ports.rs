//! `merge-ports`: every list of ports becomes a sorted list of spans that neither overlap nor touch.
//!
//! `any` swallows the rest. TCP, UDP and SCTP together are not `any`: that has the protocols without ports as well.
//!
//! Sound because a list matches what one of its spans matches, so the union of spans is all that counts.
//! Needs nothing. Costs a sort of each list.

use crate::ports::PortSpan;
use crate::unit::{PortsData, Unit};

/// The pass.
pub fn run(mut unit: Unit) -> Unit {
    for ports in unit.ports.values_mut() {
        *ports = merged(std::mem::take(ports));
    }
    unit
}

/// The canonical list: equal meaning gives equal lists.
pub fn merged(mut spans: PortsData) -> PortsData {
    if spans.contains(&PortSpan::Any) {
        return vec![PortSpan::Any];
    }
    spans.sort_unstable();
    let mut out: PortsData = Vec::with_capacity(spans.len());
    for span in spans {
        if let (Some(PortSpan::Ports { transport: last, hi: end, .. }), PortSpan::Ports { transport, lo, hi }) =
            (out.last_mut(), span)
            && *last == transport
            && lo <= end.saturating_add(1)
        {
            *end = hi.max(*end);
        } else {
            out.push(span);
        }
    }
    out
}
