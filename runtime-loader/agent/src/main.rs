//! The command line of the agent.

use clap::Parser;
use netpol_agent::options::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    match netpol_agent::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            netpol_agent::log::error("stopped", &[("error", &error)]);
            ExitCode::from(error.exit_code())
        }
    }
}
