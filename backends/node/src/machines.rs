//! The artifacts of a bundle, read back and ready to be asked.

use netpolc_bundle::bpf::{Pair, object};
use netpolc_bundle::{Artifact, Backend, Bundle, BundleError, ReadBack, ipt, nft};
use netpolc_ir::proof;
use std::sync::Arc;

/// Why artifacts cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum MachinesError {
    /// The bundle is not sound.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Rules do not fit together.
    #[error("{0:?}: {1}")]
    Artifact(Artifact, String),
    /// The bundle has nothing for a backend.
    #[error("the bundle has no artifacts for {0}")]
    Missing(Backend),
}

/// What can be asked about packets.
pub(crate) type Machine = Box<dyn proof::Artifact>;

pub(crate) fn ebpf(object: &object::Artifact) -> Result<Machine, MachinesError> {
    let machine = netpolc_ebpf::machine::Machine::new(object);
    Ok(Box::new(machine.map_err(|e| MachinesError::Artifact(Artifact::Ebpf, e.to_string()))?))
}

/// Both programs at once, if they are those that this version emits.
pub(crate) fn both_of_ebpf(pair: &Pair) -> Result<Option<netpolc_ebpf::machine::Machine>, MachinesError> {
    let machine = netpolc_ebpf::machine::Machine::of_both(pair);
    machine.map_err(|e| MachinesError::Artifact(Artifact::Ebpf, e.to_string()))
}

pub(crate) fn nftables(ruleset: impl Into<Arc<nft::Ruleset>>) -> Machine {
    Box::new(netpolc_nftables::decode::Machine::new(ruleset))
}

pub(crate) fn iptables(
    artifact: Artifact,
    ruleset: impl Into<Arc<ipt::Ruleset>>,
) -> Result<Machine, MachinesError> {
    let machine = netpolc_iptables::decode::Machine::new(ruleset);
    Ok(Box::new(machine.map_err(|e| MachinesError::Artifact(artifact, e.to_string()))?))
}

/// Every artifact of a bundle by itself.
pub struct Machines(Vec<(Artifact, Machine)>);

impl std::fmt::Debug for Machines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(artifact, _)| artifact)).finish()
    }
}

impl Machines {
    /// Reads all artifacts of a bundle back.
    ///
    /// # Errors
    /// If the bundle is not sound.
    pub fn open(bundle: &Bundle) -> Result<Machines, MachinesError> {
        Machines::new(bundle.read_back()?)
    }

    /// From artifacts that were read back.
    ///
    /// # Errors
    /// If rules do not fit together.
    pub fn new(read: ReadBack) -> Result<Machines, MachinesError> {
        let mut list: Vec<(Artifact, Machine)> = Vec::new();
        if let Some(pair) = read.ebpf {
            list.push((Artifact::Ebpf, ebpf(&pair.cut)?));
            list.push((Artifact::Ebpf, ebpf(&pair.keep)?));
        }
        if let Some(ruleset) = read.nftables {
            list.push((Artifact::Nftables, nftables(ruleset)));
        }
        let both = [(Artifact::Iptables, read.iptables), (Artifact::IptablesPlain, read.iptables_plain)];
        for (artifact, ruleset) in both {
            if let Some(ruleset) = ruleset {
                list.push((artifact, iptables(artifact, ruleset)?));
            }
        }
        Ok(Machines(list))
    }

    /// The machine that a backend's rules are by default: with ipsets, and cutting what is denied.
    ///
    /// # Errors
    /// If the bundle has no artifacts for it.
    pub fn take(self, backend: Backend) -> Result<Box<dyn proof::Artifact>, MachinesError> {
        let mut found = self.0.into_iter().filter(|(artifact, _)| artifact.backend() == backend);
        found.next().map(|(_, machine)| machine).ok_or(MachinesError::Missing(backend))
    }
}
