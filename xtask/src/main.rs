//! Repository tasks: `cargo xtask demo`, `ci`, `deps`, `docs`.
//!
//! They run the same cargo that runs them, print every command before it runs, and end with exit status 1 if something
//! does not hold.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

mod ci;
mod demo;
#[cfg(test)]
mod deploy;
mod deps;
mod docs;
mod shell;
mod source;

use std::process::ExitCode;

const HELP: &str = "\
Repository tasks of netpolc.

Usage: cargo xtask <TASK>

Tasks:
  demo          Build the course sample, show its rules and, where this machine lets it, try them with real packets
  ci            Install what the tests need and check everything: formatting, lints, docs, dependencies, all tests
  deps          Check who depends on whom, and who touches the system
  docs          Write the generated pages of docs/
  docs --check  Check that they are up to date, that links lead somewhere and that docs/limits.md is true
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["demo"] => demo::run(),
        ["ci"] => ci::run_all(),
        ["deps"] => deps::run(),
        ["docs"] => docs::write(),
        ["docs", "--check"] => docs::check(),
        ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
