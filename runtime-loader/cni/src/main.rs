//! `netpol-cni`: a chained CNI plugin. It tells the agent of a pod's addresses, and lets the runtime go on once the
//! policies about the pod are in force; so the pod's first packet is judged.
//!
//! It follows the CNI specification, versions 0.3.1 to 1.1.0: commands and their parameters come in the environment, the
//! configuration on standard input, and results and errors leave as JSON on standard output. It makes no network of its
//! own, so the result of the plugins before it is its own result.
//!
//! It is started for every pod, so it is small: one request to the agent over a Unix socket.

mod agent;
mod command;
mod config;
mod error;
mod parameters;
mod result;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let (text, status) = match command::run(&mut std::io::stdin()) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(), ExitCode::FAILURE),
    };
    if text.is_empty() {
        return status;
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => status,
        // A runtime that did not get the result must not take the pod for connected.
        Err(_) => ExitCode::FAILURE,
    }
}
