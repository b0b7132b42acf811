//! The command line.

use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Compiles Kubernetes network policies to what a Linux kernel enforces, and proves it.
///
/// PATH is a file, a directory (read recursively: .yaml, .yml, .json) or - for standard input.
///
/// Exit status: 0 fine; 1 the answer is no (errors found, a flow differed, a proof failed); 2 unusable arguments or input;
/// 3 a backend cannot express the input; 70 a bug of netpolc.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compile policies and cluster state into a bundle for each node
    Build(BuildArgs),
    /// Report what is wrong with policies and cluster state
    Check(CheckArgs),
    /// Give the verdict for each flow of a file
    Eval(EvalArgs),
    /// Say why a connection is allowed or denied
    Explain(ExplainArgs),
    /// Prove a bundle on disk against the policies
    Verify(VerifyArgs),
    /// Keep the generated rules under version control, and review their changes
    Snapshot(SnapshotArgs),
    /// Try the rules: pods as network namespaces, the artifacts in a real kernel, real packets
    Try(TryArgs),
    /// Write the state of a live cluster as a file, for the other commands (needs netpol-agent)
    Collect(CollectArgs),
    /// Explain a diagnostic code, as E0101
    Code {
        /// The code
        code: String,
    },
}

#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct CollectArgs {
    /// What `netpol-agent collect` takes: --kubeconfig FILE, --policies, --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<std::ffi::OsString>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    /// Files, directories, or - for standard input
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// Directory for the bundles, one folder a node. Replaced as a whole
    #[arg(long, required_unless_present = "emit")]
    pub(crate) out: Option<PathBuf>,
    /// Backends to make artifacts for
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nftables")]
    pub(crate) backend: Vec<Backend>,
    /// Only these nodes
    #[arg(long)]
    pub(crate) node: Vec<String>,
    /// Print a stage instead of writing bundles
    #[arg(long, value_enum)]
    pub(crate) emit: Option<Stage>,
    /// Show what each pass gained and how long each stage took
    #[arg(long)]
    pub(crate) stats: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// nftables scripts
    Nftables,
    /// iptables-restore files
    Iptables,
    /// eBPF objects
    Ebpf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// The resolved cluster and policies
    Model,
    /// The IR as lowered
    Ir,
    /// The IR after all passes
    Optimized,
    /// The folded matrix
    Matrix,
    /// The nftables scripts
    Nftables,
    /// The iptables rules and sets
    Iptables,
    /// What the maps of the eBPF programs hold
    Ebpf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Files, directories, or - for standard input
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// How to report
    #[arg(long, value_enum, default_value = "human")]
    pub(crate) format: CheckFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckFormat {
    /// For people, with the lines in question
    Human,
    /// One JSON document
    Json,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// Workflow commands of GitHub Actions
    Github,
}

#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    /// Files, directories, or - for standard input
    #[arg(required_unless_present = "bundle")]
    pub(crate) paths: Vec<PathBuf>,
    /// Flows, one JSON object a line: {"from":"shop/frontend","to":"shop/db","protocol":"TCP","port":3306}
    #[arg(long)]
    pub(crate) flows: PathBuf,
    /// Whom to ask
    #[arg(long, value_enum, default_value = "model", conflicts_with = "bundle")]
    pub(crate) oracle: Oracle,
    /// Ask the artifacts of this bundle (a node's folder) what they do with the packet as it passes the node
    #[arg(long)]
    pub(crate) bundle: Option<PathBuf>,
    /// Which artifact of the bundle; without it nftables, or else the first that the bundle has
    #[arg(long, value_enum, requires = "bundle")]
    pub(crate) backend: Option<Backend>,
    /// How to answer
    #[arg(long, value_enum, default_value = "jsonl")]
    pub(crate) format: EvalFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EvalFormat {
    /// Each flow with its verdict, one JSON object a line
    Jsonl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Oracle {
    /// The reference semantics
    Model,
    /// The IR as lowered
    Ir,
    /// The IR after all passes, folded
    Optimized,
    /// The plan of the nftables backend, node by node
    Plan,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// Files, directories, or - for standard input
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// Who connects: namespace/pod, node/NAME or an address
    #[arg(long)]
    pub(crate) from: String,
    /// To whom: namespace/pod, node/NAME or an address
    #[arg(long)]
    pub(crate) to: String,
    /// Port and protocol, as 3306/TCP; or ICMP
    #[arg(long)]
    pub(crate) port: String,
    /// How to answer
    #[arg(long, value_enum, default_value = "human")]
    pub(crate) format: HumanOrJson,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HumanOrJson {
    /// For people
    Human,
    /// For machines
    Json,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// A directory that `netpolc build` wrote, or one node's folder in it
    pub(crate) dir: PathBuf,
    /// The policies and the cluster that the bundles must agree with
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// How to answer
    #[arg(long, value_enum, default_value = "human")]
    pub(crate) format: HumanOrJson,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("mode").required(true).args(["check", "accept"])))]
pub(crate) struct SnapshotArgs {
    /// Compare: exit status 1 and the difference if the rules changed
    #[arg(long, value_name = "DIR")]
    pub(crate) check: Option<PathBuf>,
    /// Write the rules as they are now
    #[arg(long, value_name = "DIR")]
    pub(crate) accept: Option<PathBuf>,
    /// The backends whose rules are kept
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nftables")]
    pub(crate) backend: Vec<Backend>,
    /// Files, directories, or - for standard input
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TryArgs {
    /// Files, directories, or - for standard input
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// The backend to try
    #[arg(long, value_enum, default_value = "nftables")]
    pub(crate) backend: Backend,
    /// Flows to send, one JSON object a line; without it: all pairs of pods on the ports that policies and pods name
    #[arg(long)]
    pub(crate) flows: Option<PathBuf>,
    /// How to answer
    #[arg(long, value_enum, default_value = "human")]
    pub(crate) format: HumanOrJson,
}
