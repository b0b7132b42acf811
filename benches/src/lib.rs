//! Measurements of netpolc: generated clusters, the cost of a packet, and what they have in common.
//!
//! Micro benchmarks of the stages are in `benches/stages.rs`; `bench-sets` writes the generated clusters to files,
//! `bench-figures` times whole processes, `bench-packets` measures packets in a kernel. `docs/performance.md` has the
//! results, and says how to get each again. Nothing here asserts a time.

pub mod cluster;
pub mod compile;
pub mod packets;
pub mod random;
pub mod statistics;
mod yaml;
