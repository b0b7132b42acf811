//! The artifacts of a bundle, read back and ready to be asked.

use netpolc_bundle::{Artifact, Backend, Bundle, BundleError, ReadBack};
use netpolc_ir::proof::{self, Proof, Reference, Witness, prove};
use std::collections::BTreeMap;

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

/// Every artifact of a bundle by itself.
pub struct Machines(Vec<(Artifact, Box<dyn proof::Artifact>)>);

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
        let mut list: Vec<(Artifact, Box<dyn proof::Artifact>)> = Vec::new();
        if let Some(pair) = read.ebpf {
            for artifact in [pair.cut, pair.keep] {
                let machine = netpolc_ebpf::machine::Machine::new(&artifact)
                    .map_err(|e| MachinesError::Artifact(Artifact::Ebpf, e.to_string()))?;
                list.push((Artifact::Ebpf, Box::new(machine)));
            }
        }
        if let Some(ruleset) = read.nftables {
            list.push((Artifact::Nftables, Box::new(netpolc_nftables::decode::Machine::new(ruleset))));
        }
        let iptables = [(Artifact::Iptables, read.iptables), (Artifact::IptablesPlain, read.iptables_plain)];
        for (artifact, ruleset) in iptables {
            if let Some(ruleset) = ruleset {
                let machine = netpolc_iptables::decode::Machine::new(ruleset)
                    .map_err(|e| MachinesError::Artifact(artifact, e.to_string()))?;
                list.push((artifact, Box::new(machine)));
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

    /// Proves all of them.
    ///
    /// # Errors
    /// The first packet that one judges otherwise than the reference.
    pub fn prove(
        &mut self,
        reference: &dyn Reference,
        node: &str,
    ) -> Result<BTreeMap<Artifact, Proof>, (Artifact, Box<Witness>)> {
        let mut proofs = BTreeMap::new();
        for (artifact, machine) in &mut self.0 {
            let proof = prove(reference, machine.as_mut(), node).map_err(|witness| (*artifact, witness))?;
            proofs.insert(*artifact, proof);
        }
        Ok(proofs)
    }
}
