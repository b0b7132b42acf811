//! The commands, one file each.

mod build;
mod check;
mod collect;
mod eval;
mod explain;
mod nodes;
mod snapshot;
mod try_it;
mod verify;

use crate::args::{Args, Command};
use crate::failure::{Answer, Failure};
use crate::output;
use netpolc_frontend::diagnostic::CODES;

/// Runs the command of the command line.
pub(crate) fn run(args: Args) -> Result<Answer, Failure> {
    match args.command {
        Command::Build(args) => build::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::Try(args) => try_it::run(&args),
        Command::Collect(args) => collect::run(&args),
        Command::Code { code } => explain_code(&code),
    }
}

fn explain_code(code: &str) -> Result<Answer, Failure> {
    let Some(info) = CODES.iter().find(|c| c.code.eq_ignore_ascii_case(code)) else {
        return Err(Failure::Unusable(format!("there is no diagnostic {code:?}")));
    };
    output::result(&format!("{}: {}\n\n{}\n", info.code, info.title, info.explanation));
    Ok(Answer::Yes)
}
