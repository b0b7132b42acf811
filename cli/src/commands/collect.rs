//! `netpolc collect`: the state of a live cluster as a file.
//!
//! Whoever talks to an API server needs a client for it, which is larger than the whole compiler. So this is done by
//! `netpol-agent collect`, which has one; it is looked for beside this program, then in `PATH`.

use crate::args::CollectArgs;
use crate::failure::{Answer, Failure};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The program that does it.
const PROGRAM: &str = "netpol-agent";

/// Becomes `netpol-agent collect`; comes back only if that is not possible.
pub(super) fn run(args: &CollectArgs) -> Result<Answer, Failure> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    let program = beside.filter(|path| path.is_file()).unwrap_or_else(|| PROGRAM.into());
    let error = Command::new(&program).arg("collect").args(&args.arguments).exec();
    Err(Failure::Unusable(match error.kind() {
        ErrorKind::NotFound => {
            format!("{PROGRAM} is neither beside this program nor in PATH; `collect` needs it")
        }
        _ => format!("{}: {error}", program.display()),
    }))
}
