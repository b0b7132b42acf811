//! Addresses of pods that come and go while the rules stay.
//!
//! A pod that is like another one, as far as policies can tell, is judged as that one is. So nothing has to be compiled for
//! it: whatever the artifact says of the other one's address, it says of the new one's. The agent says which addresses are
//! alike, for it knows labels and policies; the loader changes what is in force, and knows neither.
//!
//! The artifact then treats the two alike by construction, so what was proven of the one holds for the other. What is
//! lost until the next bundle is that equal policies lead to equal bytes: names of sets are those of their earlier
//! contents.

use crate::artifacts::{EBPF_CUT, EBPF_KEEP, ReadBack};
use crate::bpf::contents::{Contents, Pod};
use crate::bpf::layout::{Map, SHARED};
use crate::bundle::{Bundle, BundleError, Parts};
use crate::manifest::{Artifact, Bindings, LocalPod};
use crate::nft::emit::emit;
use crate::nft::{Version, rebind};
use crate::{artifacts, limits};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Which addresses come and go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebind {
    /// What is in force.
    pub artifact: Artifact,
    /// Its version, which the change is for.
    pub from: Version,
    /// Addresses that no rule shall know any more; some of them may be new at the same time.
    pub gone: Vec<IpAddr>,
    /// New addresses, each with one of the same family that is known before the change: both are judged alike. That one
    /// may be gone with the change, but not be new itself.
    pub like: Vec<(IpAddr, IpAddr)>,
    /// The node's own pods whose addresses change, with all that they have then; none if the pod is gone.
    pub pods: Vec<LocalPod>,
}

/// Why addresses cannot come and go without a new bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unlike(pub String);

impl Rebind {
    /// What can be said of it without the rules.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), Unlike> {
        let fail = |what: &str| Err(Unlike(what.to_owned()));
        let most = limits::LOCAL_PODS.saturating_mul(2);
        if self.gone.len().max(self.like.len()).max(self.pods.len()) > most {
            return fail("too many addresses at once");
        }
        let mut new: Vec<IpAddr> = self.like.iter().map(|(new, _)| *new).collect();
        new.sort_unstable();
        if new.windows(2).any(|pair| pair.first() == pair.last()) {
            return fail("an address is new twice");
        }
        for (addr, known) in &self.like {
            if addr.is_ipv4() != known.is_ipv4() || new.binary_search(known).is_ok() {
                return fail(
                    "an address shall be like one of another family, or like one that is new itself",
                );
            }
        }
        Ok(())
    }

    /// The node's pods after the change.
    ///
    /// # Errors
    /// If an address would have two pods, or if no bundle could have these: the loader could not look after them.
    pub fn bindings(&self, before: &Bindings) -> Result<Bindings, Unlike> {
        let mut pods: BTreeMap<&str, &LocalPod> =
            before.pods.iter().map(|pod| (pod.name.as_str(), pod)).collect();
        for pod in &self.pods {
            match pod.addresses.is_empty() {
                true => drop(pods.remove(pod.name.as_str())),
                false => drop(pods.insert(&pod.name, pod)),
            }
        }
        let mut addresses: Vec<&IpAddr> = pods.values().flat_map(|pod| &pod.addresses).collect();
        addresses.sort_unstable();
        if addresses.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(Unlike("an address of two pods".to_owned()));
        }
        let after = Bindings { pods: pods.into_values().cloned().collect() };
        after.check().map_err(|what| Unlike(what.to_owned()))?;
        Ok(after)
    }
}

/// Changes the contents of maps so that the new addresses are as those that they are like, and gives the entries of pods
/// that differ; one without a value is gone.
///
/// # Errors
/// If that cannot be done; the contents may be half changed then.
pub fn rebind_contents(
    contents: &mut Contents,
    change: &Rebind,
) -> Result<BTreeMap<IpAddr, Option<Pod>>, Unlike> {
    let room = Map::PODS.map(|map| contents.room(map));
    let known: Vec<Option<Pod>> =
        change.like.iter().map(|(_, known)| contents.pods.get(known).copied()).collect();
    let mut changed = BTreeMap::new();
    for addr in &change.gone {
        if contents.pods.remove(addr).is_some() {
            changed.insert(*addr, None);
        }
    }
    let mut next = contents.pods.values().map(|pod| pod.pod).max().unwrap_or(0);
    for ((new, _), like) in change.like.iter().zip(known) {
        if contents.pods.contains_key(new) {
            return Err(Unlike("an address is new and known already".to_owned()));
        }
        let Some(like) = like else { continue };
        let number = if like.pod == 0 {
            0
        } else {
            // The pod's other addresses have its number.
            let pod = change.pods.iter().find(|pod| pod.addresses.contains(new));
            let pod =
                pod.ok_or_else(|| Unlike("a new address like one of this node, and no pod".to_owned()))?;
            let others = pod.addresses.iter().filter_map(|addr| contents.pods.get(addr));
            match others.map(|other| other.pod).find(|number| *number != 0) {
                Some(number) => number,
                None => {
                    next = next
                        .checked_add(1)
                        .filter(|n| *n < SHARED)
                        .ok_or_else(|| Unlike("too many pods".into()))?;
                    next
                }
            }
        };
        let pod = Pod { pod: number, ..like };
        contents.pods.insert(*new, pod);
        changed.insert(*new, Some(pod));
    }
    if Map::PODS.map(|map| contents.room(map)) != room {
        return Err(Unlike("the maps are too small".to_owned()));
    }
    Ok(changed)
}

impl Bundle {
    /// The bundle after a change: what a loader has in force then.
    ///
    /// # Errors
    /// If it is for another version, or cannot be done.
    pub fn rebound(&self, change: &Rebind) -> Result<Bundle, BundleError> {
        let name = change.artifact.files().first().copied().unwrap_or_default();
        let fail = |unlike: Unlike| BundleError::new(name, unlike.to_string());
        change.check().map_err(fail)?;
        if self.manifest.artifacts.get(&change.artifact) != Some(&change.from) {
            return Err(BundleError::new(name, format!("it is not of version {}", change.from)));
        }
        let mut read = self.read_back()?;
        match change.artifact {
            Artifact::Nftables => {
                if let Some(rules) = &mut read.nftables {
                    rebind(rules, change).map_err(fail)?;
                }
            }
            Artifact::Ebpf => {
                if let Some(pair) = &mut read.ebpf {
                    rebind_contents(&mut pair.cut.contents, change).map_err(fail)?;
                }
            }
            Artifact::Iptables | Artifact::IptablesPlain => {
                return Err(fail(Unlike("the rules of iptables are a tree over addresses".to_owned())));
            }
        }
        let bindings = change.bindings(&self.bindings()?).map_err(fail)?;
        self.with(change.artifact, &read, bindings)
    }

    /// The bundle with one artifact alone, as it was changed, and the pods of the node as they are now.
    ///
    /// # Errors
    /// If the artifact is not there or cannot be a bundle's.
    pub fn with(
        &self,
        artifact: Artifact,
        read: &ReadBack,
        bindings: Bindings,
    ) -> Result<Bundle, BundleError> {
        let missing = || BundleError::new(artifact.files().first().copied().unwrap_or_default(), "missing");
        let file = |name: &str| self.files.get(name).cloned().ok_or_else(missing);
        let artifacts = match artifact {
            Artifact::Nftables => artifacts::Artifacts {
                nftables: Some(emit(read.nftables.as_ref().ok_or_else(missing)?, &[])),
                ..artifacts::Artifacts::default()
            },
            Artifact::Ebpf => {
                let contents = &read.ebpf.as_ref().ok_or_else(missing)?.cut.contents;
                let files = artifacts::EbpfFiles {
                    cut: file(EBPF_CUT)?,
                    keep: file(EBPF_KEEP)?,
                    maps: contents.text(),
                };
                artifacts::Artifacts { ebpf: Some(files), ..artifacts::Artifacts::default() }
            }
            Artifact::Iptables | Artifact::IptablesPlain => return Err(missing()),
        };
        Bundle::new(Parts {
            compiler: self.manifest.compiler.clone(),
            node: self.manifest.node.clone(),
            node_addresses: self.manifest.node_addresses.clone(),
            artifacts,
            bindings,
            ..Parts::default()
        })
    }
}
