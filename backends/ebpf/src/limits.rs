//! Limits of the executor; those of the artifact are in [`netpolc_bundle::limits`].

/// Slots of a program that is compiled before it is run; a longer one is interpreted. Ours has fewer than 300.
pub const COMPILED: usize = 1 << 10;

/// Compiled programs that are kept for the next artifact.
pub const COMPILED_PROGRAMS: usize = 8;
