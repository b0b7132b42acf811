//! What can go wrong, and the exit status that it leads to.

use netpolc_bundle::BundleError;

/// Why a command failed. Whatever it was, the rules that were in force are still in force.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message says what it is")]
pub enum Error {
    #[error("the bundle cannot be used: {0}")]
    Bundle(#[from] BundleError),
    #[error("the bundle is refused: {0}")]
    Refused(String),
    #[error("addresses cannot come and go without a new bundle: {0}")]
    Unlike(#[from] netpolc_bundle::rebind::Unlike),
    #[error("{program} is not installed: looked for it in {dirs}")]
    NoProgram { program: String, dirs: String },
    #[error("{backend} cannot be used here: {reason}")]
    Unusable { backend: netpolc_bundle::Backend, reason: String },
    #[error("no backend can be used here: {0}")]
    NoBackend(String),
    #[error("no permission to change the rules of this network namespace (needs CAP_NET_ADMIN): {0}")]
    Permission(String),
    #[error("nft refused; the rules in force are unchanged\n{0}")]
    Nft(String),
    #[error("{program} refused; the rules in force are unchanged\n{complaint}")]
    Program { program: String, complaint: String },
    #[error("the kernel refused {what}; the rules in force are unchanged: {complaint}")]
    Kernel { what: String, complaint: String },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{program}: {message}")]
    Tool { program: String, message: String },
    #[error("{0}")]
    Incomplete(String),
    #[error("another netpol-loader holds the lock {0}")]
    Busy(String),
    #[error(
        "after the transaction the kernel's rules are not the bundle's ({0}); the earlier rules were restored"
    )]
    Restored(String),
    #[error("after the transaction the kernel's rules are not the bundle's: {0}")]
    NotConfirmed(String),
}

impl Error {
    /// 2: unusable input or circumstances; 3: this backend cannot; 70: our bug.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Bundle(_)
            | Error::Refused(_)
            | Error::Unlike(_)
            | Error::Permission(_)
            | Error::Io { .. }
            | Error::Incomplete(_)
            | Error::Busy(_) => 2,
            Error::NoProgram { .. }
            | Error::Unusable { .. }
            | Error::NoBackend(_)
            | Error::Nft(_)
            | Error::Program { .. }
            | Error::Tool { .. }
            | Error::Kernel { .. } => 3,
            Error::Restored(_) | Error::NotConfirmed(_) => 70,
        }
    }

    pub(crate) fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Error {
        Error::Io { what: what.into(), source: source.into() }
    }
}
