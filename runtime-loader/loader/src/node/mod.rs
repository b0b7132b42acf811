//! The network of a node, beyond the policies: what makes pods on it reachable, and where our plugin is called.
//!
//! All of it is made idempotently and looked after: what another hand changes is made anew.

pub mod chain;
pub mod cidr;
pub mod closed;
pub mod conflist;
pub mod files;
pub mod ipam;
pub mod masquerade;
pub mod own_tables;
pub mod program;
pub mod routes;
pub mod sysctl;
mod wanted;

pub use closed::Closing;
pub use wanted::{RANGES, SHORTEST};

use crate::Error;
use chain::Place;
use cidr::Cidr;
use clap::{Args, ValueEnum};
use closed::Closed;
use conflist::Conf;
use masquerade::Masquerade;
use netpolc_bundle::wire::{AGENT_SOCKET, AGENT_STATE, Network};
use own_tables::OwnTables;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use wanted::{Wanted, check, check_size};

/// What the loader does about the node's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CniMode {
    /// Nothing.
    None,
    /// The whole of it: the node has no CNI plugin of its own.
    Ptp,
    /// Only our plugin, as the last of the node's own CNI configuration.
    Chain,
}

/// Where CNI's files are.
#[derive(Debug, Clone, Args)]
pub struct CniFiles {
    /// Where the runtime looks for network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Where the runtime looks for plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
}

/// What an agent leaves behind when it ends.
#[derive(Debug, Clone, Args)]
pub struct AgentFiles {
    /// Where the agent listened.
    #[arg(long, value_name = "PATH", default_value = AGENT_SOCKET)]
    pub agent_socket: PathBuf,
    /// Where the agent remembered which pods the plugin announced.
    #[arg(long, value_name = "FILE", default_value = AGENT_STATE)]
    pub agent_state: PathBuf,
}

/// How the node's network is made.
#[derive(Debug, Clone, Args)]
pub struct NodeOptions {
    /// What to do about the node's network: nothing, all of it (ptp), or chain our plugin into what is there.
    #[arg(long, value_enum, default_value = "none")]
    pub cni: CniMode,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take it for the help of the whole")]
    pub files: CniFiles,
    /// The plugin to install; by default netpol-cni beside this program.
    #[arg(long, value_name = "FILE")]
    pub cni_plugin: Option<PathBuf>,
    /// Where the plugin will find the agent.
    #[arg(long, value_name = "PATH", default_value = AGENT_SOCKET)]
    pub agent_socket: PathBuf,
    /// Where host-local keeps which addresses are given out; after a boot there are no pods, so none should be.
    #[arg(long, value_name = "DIR", default_value = "/run/cni-ipam-state")]
    pub ipam_dir: PathBuf,
    /// The MTU of pods' interfaces; by default that of the interface which the default route leads to.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(576..=65_535))]
    pub mtu: Option<u32>,
    /// Where the kernel's switches are; in a container they may be mounted elsewhere.
    #[arg(long, value_name = "DIR", default_value = "/proc/sys")]
    pub proc_sys: PathBuf,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What had to be changed.
    pub changes: Vec<String>,
    /// What is worth saying.
    pub notes: Vec<String>,
    /// What could not be done; the rest was.
    pub faults: Vec<String>,
}

/// The node's network.
#[derive(Debug)]
pub struct Node {
    options: NodeOptions,
    backup_dir: PathBuf,
    masquerade: Masquerade,
    closed: Closed,
    /// Why other addresses may be given out than those that are closed.
    unknown: Vec<String>,
}

impl Node {
    /// The node's network, with a directory for what must be remembered.
    pub fn new(options: NodeOptions, state: &Path) -> Node {
        Node {
            options,
            backup_dir: backup_dir(state),
            masquerade: Masquerade::default(),
            closed: Closed::default(),
            unknown: Vec::new(),
        }
    }

    /// What is done about it.
    pub fn mode(&self) -> CniMode {
        self.options.cni
    }

    /// Whether changes in the directory of configurations matter.
    pub fn watched(&self) -> Option<&Path> {
        (self.options.cni != CniMode::None).then_some(self.options.files.cni_conf_dir.as_path())
    }

    /// Makes the network, as far as it is known.
    ///
    /// # Errors
    /// If it makes no sense; then nothing was done.
    pub fn converge(&mut self, network: Option<&Network>) -> Result<Outcome, Error> {
        match (self.options.cni, network) {
            (CniMode::None, _) | (CniMode::Ptp, None) => Ok(Outcome::default()),
            (CniMode::Chain, Some(network)) => check_size(network).map(|()| self.chain(Some(network))),
            (CniMode::Chain, None) => Ok(self.chain(None)),
            (CniMode::Ptp, Some(network)) => check(network).map(|wanted| self.ptp(&wanted, network)),
        }
    }

    /// Opens these addresses of the node's ranges, and closes all others ([`closed`]); gives those that were open before.
    /// For bundles that are in force.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn open(&mut self, known: BTreeSet<IpAddr>) -> Result<Vec<IpAddr>, Error> {
        self.closed.open(known)
    }

    /// What is closed, and why not everything that the node may give out.
    pub fn closing(&self) -> Closing {
        let because = |why: &str| Closing { ranges: Vec::new(), not: vec![why.to_owned()] };
        if self.options.cni == CniMode::None {
            return because("the loader was started with --cni=none");
        }
        if let Some(why) = self.closed.unable() {
            return because(why);
        }
        match self.closed.ranges() {
            None => because("no bundle is in force yet"),
            Some(ranges) => {
                Closing { ranges: ranges.iter().map(Cidr::to_string).collect(), not: self.unknown.clone() }
            }
        }
    }

    /// Closes what the configuration of another CNI says that this node gives out, and notes what is wrong with it.
    fn close_in_chain(
        &mut self,
        network: Option<&Network>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<String>, Error> {
        let dir = &self.options.files.cni_conf_dir;
        let Some(network) = network else {
            self.unknown = vec!["the agent has not said yet which addresses other nodes have".to_owned()];
            return Ok(Vec::new());
        };
        let (path, conf) = match chain::first(dir) {
            Ok(Some(first)) => first,
            // What was closed stays so while the other CNI writes its file anew.
            Ok(None) => {
                self.unknown = vec![format!("{}: there is no CNI configuration", dir.display())];
                return Ok(Vec::new());
            }
            Err(error) => {
                self.unknown = vec![error.to_string()];
                return Ok(Vec::new());
            }
        };
        let of_file = |what: String| format!("{}: {what}", path.display());
        notes.extend(ipam::masquerading(&conf, network).map(of_file));
        let own = ipam::own(&conf, network);
        self.unknown = own.unknown.into_iter().map(of_file).collect();
        self.closed.close(&own.ranges)
    }

    fn chain(&mut self, network: Option<&Network>) -> Outcome {
        let mut outcome = Outcome::default();
        self.chain_in(&mut outcome);
        match self.close_in_chain(network, &mut outcome.notes) {
            Ok(changes) => outcome.changes.extend(changes),
            Err(error) => outcome.faults.push(format!("closing addresses without a pod: {error}")),
        }
        outcome
    }

    fn chain_in(&self, outcome: &mut Outcome) {
        if !self.install(outcome) {
            return;
        }
        let place = Place { conf_dir: &self.options.files.cni_conf_dir, backup_dir: &self.backup_dir };
        let stale = files::remove(&place.conf_dir.join(conflist::FILE));
        let doubt = self.elsewhere();
        match stale.and_then(|_| chain::chain(&place, &conflist::plugin(&self.options.agent_socket))) {
            Ok(Some(path)) => {
                outcome.changes.push(format!("{} chained into {}", conflist::PLUGIN, path.display()));
                outcome.changes.extend(doubt);
            }
            Ok(None) => {}
            Err(error) => outcome.faults.push(error.to_string()),
        }
    }

    /// A runtime that looks for plugins elsewhere than where we install ours starts no pod with it. One that looks in several
    /// places may have the others in another one, so this is said once and is no fault.
    fn elsewhere(&self) -> Option<String> {
        let CniFiles { cni_conf_dir, cni_bin_dir } = &self.options.files;
        let (path, conf) = chain::first(cni_conf_dir).ok()??;
        let found = chain::others(&conf).iter().any(|name| cni_bin_dir.join(name).is_file());
        let (path, dir) = (path.display(), cni_bin_dir.display());
        (!found).then(|| format!("no other plugin of {path} is in {dir}: does the runtime look there?"))
    }

    fn ptp(&mut self, wanted: &Wanted, network: &Network) -> Outcome {
        let mut outcome = Outcome::default();
        let (changes, notes) = sysctl::forward(&self.options.proc_sys, &wanted.pods);
        outcome.changes.extend(changes);
        outcome.notes.extend(notes);
        match routes::converge(&wanted.routes) {
            Ok(done) => {
                outcome.changes.extend(done.changes);
                outcome.faults.extend(done.faults);
            }
            Err(error) => outcome.faults.push(format!("the routes cannot be read: {error}")),
        }
        match self.masquerade.converge(&wanted.pods, &wanted.cluster) {
            Ok(changes) => outcome.changes.extend(changes),
            Err(error) => outcome.faults.push(format!("masquerade: {error}")),
        }
        match self.closed.close(&wanted.pods) {
            Ok(changes) => outcome.changes.extend(changes),
            Err(error) => outcome.faults.push(format!("closing addresses without a pod: {error}")),
        }
        if let Some(why) = self.closed.unable() {
            outcome.notes.push(format!("addresses that no pod has yet are not closed: {why}"));
        }
        // The configuration comes last: with it the runtime begins to start pods.
        if self.install(&mut outcome) {
            self.configure(wanted, network, &mut outcome);
        }
        outcome
    }

    /// Puts our plugin where the runtime finds it; whether it is there.
    fn install(&self, outcome: &mut Outcome) -> bool {
        let beside = || std::env::current_exe().ok().map(|path| path.with_file_name(conflist::PLUGIN));
        let Some(from) = self.options.cni_plugin.clone().or_else(beside) else {
            outcome.faults.push(format!("where this program is, and so {}, is not known", conflist::PLUGIN));
            return false;
        };
        let to = self.options.files.cni_bin_dir.join(conflist::PLUGIN);
        match files::install(&from, &to) {
            Ok(false) => true,
            Ok(true) => {
                outcome.changes.push(format!("{} installed", to.display()));
                true
            }
            Err(error) => {
                outcome.faults.push(format!("{} cannot be installed: {error}", conflist::PLUGIN));
                false
            }
        }
    }

    fn configure(&self, wanted: &Wanted, network: &Network, outcome: &mut Outcome) {
        let CniFiles { cni_conf_dir, cni_bin_dir } = &self.options.files;
        let path = cni_conf_dir.join(conflist::FILE);
        // Who gives out the same addresses from a list of its own would give them to two pods.
        if !path.exists()
            && let Ok(Some((other, conf))) = chain::first(cni_conf_dir)
            && ipam::own(&conf, network)
                .ranges
                .iter()
                .any(|given| wanted.pods.iter().any(|own| own.contains(given)))
        {
            let other = other.display();
            outcome.notes.push(format!(
                "{other} gives out this node's addresses already, so {} is chained into it",
                conflist::PLUGIN
            ));
            outcome.notes.extend(ipam::masquerading(&conf, network).map(|what| format!("{other}: {what}")));
            return self.chain_in(outcome);
        }
        let missing: Vec<&str> =
            ["ptp", "host-local"].into_iter().filter(|name| !cni_bin_dir.join(name).is_file()).collect();
        if !missing.is_empty() {
            let dir = cni_bin_dir.display();
            outcome.faults.push(format!("the node lacks the plugins {} in {dir}", missing.join(" and ")));
            return;
        }
        let conf = Conf {
            ranges: &wanted.pods,
            mtu: self.options.mtu.or_else(routes::default_mtu),
            portmap: cni_bin_dir.join("portmap").is_file(),
            agent_socket: &self.options.agent_socket,
            ipam_dir: &self.options.ipam_dir,
        };
        match files::write(&path, conflist::text(&conf).as_bytes(), 0o644) {
            Ok(true) => outcome.changes.push(format!("{} written", path.display())),
            Ok(false) => {}
            Err(error) => outcome.faults.push(error.to_string()),
        }
        let first = chain::confs(cni_conf_dir).ok().and_then(|confs| confs.into_iter().next());
        if let Some(other) = first.filter(|first| *first != path) {
            outcome.notes.push(format!("runtimes take {} and not ours", other.display()));
        }
    }
}

/// Opens all addresses again; what there was.
///
/// # Errors
/// If nft refuses.
pub fn open_all() -> Result<Vec<String>, Error> {
    program::find(&["nft"]).map_or(Ok(Vec::new()), |nft| OwnTables::new(closed::TABLE).remove(&nft))
}

/// Takes out all that a [`Node`] makes but switches of the kernel, which others rely on by now; what there was.
///
/// And what the agent remembers: without the plugin it would be wrong soon, and another agent would believe it more than the
/// API server.
///
/// # Errors
/// If something cannot be taken out; the rest is.
pub fn remove(files: &CniFiles, agent: &AgentFiles, state: &Path) -> Result<Vec<String>, Error> {
    let (mut done, mut failed) = (Vec::new(), None);
    let mut keep = |result: Result<Vec<String>, Error>| match result {
        Ok(changes) => done.extend(changes),
        Err(error) => failed = Some(error),
    };
    let gone = |path: PathBuf| {
        files::remove(&path)
            .map(|was| if was { vec![format!("{} removed", path.display())] } else { Vec::new() })
    };
    // In the order in which nothing ever names what is gone.
    keep(gone(files.cni_conf_dir.join(conflist::FILE)));
    let backup_dir = backup_dir(state);
    let unchained = chain::unchain(&Place { conf_dir: &files.cni_conf_dir, backup_dir: &backup_dir });
    keep(unchained.map(|paths| {
        paths.iter().map(|path| format!("{} taken out of {}", conflist::PLUGIN, path.display())).collect()
    }));
    keep(gone(files.cni_bin_dir.join(conflist::PLUGIN)));
    keep(gone(agent.agent_state.clone()));
    keep(gone(agent.agent_socket.clone()));
    let no_routes = routes::converge(&BTreeMap::new()).map_err(|error| Error::io("routes", error));
    keep(no_routes.map(|done| [done.changes, done.faults].concat()));
    keep(masquerade::remove());
    // It is empty by now, unless another hand put something there.
    let _ = std::fs::remove_dir(&backup_dir);
    failed.map_or(Ok(done), Err)
}

fn backup_dir(state: &Path) -> PathBuf {
    state.join("cni-before")
}
