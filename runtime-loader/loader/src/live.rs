//! What is in force, as it was read back, so that addresses can come and go in it without a new bundle, and so that a new
//! bundle can be brought into force by what it changes.

use crate::batch::{Batch, Committed};
use crate::dataplane::Denied;
use crate::ebpf::judging;
use crate::judge::Judge;
use crate::kernel::Kernel;
use crate::nftables::delta::{self, There};
use crate::nftables::filled::Behind;
use crate::nftables::refuse;
use crate::routes::{self, PodInterfaces};
use crate::{Error, ebpf};
use netpolc_bundle::nft::{Ruleset, TABLE, marker};
use netpolc_bundle::rebind::{Rebind, Unlike, rebind_contents};
use netpolc_bundle::{Artifact, Backend, Bindings, Bundle, ReadBack, Version, bpf, nft};
use std::sync::Arc;

/// An artifact in force. Those of iptables cannot be changed so: their rules are a tree over addresses.
#[derive(Debug, Clone)]
pub struct Live {
    artifact: Artifact,
    version: Version,
    read: Arc<ReadBack>,
    /// Under nftables: what is in our tables beside it, that no packet meets.
    left: Ruleset,
    /// Under nftables: the interfaces of pods, with their addresses, that were last put into the sets of them.
    interfaces: Behind,
}

/// What came of [`Live::switch`].
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields' names say it")]
pub struct Switched {
    pub live: Live,
    pub interfaces: PodInterfaces,
    pub notes: Vec<String>,
    /// The transaction; `None` if nothing had to be changed.
    pub committed: Option<Committed>,
}

impl Live {
    /// What a bundle has brought into force with these interfaces, if addresses can come and go in it.
    pub fn new(backend: Backend, version: Version, read: ReadBack, interfaces: Behind) -> Option<Live> {
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
        let (read, left) = (Arc::new(read), Ruleset::default());
        Some(Live { artifact, version, read, left, interfaces })
    }

    /// The version in force.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What was read back.
    pub fn read(&self) -> Arc<ReadBack> {
        self.read.clone()
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
    pub fn rebind(
        &self,
        kernel: &mut dyn Kernel,
        change: &Rebind,
        pods: &Bindings,
    ) -> Result<(Live, Option<Committed>), Error> {
        change.check()?;
        if (change.artifact, change.from) != (self.artifact, self.version) {
            let (artifact, version) = (self.artifact, self.version);
            return Err(Unlike(format!("version {version} of {artifact:?} is in force")).into());
        }
        kernel.lock()?;
        let (behind, _) = routes::pod_interfaces(pods, &kernel.routes()?);
        let missing = || Unlike("it was not read back".to_owned());
        let mut next = self.clone();
        let read = Arc::make_mut(&mut next.read);
        let mut committed = None;
        match self.artifact {
            Artifact::Ebpf => {
                let pair = read.ebpf.as_mut().ok_or_else(missing)?;
                next.version = rebind_ebpf(pair, change, pods, &behind)?;
            }
            Artifact::Nftables => {
                let rules = read.nftables.as_mut().ok_or_else(missing)?;
                let (version, done) = rebind_nftables(rules, change, &behind, &mut next.interfaces)?;
                (next.version, committed) = (version, Some(done));
            }
            Artifact::Iptables | Artifact::IptablesPlain => return Err(missing().into()),
        }
        Ok((next, committed))
    }

    /// Brings a bundle of nftables into force by what it changes, and gives what is in force then, with the rules taken out of
    /// what was read. `None` if it takes more
    /// than this process can tell the kernel itself, or if the kernel refuses, since another hand was there, say: then
    /// nothing has changed, and the bundle has to be applied as a whole.
    ///
    /// # Errors
    /// If the bundle is refused, or if the kernel cannot be looked at.
    pub fn switch(
        &self,
        kernel: &mut dyn Kernel,
        bundle: &Bundle,
        read: &mut ReadBack,
    ) -> Result<Option<Switched>, Error> {
        let found = (self.read.nftables.as_ref(), read.nftables.as_ref());
        let (Some(rules), Some(goal)) = found else { return Ok(None) };
        let Some(version) = bundle.manifest.artifacts.get(&Artifact::Nftables).copied() else {
            return Ok(None);
        };
        refuse(goal)?;
        let mut notes: Vec<String> = kernel.lock()?.into_iter().collect();
        let (interfaces, missing) = routes::pod_interfaces(&bundle.bindings()?, &kernel.routes()?);
        notes.extend(missing);
        let there = There { version: rules, left: &self.left };
        let Some(mut batch) = delta::switch(there, goal) else { return Ok(None) };
        if delta::interfaces(&mut batch, goal, &self.interfaces, &interfaces.behind).is_none() {
            return Ok(None);
        }
        let committed = match batch.is_empty() {
            true => None,
            false => match batch.commit() {
                Ok(committed) => Some(committed),
                Err(_) => return Ok(None),
            },
        };
        let left = there.left_by(goal);
        let read = Arc::new(ReadBack { nftables: read.nftables.take(), ..ReadBack::default() });
        let artifact = Artifact::Nftables;
        let live = Live { artifact, version, read, left, interfaces: interfaces.behind.clone() };
        Ok(Some(Switched { live, interfaces, notes, committed }))
    }

    /// Judges the packets that open connections.
    pub fn judge(&self) -> Option<Judge> {
        match self.artifact {
            Artifact::Ebpf => {
                let pair = self.read.ebpf.as_ref()?;
                Some(Judge::ebpf(self.version, &pair.cut.contents))
            }
            _ => Judge::nftables(self.version, &self.read),
        }
    }

    /// The packets that no policy allows, where the rules in the kernel do not say for whom they count.
    pub fn denied(&self) -> Option<Vec<Denied>> {
        Some(ebpf::denied(&self.read.ebpf.as_ref()?.cut.contents, self.version))
    }

    /// Whether every packet is judged under eBPF, and no longer is once connections were ended.
    ///
    /// # Errors
    /// If it cannot be seen.
    pub fn is_judging(&self) -> Result<bool, Error> {
        if self.read.ebpf.is_some() { judging::is_judging(self.version) } else { Ok(false) }
    }

    /// Under eBPF, after connections were ended that this would not let begin: the others need not be judged. `false` if
    /// another version is in force.
    ///
    /// # Errors
    /// If it cannot be done; then every packet is judged, as before.
    pub fn let_pass(&self, kernel: &mut dyn Kernel) -> Result<bool, Error> {
        let Some(pair) = &self.read.ebpf else { return Ok(false) };
        kernel.lock()?;
        judging::let_pass(pair, self.version)
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
    known: &mut Behind,
) -> Result<(Version, Committed), Error> {
    let (to, edits) = nft::rebind(rules, change)?;
    let mut batch = Batch::default();
    let odd = || Unlike("a set has keys that cannot be told one by one".to_owned());
    for edit in &edits {
        batch.element(TABLE, edit).ok_or_else(odd)?;
    }
    for family in rules.tables.keys() {
        if to != change.from {
            batch.chain(TABLE, *family, &marker(change.from), false);
            batch.chain(TABLE, *family, &marker(to), true);
        }
    }
    delta::interfaces(&mut batch, rules, known, &behind.behind).ok_or_else(odd)?;
    let refused = |error: std::io::Error| Error::Kernel {
        what: "elements of sets".to_owned(),
        complaint: error.to_string(),
    };
    let committed = batch.commit().map_err(refused)?;
    known.clone_from(&behind.behind);
    Ok((to, committed))
}
