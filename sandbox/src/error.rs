//! What can go wrong while building or using a sandbox.

use std::io;
use std::time::Duration;

/// Why a sandbox could not be built, or an action in it could not be carried out.
///
/// A packet that does not arrive is not an error: see [`crate::Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The [`crate::Spec`], or a host named by a caller, makes no sense, or is too large for this process.
    #[error("sandbox: {0}")]
    Spec(String),
    /// A program that the sandbox runs is not installed.
    #[error("program `{program}` not found: install {package}")]
    MissingProgram {
        /// Name of the program, such as `ip`.
        program: String,
        /// Name of the package that most distributions ship it in.
        package: String,
    },
    /// The kernel refused something that needs root, or root in a user namespace.
    #[error("{what}: {source}; run as root, or allow unprivileged user namespaces")]
    Privilege {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Any other failed system call.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program that configures the sandbox ran and reported failure.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The program and its arguments.
        command: String,
        /// Its exit status, as text.
        status: String,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// A program did not end in time and was killed.
    #[error("`{command}` did not end within {limit:?} and was killed")]
    Timeout {
        /// The program and its arguments.
        command: String,
        /// How long it was given.
        limit: Duration,
    },
    /// The network was configured, and still carries no packets.
    #[error("the sandbox's network does not work after {limit:?}: {what}")]
    Unsettled {
        /// An example of what fails.
        what: String,
        /// How long it was given.
        limit: Duration,
    },
    /// A closure run by [`crate::Sandbox::in_namespace`] panicked.
    #[error("a thread inside a namespace panicked")]
    Panicked,
}

impl Error {
    /// Wraps a failed system call; a refusal for lack of privilege becomes [`Error::Privilege`].
    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Error {
        let (what, source) = (what.into(), source.into());
        match source.kind() {
            io::ErrorKind::PermissionDenied => Error::Privilege { what, source },
            _ => Error::System { what, source },
        }
    }
}
