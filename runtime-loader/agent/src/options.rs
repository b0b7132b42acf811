//! The arguments.

use crate::Error;
use clap::{Parser, Subcommand, ValueEnum};
use netpolc_bundle::Backend;
use netpolc_bundle::wire::{AGENT_SOCKET, AGENT_STATE, LOADER_SOCKET};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Watches the API server, compiles network policies for this node, and hands them to `netpol-loader run`.
///
/// Exit status: 0 told to stop; 2 unusable arguments or circumstances.
#[derive(Debug, Parser)]
#[command(name = "netpol-agent", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Something else than to run.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// The name of this node; the host's name if neither this nor the variable is given.
    #[arg(long, env = "NODE_NAME")]
    node: Option<String>,
    /// How to reach the API server; in a pod, its service account is used.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where `netpol-loader run` listens.
    #[arg(long, value_name = "PATH", default_value = LOADER_SOCKET)]
    loader_socket: PathBuf,
    /// Where to listen for the CNI plugin.
    #[arg(long, value_name = "PATH", default_value = AGENT_SOCKET)]
    socket: PathBuf,
    /// Where to remember which pods the plugin announced.
    #[arg(long, value_name = "FILE", default_value = AGENT_STATE)]
    state: PathBuf,
    /// Who makes the pods' network.
    #[arg(long, value_enum, default_value = "chain")]
    cni: Cni,
    /// What to compile for: what the loader says that it takes (`auto`), or these, of which it takes the best that its
    /// kernel has.
    #[arg(long, value_enum, value_name = "BACKENDS", value_delimiter = ',', default_value = "auto")]
    backend: Vec<BackendName>,
    /// Take policies from these files and directories instead of from the API server: those that were reviewed, say.
    /// Namespaces, nodes and pods are watched as ever. May be given several times.
    #[arg(long, value_name = "PATH")]
    policies: Vec<PathBuf>,
    /// Take the policies that this bundle was built of, `DIR` or `DIR/NODE`: those that CI proved. Of the bundle its
    /// manifest and its policies are needed.
    #[arg(long, value_name = "DIR", conflicts_with = "policies")]
    bundle: Option<PathBuf>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `off` for nowhere.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9475")]
    metrics_listen: String,
    /// How long a new pod waits to be known and in force before the plugin is told to try again.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u64).range(1..=600))]
    add_timeout: u64,
}

/// Something else than to run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write the state of the cluster to standard output, for `netpolc` in CI.
    ///
    /// Namespaces, nodes and pods, each with no more than what policies need, as one JSON document that does not depend
    /// on the order in which the server lists them.
    Collect {
        /// How to reach the API server; in a pod, its service account is used.
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// The cluster's policies too. Those of CI are in its repository.
        #[arg(long)]
        policies: bool,
    },
}

/// A backend as it is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendName {
    Auto,
    Ebpf,
    Nftables,
    Iptables,
}

/// Who makes the pods' network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cni {
    /// The loader, with the standard plugins `ptp` and `host-local`, as the Node objects ask for.
    Ptp,
    /// Another CNI plugin; ours is chained behind it.
    Chain,
    /// Another CNI plugin, and ours is not installed: pods are known from the API server alone.
    None,
}

/// The arguments, ready to be used.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the arguments of the same names are documented")]
pub struct Options {
    pub node: String,
    pub kubeconfig: Option<PathBuf>,
    pub loader_socket: PathBuf,
    pub socket: PathBuf,
    pub state: PathBuf,
    pub cni: Cni,
    /// `None` is what the loader takes.
    pub backends: Option<Vec<Backend>>,
    pub policies: Vec<PathBuf>,
    pub bundle: Option<PathBuf>,
    pub metrics_listen: Option<SocketAddr>,
    pub add_timeout: Duration,
}

impl Cli {
    /// Fills in what depends on the machine.
    pub(crate) fn resolve(self) -> Result<Options, Error> {
        let node = match self.node.filter(|n| !n.is_empty()) {
            Some(node) => node,
            None => hostname()?,
        };
        let metrics_listen = match self.metrics_listen.as_str() {
            "off" => None,
            text => {
                let address = text.parse().map_err(|e| {
                    Error::Usage(format!(
                        "--metrics-listen {text:?}: {e}; it is an address and a port, or `off`"
                    ))
                })?;
                Some(address)
            }
        };
        let backends = listed(&self.backend)?;
        Ok(Options {
            node,
            kubeconfig: self.kubeconfig,
            loader_socket: self.loader_socket,
            socket: self.socket,
            state: self.state,
            cni: self.cni,
            backends,
            policies: self.policies,
            bundle: self.bundle,
            metrics_listen,
            add_timeout: Duration::from_secs(self.add_timeout),
        })
    }
}

/// The backends that are listed; `None` for `auto`, which stands alone.
fn listed(names: &[BackendName]) -> Result<Option<Vec<Backend>>, Error> {
    if names == [BackendName::Auto] {
        return Ok(None);
    }
    let backend = |name: &BackendName| match name {
        BackendName::Auto => Err(Error::Usage("--backend: `auto` stands alone".to_owned())),
        BackendName::Ebpf => Ok(Backend::Ebpf),
        BackendName::Nftables => Ok(Backend::Nftables),
        BackendName::Iptables => Ok(Backend::Iptables),
    };
    names.iter().map(backend).collect::<Result<_, _>>().map(Some)
}

/// As the kubelet names its node unless told otherwise: the host's name in lower case.
fn hostname() -> Result<String, Error> {
    let path = "/proc/sys/kernel/hostname";
    let name = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    Ok(name.trim().to_lowercase())
}
