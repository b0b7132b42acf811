//! The commands.

use crate::agent::ask;
use crate::config::{Config, NEWEST, VERSIONS, read, version};
use crate::error::{Code, Failure};
use crate::parameters::{Attachment, Command, attachment, command};
use crate::result::{addresses, pass_on};
use netpolc_bundle::wire::{FromAgent, Sandbox, ToAgent};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long an agent may be away or not ready while it is exchanged for another, and how often to look.
const EXCHANGED: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(250);

/// Runs the command of the environment; gives what is to be printed.
pub(crate) fn run(from: &mut dyn Read) -> Result<String, Failure> {
    let command = command()?;
    let value = read(from)?;
    if command == Command::Version {
        return Ok(versions(&value));
    }
    let since = match command {
        Command::Check => "0.4.0",
        Command::Status | Command::Gc => "1.1.0",
        Command::Add | Command::Del | Command::Version => VERSIONS[0],
    };
    let written = version(&value)?;
    if rank(written) < rank(since) {
        let details = format!("version {written} has no such command; it came with {since}");
        return Err(Failure::new(Code::Version, "incompatible CNI version", details).in_version(written));
    }
    let config = Config::new(value)?;
    let done = match command {
        Command::Add => add(&config),
        Command::Del => del(&config),
        Command::Check => check(&config),
        Command::Status => status(&config),
        Command::Gc => gc(&config),
        Command::Version => Ok(String::new()),
    };
    done.map_err(|failure| failure.in_version(written))
}

fn rank(version: &str) -> usize {
    VERSIONS.iter().position(|v| *v == version).unwrap_or(0)
}

fn versions(value: &Value) -> String {
    let version = value["cniVersion"].as_str().unwrap_or(NEWEST);
    json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string()
}

fn sandbox(attachment: Attachment, addresses: Vec<IpAddr>) -> Sandbox {
    let Attachment { container, interface, pod, uid } = attachment;
    Sandbox { container, interface, pod, uid, addresses }
}

/// The result of the plugins before, which these commands cannot do without.
fn previous(config: &Config) -> Result<(Value, Vec<IpAddr>), Failure> {
    let wrong = |details: String| Failure::new(Code::Config, "invalid network configuration", details);
    let previous = config.previous.clone().ok_or_else(|| {
        wrong("there is no prevResult: this plugin must stand behind one that makes the network".to_owned())
    })?;
    let addresses = addresses(&previous).map_err(|e| wrong(format!("prevResult: {e}")))?;
    if addresses.is_empty() {
        return Err(wrong("prevResult has no address of the pod".to_owned()));
    }
    Ok((previous, addresses))
}

/// Asks; whatever is not done is a failure.
fn demand(config: &Config, request: ToAgent) -> Result<(), Failure> {
    match ask(&config.socket, request, config.patience) {
        Ok(FromAgent::Done) => Ok(()),
        Ok(FromAgent::Failed { message, retry: true }) => {
            Err(Failure::new(Code::TryAgain, "the agent is not ready", message))
        }
        Ok(FromAgent::Failed { message, retry: false }) => {
            Err(Failure::new(Code::Refused, "the agent refuses", message))
        }
        Err(error) => {
            let details = format!("{}: {error}", config.socket.display());
            Err(Failure::new(Code::TryAgain, "the agent cannot be reached", details))
        }
    }
}

/// The pod's network is made: it may be used once the policies are in force.
fn add(config: &Config) -> Result<String, Failure> {
    let attachment = attachment(Command::Add)?;
    let (result, addresses) = previous(config)?;
    let result = pass_on(result, &config.version)?;
    demand(config, ToAgent::Add(sandbox(attachment, addresses)))?;
    Ok(result)
}

/// The pod's network is about to go. This never fails for want of an agent: one that starts later learns from the API
/// server and from the runtime's `GC`, and no other pod gets an address before the agent knows of that pod.
fn del(config: &Config) -> Result<String, Failure> {
    let attachment = attachment(Command::Del)?;
    let addresses = config.previous.as_ref().and_then(|p| addresses(p).ok()).unwrap_or_default();
    forgive(demand(config, ToAgent::Del(sandbox(attachment, addresses))));
    Ok(String::new())
}

fn check(config: &Config) -> Result<String, Failure> {
    let attachment = attachment(Command::Check)?;
    let (_, addresses) = previous(config)?;
    demand(config, ToAgent::Check(sandbox(attachment, addresses)))?;
    Ok(String::new())
}

fn status(config: &Config) -> Result<String, Failure> {
    let unavailable = |f: Failure| Failure::new(Code::NotAvailable, f.message, f.details);
    // Runtimes take the answer for the node's, and Kubernetes then takes the node's pods out of Services. An agent that is exchanged
    // is back in a moment.
    let until = Instant::now() + config.patience.min(EXCHANGED);
    loop {
        match demand(config, ToAgent::Status) {
            Err(failure) if failure.code == Code::TryAgain && Instant::now() < until => {
                std::thread::sleep(AGAIN)
            }
            done => return done.map(|()| String::new()).map_err(unavailable),
        }
    }
}

/// All attachments but those listed are gone. Without a list nothing is known to be gone.
fn gc(config: &Config) -> Result<String, Failure> {
    let valid = config.valid.clone().ok_or_else(|| {
        let details = "cni.dev/valid-attachments is missing";
        Failure::new(Code::Config, "invalid network configuration", details)
    })?;
    demand(config, ToAgent::Gc { valid })?;
    Ok(String::new())
}

/// Says what could not be done where that is no failure of the command. Runtimes log standard error.
fn forgive(done: Result<(), Failure>) {
    if let Err(failure) = done {
        let _ = writeln!(std::io::stderr(), "netpol-cni: {failure}");
    }
}
