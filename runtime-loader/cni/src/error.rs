//! Errors as the specification wants them: a code, and words for people.

use serde_json::json;

/// What went wrong. The numbers are those of the specification ("Error", list of codes); from 100 on they are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// Incompatible CNI version.
    Version = 1,
    /// Invalid necessary environment variables.
    Environment = 4,
    /// I/O failure.
    Io = 5,
    /// Failed to decode content.
    Decode = 6,
    /// Invalid network config.
    Config = 7,
    /// Try again later.
    TryAgain = 11,
    /// The plugin is not available: it cannot service ADD requests.
    NotAvailable = 50,
    /// The agent says that this cannot be done.
    Refused = 100,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}: {details}")]
pub(crate) struct Failure {
    /// The code.
    pub(crate) code: Code,
    /// In a few words.
    pub(crate) message: &'static str,
    /// The particulars.
    pub(crate) details: String,
    /// The version of the configuration, as far as it is known.
    pub(crate) version: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: &'static str, details: impl Into<String>) -> Failure {
        Failure { code, message, details: details.into(), version: None }
    }

    /// In a version that the runtime understands.
    pub(crate) fn in_version(mut self, version: &str) -> Failure {
        self.version = Some(version.to_owned());
        self
    }

    /// For standard output.
    pub(crate) fn to_json(&self) -> String {
        let version = self.version.as_deref().unwrap_or(crate::config::NEWEST);
        json!({ "cniVersion": version, "code": self.code as u32, "msg": format!("netpol-cni: {}", self.message),
            "details": self.details })
        .to_string()
    }
}
