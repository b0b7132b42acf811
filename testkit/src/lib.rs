//! What the tests of several crates share: generated clusters, their flows, and the pipeline in one call.
//!
//! Everything is seeded: the same seed gives the same bytes on every machine, and a failure names its seed.

pub mod bundles;
pub mod flows;
pub mod generate;
pub mod mutate;
pub mod pipeline;
pub mod random;
pub mod samples;
pub mod text;
