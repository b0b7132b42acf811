//! `netpolc`: compiles Kubernetes network policies to what a Linux kernel enforces, and proves it.

mod args;
mod commands;
mod failure;
mod flows;
mod input;
mod output;
mod pipeline;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match commands::run(args) {
        Ok(answer) => answer.into(),
        Err(failure) => failure.report(),
    }
}
