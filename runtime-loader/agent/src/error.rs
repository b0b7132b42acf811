//! Why the agent cannot start.

/// Why the agent cannot start, or a command of it cannot run. Once it runs, failures are logged and tried again.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message says what it is")]
pub enum Error {
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("no way to the API server: {0}")]
    Config(String),
    #[error("{0}")]
    Usage(String),
    #[error("the API server: {0}")]
    Api(#[from] Box<kube::Error>),
}

impl Error {
    /// The exit status: 2 throughout, since arguments or circumstances are unusable.
    pub fn exit_code(&self) -> u8 {
        2
    }

    pub(crate) fn api(error: kube::Error) -> Error {
        Error::Api(Box::new(error))
    }

    pub(crate) fn io(what: impl Into<String>, source: std::io::Error) -> Error {
        Error::Io { what: what.into(), source }
    }
}
