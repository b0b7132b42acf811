//! The plugin as a runtime calls it: alone, and behind the standard plugins in network namespaces.
#![expect(clippy::unwrap_used, reason = "tests")]

mod agent;
mod alone;
mod chained;
mod runtime;
