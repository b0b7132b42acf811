//! The command line of the loader.

use clap::{Parser, Subcommand, ValueEnum};
use netpol_loader::daemon::{self, ask, enforcer::ThisKernel, store::Store};
use netpol_loader::kernel::System;
use netpol_loader::node::{self, AgentFiles, CniFiles};
use netpol_loader::{Error, apply, cut, remove, status};
use netpolc_bundle::wire::LOADER_SOCKET;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

/// Makes the kernel of this network namespace enforce a bundle that netpolc built.
///
/// Exit status: 0 fine; 1 nothing in force, drifted, or bypassed; 2 unusable arguments, bundle or permissions; 3 the kernel
/// or nft cannot do it; 70 a bug. On any failure the rules that were in force stay in force.
#[derive(Debug, Parser)]
#[command(name = "netpol-loader", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring a bundle into force, in one transaction; does nothing if it is in force already.
    Apply {
        /// The directory of the bundle for this node.
        bundle_dir: PathBuf,
        /// What enforces it.
        #[arg(long, value_enum, default_value = "auto")]
        backend: Backend,
        /// What becomes of established connections that the bundle would not let begin.
        #[arg(long, value_enum, default_value = "cut")]
        established: Established,
    },
    /// Say what is in force, and whether another hand changed it.
    Status {
        /// For people or for programs.
        #[arg(long, value_enum, default_value = "human")]
        format: Format,
        /// Compare with this bundle too, object by object.
        #[arg(long, value_name = "BUNDLE_DIR")]
        bundle: Option<PathBuf>,
        /// Where a daemon may listen; if one does, it is asked which addresses it keeps closed.
        #[arg(long, value_name = "PATH", default_value = LOADER_SOCKET)]
        socket: PathBuf,
    },
    /// Take out everything of ours, and nothing else. A running daemon would put it back: end it first.
    Remove {
        /// Also what `run --cni` makes, and what it wrote down.
        #[arg(long)]
        cni: bool,
        #[command(flatten)]
        files: CniFiles,
        #[command(flatten)]
        agent: AgentFiles,
        /// Where the daemon wrote down what is in force.
        #[arg(long, value_name = "DIR", default_value = "/var/lib/netpolc")]
        state: PathBuf,
        /// Where a daemon may listen; if one does, that is said.
        #[arg(long, value_name = "PATH", default_value = LOADER_SOCKET)]
        socket: PathBuf,
    },
    /// The daemon of a node: takes bundles over a socket, keeps them in force, and leaves them in force when it ends.
    Run {
        /// What enforces the bundles.
        #[arg(long, value_enum, default_value = "auto")]
        backend: Backend,
        /// What becomes of established connections that a bundle would not let begin.
        #[arg(long, value_enum, default_value = "cut")]
        established: Established,
        #[command(flatten)]
        options: Box<daemon::Options>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Backend {
    /// The best that this kernel and the bundle have: eBPF, else nftables, else iptables.
    Auto,
    /// eBPF.
    Ebpf,
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
}

impl Backend {
    fn wanted(self) -> Option<netpolc_bundle::Backend> {
        match self {
            Backend::Auto => None,
            Backend::Ebpf => Some(netpolc_bundle::Backend::Ebpf),
            Backend::Nftables => Some(netpolc_bundle::Backend::Nftables),
            Backend::Iptables => Some(netpolc_bundle::Backend::Iptables),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Established {
    /// They end.
    Cut,
    /// They live on.
    Keep,
}

impl From<Established> for cut::Established {
    fn from(established: Established) -> cut::Established {
        match established {
            Established::Cut => cut::Established::Cut,
            Established::Keep => cut::Established::Keep,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The message of a panic is on standard error already.
    let result = std::panic::catch_unwind(|| run(cli.command)).unwrap_or(Ok(70));
    ExitCode::from(result.unwrap_or_else(|error| {
        say(&format!("error: {error}"));
        error.exit_code()
    }))
}

fn run(command: Command) -> Result<u8, Error> {
    let mut kernel = System::new();
    match command {
        Command::Apply { bundle_dir, backend, established } => {
            let report = apply::apply(&mut kernel, &bundle_dir, backend.wanted(), established.into())?;
            report.notes.iter().for_each(|note| say(&format!("note: {note}")));
            answer(&format!("{report}\n"))?;
        }
        Command::Run { backend, established, options } => {
            let enforcer = ThisKernel::new(backend.wanted());
            daemon::run(*options, established.into(), Box::new(enforcer))?;
        }
        Command::Status { format, bundle, socket } => {
            let mut status = status::status(&mut kernel, bundle.as_deref())?;
            let daemon = ask::daemon(&socket);
            if let Some(said) = &daemon {
                said.complete(&mut status);
            }
            answer(&match format {
                Format::Human => {
                    format!("{status}{}", daemon.map(|said| said.to_string()).unwrap_or_default())
                }
                Format::Json => json(&status, daemon.as_ref())?,
            })?;
            return Ok(u8::from(!status.in_force || !status.bypassed.is_empty()));
        }
        Command::Remove { cni, files, agent, state, socket } => {
            if UnixStream::connect(&socket).is_ok() {
                let place = socket.display();
                say(&format!(
                    "note: a daemon answers at {place} and will make it anew: end it, and remove again"
                ));
            }
            let removed = [remove::remove(&mut kernel)?, node::open_all()?].concat();
            answer(&match removed.as_slice() {
                [] => "unchanged: there is nothing of netpolc\n".to_owned(),
                names => format!("removed: {}\n", names.join(", ")),
            })?;
            if cni {
                for line in [node::remove(&files, &agent, &state)?, Store::new(state).forget()?].concat() {
                    answer(&format!("removed: {line}\n"))?;
                }
            }
        }
    }
    Ok(0)
}

fn json(status: &status::Status, daemon: Option<&ask::Said>) -> Result<String, Error> {
    let fail = |error: serde_json::Error| write_error(error.into());
    let mut value = serde_json::to_value(status).map_err(fail)?;
    if let (Some(fields), Some(daemon)) = (value.as_object_mut(), daemon) {
        fields.extend(daemon.fields().map_err(fail)?);
    }
    let text = serde_json::to_string_pretty(&value).map_err(fail)?;
    Ok(text + "\n")
}

fn write_error(source: std::io::Error) -> Error {
    Error::Io { what: "standard output".into(), source }
}

fn answer(text: &str) -> Result<(), Error> {
    std::io::stdout().write_all(text.as_bytes()).map_err(write_error)
}

/// To people. If standard error is gone, there is no one to tell.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "netpol-loader: {line}");
}
