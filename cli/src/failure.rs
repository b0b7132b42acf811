//! How a command ends: the exit statuses of `netpolc`.

use crate::output;
use std::process::ExitCode;

/// The answer of a command that ran to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Exit status 0.
    Yes,
    /// Exit status 1: errors were found, a flow differed, a proof failed.
    No,
}

impl Answer {
    /// `Yes` if true.
    pub(crate) fn yes_if(good: bool) -> Answer {
        if good { Answer::Yes } else { Answer::No }
    }
}

impl From<Answer> for ExitCode {
    fn from(answer: Answer) -> ExitCode {
        match answer {
            Answer::Yes => ExitCode::SUCCESS,
            Answer::No => ExitCode::from(1),
        }
    }
}

/// Why a command could not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The input has errors; they were reported. Exit status 1.
    #[error("the input has errors; nothing was written")]
    Errors,
    /// Arguments or input that cannot be used. Exit status 2.
    #[error("{0}")]
    Unusable(String),
    /// A backend cannot express the input. Exit status 3.
    #[error("this backend cannot express the input: {0}")]
    Unsupported(String),
    /// An invariant of our own does not hold. Exit status 70.
    #[error("this is a bug of netpolc, please report it: {0}")]
    Bug(String),
}

impl Failure {
    /// An input or output error about a path.
    pub(crate) fn io(path: &std::path::Path, error: &std::io::Error) -> Failure {
        Failure::Unusable(format!("{}: {error}", path.display()))
    }

    /// Prints the failure and gives its exit status.
    pub(crate) fn report(&self) -> ExitCode {
        output::error(&self.to_string());
        ExitCode::from(match self {
            Failure::Errors => 1,
            Failure::Unusable(_) => 2,
            Failure::Unsupported(_) => 3,
            Failure::Bug(_) => 70,
        })
    }
}
