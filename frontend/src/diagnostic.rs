//! Diagnostics: what is wrong with the input, where, and what to do about it.
//!
//! A diagnostic never stops the reader. Its code is stable; [`CODES`] explains each one, and the pages of the
//! documentation are generated from it. [`render()`] shows diagnostics to people.

mod codes;
mod render;

use crate::source::Span;

pub use codes::CODES;
pub(crate) use codes::*;
pub use render::render;

/// How bad it is. Sorted from the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The input is refused.
    Error,
    /// The input is used, but probably does not mean what its writer thinks.
    Warning,
    /// Something worth knowing.
    Note,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Its stable code, as `E0012`; one of [`CODES`].
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, on one line. For validation errors in the words of the API server.
    pub message: String,
    /// Where, if it has a place.
    pub span: Option<Span>,
    /// The field path inside the object, as `spec.ingress[0].from[0].ipBlock.cidr`.
    pub path: Option<String>,
    /// Kind, namespace and name of the object, as `NetworkPolicy shop/db`.
    pub object: Option<String>,
    /// What to do about it.
    pub help: Option<String>,
}

/// What a code means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeInfo {
    /// The code.
    pub code: &'static str,
    /// A title of a few words.
    pub title: &'static str,
    /// A paragraph that explains the finding, why it matters and what to do.
    pub explanation: &'static str,
}
