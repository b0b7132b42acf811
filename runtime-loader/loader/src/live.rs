//! What is in force, as it was read back, so that addresses can come and go in it without a new bundle.

use crate::batch::Batch;
use crate::cut;
use crate::kernel::Kernel;
use crate::routes::{self, PodInterfaces};
use crate::{Error, ebpf};
use netpolc_bundle::nft::run::{self, Bases};
use netpolc_bundle::nft::{Edit, Family, Key, PODIF, Ruleset, TABLE, marker};
use netpolc_bundle::rebind::{Rebind, Unlike, rebind_contents};
use netpolc_bundle::{Artifact, Backend, Bindings, Bundle, ReadBack, Version, bpf, nft};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// An artifact in force. Those of iptables cannot be changed so: their rules are a tree over addresses.
#[derive(Debug, Clone)]
pub struct Live {
    artifact: Artifact,
    version: Version,
    read: ReadBack,
    /// The interfaces of pods that were last put into the set of them.
    interfaces: BTreeSet<String>,
}

impl Live {
    /// What a bundle has brought into force, if addresses can come and go in it.
    pub fn new(backend: Backend, version: Version, read: ReadBack) -> Option<Live> {
        let none = ReadBack::default();
        let (artifact, read) = match backend {
            Backend::Ebpf => {
                let mut pair = read.ebpf?;
                // Both programs have the same contents; they are kept once.
                pair.keep.contents.pods.clear();
                (Artifact::Ebpf, ReadBack { ebpf: Some(pair), ..none })
            }
            Backend::Nftables => (Artifact::Nftables, ReadBack { nftables: read.nftables, ..none }),
            Backend::Iptables => return None,
        };
        Some(Live { artifact, version, read, interfaces: BTreeSet::new() })
    }

    /// The version in force.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The bundle that would bring this into force.
    ///
    /// # Errors
    /// If it would not be sound, which is a bug of ours.
    pub fn bundle(&self, before: &Bundle, bindings: &Bindings) -> Result<Bundle, Error> {
        Ok(before.with(self.artifact, &self.read, bindings.clone())?)
    }

    /// Lets addresses come and go in the kernel, and gives what is in force then. `pods` are those of the node.
    ///
    /// # Errors
    /// If the change is for another version, if it cannot be done without a new bundle, or if the kernel refuses.
    pub fn rebind(&self, kernel: &mut dyn Kernel, change: &Rebind, pods: &Bindings) -> Result<Live, Error> {
        change.check()?;
        if (change.artifact, change.from) != (self.artifact, self.version) {
            let (artifact, version) = (self.artifact, self.version);
            return Err(Unlike(format!("version {version} of {artifact:?} is in force")).into());
        }
        kernel.lock()?;
        let (behind, _) = routes::pod_interfaces(pods, &kernel.routes()?);
        let missing = || Unlike("it was not read back".to_owned());
        let mut next = self.clone();
        match self.artifact {
            Artifact::Ebpf => {
                let pair = next.read.ebpf.as_mut().ok_or_else(missing)?;
                next.version = rebind_ebpf(pair, change, pods, &behind)?;
            }
            Artifact::Nftables => {
                let rules = next.read.nftables.as_mut().ok_or_else(missing)?;
                next.version = rebind_nftables(rules, change, &behind, &mut next.interfaces)?;
            }
            Artifact::Iptables | Artifact::IptablesPlain => return Err(missing().into()),
        }
        Ok(next)
    }

    /// Ends the connections of some addresses that the rules in force would not let begin.
    pub fn cut(
        &self,
        kernel: &mut dyn Kernel,
        of: &BTreeSet<IpAddr>,
        notes: &mut Vec<String>,
    ) -> Option<cut::Cut> {
        // The programs judge every packet.
        let rules = self.read.nftables.as_ref()?;
        let families: Vec<Family> = rules.tables.keys().copied().collect();
        let bases = std::cell::OnceCell::new();
        let passes = |packet: &run::Packet| {
            let touched = of.contains(&packet.src) || of.contains(&packet.dst);
            !touched || run::passes(rules, bases.get_or_init(|| Bases::of(rules)), packet)
        };
        cut::cut(kernel, &families, &passes, notes)
    }
}

fn rebind_ebpf(
    pair: &mut bpf::Pair,
    change: &Rebind,
    pods: &Bindings,
    behind: &PodInterfaces,
) -> Result<Version, Error> {
    let changed = rebind_contents(&mut pair.cut.contents, change)?;
    let contents = &pair.cut.contents;
    let digest = bpf::contents_digest(contents.entries());
    let to = bpf::digest_with(pair, digest);
    ebpf::rebind(change.from, to, (contents, digest), &changed, (&pods.pods, behind))?;
    Ok(to)
}

fn rebind_nftables(
    rules: &mut Ruleset,
    change: &Rebind,
    behind: &PodInterfaces,
    known: &mut BTreeSet<String>,
) -> Result<Version, Error> {
    let (to, edits) = nft::rebind(rules, change)?;
    let mut batch = Batch::default();
    let odd = || Unlike("a set has keys that cannot be told one by one".to_owned());
    for edit in &edits {
        batch.element(TABLE, edit).ok_or_else(odd)?;
    }
    for (family, table) in &rules.tables {
        if to != change.from {
            batch.chain(TABLE, *family, &marker(change.from), false);
            batch.chain(TABLE, *family, &marker(to), true);
        }
        // Names of interfaces that are gone are taken out at the next look.
        if !table.sets.contains_key(PODIF) {
            continue;
        }
        for name in behind.names.difference(known) {
            let key = vec![Key::Ifname(name.clone())];
            let edit = Edit { family: *family, set: PODIF.to_owned(), key, verdict: None, comes: true };
            batch.ensure(TABLE, &edit).ok_or_else(odd)?;
        }
    }
    batch.commit().map_err(|error| Error::Kernel {
        what: "elements of sets".to_owned(),
        complaint: error.to_string(),
    })?;
    known.clone_from(&behind.names);
    Ok(to)
}
