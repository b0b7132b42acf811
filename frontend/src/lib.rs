//! The front end: from bytes to the model, its meaning and the IR.
//!
//! `read` turns YAML and JSON into validated [`objects`]; [`model::resolve`] turns those into the [`model::Model`];
//! [`model::decide`] is the reference semantics; [`lower`] makes the IR and [`reference`](mod@reference) answers the
//! questions of the proof.
//!
//! What is absent: this crate knows no kernel, no rule language, no file and no process; texts come in as bytes.

pub mod diagnostic;
mod grouping;
pub mod lower;
pub mod model;
pub mod objects;
pub mod read;
pub mod reference;
pub mod source;
