//! A stand-in for the Kubernetes API server, for tests: real HTTP on the loopback interface, on a port that the kernel
//! chooses.
//!
//! It keeps objects, serves lists (in pages), watches (with bookmarks) and creations, and fails on demand: lists and
//! watches held back, connections cut, histories expired (410, within the stream or as a status), the whole server
//! refusing. What it does not do: validation, defaulting, admission, field and label selectors, TLS.
//!
//! Everything ends when the [`Standin`] is dropped.

mod http;
mod serve;
mod state;

pub use serve::Standin;
pub use state::Resource;
