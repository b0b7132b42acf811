//! What the daemon needs of whatever enforces a bundle.

use super::audit::audited;
use super::look::{Before, Look};
use crate::apply::{self, By, Choice, Outcome, Report};
use crate::batch::Committed;
use crate::cut::Established;
use crate::ebpf::spare::Spare;
use crate::iptables::known::{self, Known};
use crate::iptables::variant::Tools;
use crate::judge::Judge;
use crate::kernel::{Kernel as _, System};
use crate::live::{Live, Switched};
use crate::routes::Routes;
use crate::status::{self, Status};
use crate::{Error, bridges, ebpf, generation};
use netpolc_bundle::ipt::Ruleset;
use netpolc_bundle::nft::run::Packet;
use netpolc_bundle::rebind::{Rebind, Unlike};
use netpolc_bundle::{Backend, Bindings, Bundle, POLICIES, PROVENANCE, ReadBack, Version};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

/// Brings bundles into force.
pub trait Enforcer: Send {
    /// A bundle as it is to be applied, without what is not read for that.
    ///
    /// # Errors
    /// If it is not sound.
    fn form(&self, bundle: &Bundle, audit: bool) -> Result<Bundle, Error>;

    /// As [`apply::apply_bundle`], but to end connections is [left](Enforcer::take_uncut), and to read back what the kernel has
    /// may be left for [`Enforcer::look`].
    ///
    /// # Errors
    /// As there; what was in force still is.
    fn apply(&mut self, form: &Bundle, established: Established) -> Result<Report, Error>;

    /// As [`Enforcer::apply`], for a bundle that should be in force already: connections are to end only if rules were missing.
    /// `early` is what was seen of the rules before.
    ///
    /// # Errors
    /// As there.
    fn look(
        &mut self,
        form: &Bundle,
        established: Established,
        how: Look,
        before: &Before,
    ) -> Result<Report, Error>;

    /// What has brought the last bundle into force.
    fn last(&self) -> Option<Backend>;

    /// Lets addresses come and go in what is in force. `pods` are those of the node as they are then. To end connections of
    /// these addresses is [left](Enforcer::take_uncut).
    ///
    /// # Errors
    /// If another version is in force, or if that takes a new bundle; then what was in force still is, or comes back at the
    /// next look.
    fn rebind(
        &mut self,
        change: &Rebind,
        pods: &Bindings,
        established: Established,
    ) -> Result<Version, Error>;

    /// Work for the next bundle that can be done before it comes, without the lock and beside everything else.
    fn spare_work(&self, established: Established) -> Option<Box<dyn FnOnce() + Send>>;

    /// Whether there may be connections to end that nobody has [taken](Enforcer::take_uncut).
    fn has_uncut(&self) -> bool;

    /// Connections that may be there and which what is in force would not let begin. To end them is left to the caller.
    fn take_uncut(&mut self) -> Option<Uncut>;

    /// Leaves what was taken and could not be done.
    fn leave(&mut self, uncut: Uncut);

    /// Judges by what is in force, if that is known; `last` is one that was given before, and is given again if it is still
    /// right.
    fn judge(&mut self, last: Option<Judge>) -> Option<Judge>;

    /// Whether what is in force judges every packet until connections were ended that it would not let begin: under eBPF, where
    /// that can wait until nothing has come for a while.
    ///
    /// # Errors
    /// If it cannot be seen.
    fn is_judging(&mut self) -> Result<bool, Error>;

    /// That is over: they were ended. `false` if another version has come into force behind our back.
    ///
    /// # Errors
    /// If it cannot be done; what is in force stays.
    fn let_pass(&mut self) -> Result<bool, Error>;

    /// What passes by the rules, whatever they say.
    fn bypassed(&mut self) -> Vec<String>;

    /// The bundle that would bring into force what is, after addresses have come and gone.
    ///
    /// # Errors
    /// If nothing that was changed so is in force, or if we have a bug.
    fn bundle(&self, before: &Bundle, pods: &Bindings) -> Result<Bundle, Error>;

    /// What is in force.
    ///
    /// # Errors
    /// If that cannot be found out.
    fn status(&mut self) -> Result<Status, Error>;

    /// What bundles could be enforced by, the best first.
    fn choice(&mut self) -> Choice;

    /// Something that is the same at two moments only if nothing between them can have changed what is in force, or
    /// what should be. `None` if there is no such thing: then one has to look.
    fn stamp(&mut self) -> Option<Stamp>;
}

/// See [`Enforcer::stamp`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    seen: Seen,
    /// Where the interfaces of pods are found.
    routes: Routes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// The number of the last transaction of nftables.
    Generation(u32),
    /// The version in force, and the interfaces that it knows: programs and their maps are changed by no one in passing,
    /// but their pins can be removed.
    Programs(String, Vec<String>),
}

/// The kernel of this network namespace, anew for each operation: so the lock is held no longer than one takes, and a
/// program that is installed later is found.
#[derive(Debug)]
pub struct ThisKernel {
    wanted: Option<Backend>,
    /// What enforced the last bundle.
    last: Option<Backend>,
    /// What it said, if addresses can come and go in it.
    live: Option<Live>,
    /// The same under iptables, where a bundle can be brought into force by what it changes.
    known: Option<Known>,
    /// What that was loaded with. Should it be the other variant by now, the last version is not there to be deleted, so a
    /// restore is refused as a whole.
    tools: Option<Tools>,
    /// Rules of iptables where a bundle cannot be brought into force so.
    rules: Option<(Version, Arc<Ruleset>)>,
    /// Connections to end.
    uncut: Option<Uncut>,
    /// Under eBPF, what the next version finds made.
    spare: Arc<Spare>,
    /// Why the kernel has refused eBPF.
    refused: OnceLock<String>,
    /// The interfaces of pods that were last found.
    interfaces: BTreeSet<String>,
}

/// Connections that may be there which the rules in force would not let begin.
#[derive(Debug)]
pub struct Uncut {
    /// The last transaction after which there may be some. Packets that the rules before it let pass are through, and their
    /// connections in the kernel's table, when it is settled.
    pub after: Option<Committed>,
    /// Whose; `None` is everybody's.
    pub of: Option<BTreeSet<IpAddr>>,
}

impl Uncut {
    fn and(self, later: Uncut) -> Uncut {
        let of = self.of.zip(later.of).map(|(earlier, more)| &earlier | &more);
        Uncut { after: later.after.or(self.after), of }
    }

    /// Whether a packet that opens such a connection may be judged otherwise than before.
    pub fn touches(&self, packet: &Packet) -> bool {
        self.of.as_ref().is_none_or(|of| of.contains(&packet.src) || of.contains(&packet.dst))
    }
}

impl ThisKernel {
    /// With one backend, or with the best that bundle and kernel have.
    pub fn new(wanted: Option<Backend>) -> ThisKernel {
        ThisKernel {
            wanted,
            last: None,
            live: None,
            known: None,
            tools: None,
            rules: None,
            uncut: None,
            spare: Arc::default(),
            refused: OnceLock::new(),
            interfaces: BTreeSet::new(),
        }
    }
}

impl ThisKernel {
    fn bring(
        &mut self,
        form: &Bundle,
        read: ReadBack,
        established: Established,
        kept: Option<Backend>,
        before: &Before,
    ) -> Result<Report, Error> {
        let Before { early, beside } = before;
        let (early, beside, spare) = (early.as_ref(), beside.as_ref(), Some(&*self.spare));
        let refused = Some(&self.refused);
        let by = By { backend: self.wanted, kept, early, beside, spare, refused };
        let (report, interfaces) = apply::apply_read(&mut System::new(), form, &read, &by, established)?;
        self.last = Some(report.backend);
        self.interfaces.clone_from(&report.interfaces);
        self.known = (report.backend == Backend::Iptables)
            .then(|| Known::new(form, &read, report.version, &report.interfaces))
            .flatten();
        self.rules = None;
        if report.backend == Backend::Iptables && self.known.is_none() {
            let rules = read.iptables.as_ref().or(read.iptables_plain.as_ref());
            self.rules = rules.map(|rules| (report.version, Arc::new(rules.clone())));
        }
        if report.backend != Backend::Ebpf {
            self.spare = Arc::default();
        }
        self.live = Live::new(report.backend, report.version, read, interfaces.behind);
        Ok(report)
    }

    /// Brings a bundle into force by what it changes, if that can be.
    fn switch(
        &mut self,
        form: &Bundle,
        read: &mut ReadBack,
        established: Established,
    ) -> Result<Option<Report>, Error> {
        let Some(live) = self.live.as_ref() else { return Ok(None) };
        let before = live.version();
        let Some(switched) = live.switch(&mut System::new(), form, read)? else { return Ok(None) };
        let Switched { live, interfaces, notes, committed } = switched;
        let version = self.live.insert(live).version();
        let outcome = match (&committed, before == version) {
            (None, _) => Outcome::Unchanged,
            (Some(_), true) => Outcome::Comments,
            (Some(_), false) => Outcome::Applied,
        };
        if established == Established::Cut && committed.is_some() {
            self.cut_later(committed, None);
        }
        let confirmed = outcome == Outcome::Unchanged;
        let (backend, interfaces) = (Backend::Nftables, interfaces.all());
        self.interfaces.clone_from(&interfaces);
        Ok(Some(Report { backend, version, outcome, interfaces, cut: None, confirmed, notes }))
    }

    /// The same for rules of iptables.
    fn switch_iptables(
        &mut self,
        form: &Bundle,
        read: &ReadBack,
        established: Established,
    ) -> Result<Option<Report>, Error> {
        let Some(known) = self.known.take() else { return Ok(None) };
        let Some(switched) = known.switch(&mut System::new(), &mut self.tools, form, read)? else {
            self.tools = None;
            return Ok(None);
        };
        let known::Switched { known, interfaces, notes } = switched;
        let (backend, version) = (Backend::Iptables, known.version());
        self.known = Some(known);
        if established == Established::Cut {
            self.cut_later(None, None);
        }
        let (outcome, interfaces) = (Outcome::Applied, interfaces.all());
        self.interfaces.clone_from(&interfaces);
        Ok(Some(Report { backend, version, outcome, interfaces, cut: None, confirmed: false, notes }))
    }

    /// Under eBPF every packet is judged, and there is no hurry.
    fn cut_later(&mut self, after: Option<Committed>, of: Option<BTreeSet<IpAddr>>) {
        if self.last == Some(Backend::Ebpf) {
            return;
        }
        let later = Uncut { after, of };
        self.uncut = Some(match self.uncut.take() {
            Some(earlier) => earlier.and(later),
            None => later,
        });
    }
}

impl Enforcer for ThisKernel {
    fn form(&self, bundle: &Bundle, audit: bool) -> Result<Bundle, Error> {
        let mut manifest = bundle.manifest.clone();
        let artifacts = &mut manifest.artifacts;
        let unused = |backend: Backend| self.wanted.is_some_and(|wanted| wanted != backend);
        let mut not_read = vec![PROVENANCE, POLICIES];
        for artifact in artifacts.keys().copied().collect::<Vec<_>>() {
            if unused(artifact.backend()) && artifacts.len() > 1 {
                artifacts.remove(&artifact);
                not_read.extend(artifact.files());
            }
        }
        let files = bundle.files.iter().filter(|(name, _)| !not_read.contains(&name.as_str()));
        let files = files.map(|(name, text)| (name.clone(), text.clone())).collect();
        let form = Bundle { manifest, files };
        // What is not read need not be one that can be audited.
        if audit { audited(&form) } else { Ok(form) }
    }

    fn apply(&mut self, form: &Bundle, established: Established) -> Result<Report, Error> {
        let mut read = form.read_back()?;
        if let Some(report) = self.switch(form, &mut read, established)? {
            return Ok(report);
        }
        if let Some(report) = self.switch_iptables(form, &read, established)? {
            return Ok(report);
        }
        let report = self.bring(form, read, established, self.last, &Before::default())?;
        // Also if it was in force already: a loader that was killed before it was done leaves no other trace.
        if established == Established::Cut {
            self.cut_later(None, None);
        }
        Ok(report)
    }

    fn look(
        &mut self,
        form: &Bundle,
        established: Established,
        how: Look,
        before: &Before,
    ) -> Result<Report, Error> {
        let kept = self.last.filter(|_| how == Look::Changes);
        let report = self.bring(form, form.read_back()?, established, kept, before)?;
        let missing = matches!(report.outcome, Outcome::Applied | Outcome::Repaired | Outcome::Comments);
        if missing && established == Established::Cut {
            self.cut_later(None, None);
        }
        Ok(report)
    }

    fn last(&self) -> Option<Backend> {
        self.last
    }

    fn rebind(
        &mut self,
        change: &Rebind,
        pods: &Bindings,
        established: Established,
    ) -> Result<Version, Error> {
        let nothing = || Error::Unlike(Unlike("nothing is in force in which they could".to_owned()));
        let live = self.live.as_ref().ok_or_else(nothing)?;
        let (live, committed) = live.rebind(&mut System::new(), change, pods)?;
        if established == Established::Cut {
            let new = change.like.iter().map(|(addr, _)| *addr);
            self.cut_later(committed, Some(change.gone.iter().copied().chain(new).collect()));
        }
        Ok(self.live.insert(live).version())
    }

    fn spare_work(&self, established: Established) -> Option<Box<dyn FnOnce() + Send>> {
        if self.last != Some(Backend::Ebpf) {
            return None;
        }
        let (read, spare) = (self.live.as_ref()?.read(), self.spare.clone());
        Some(Box::new(move || {
            // The next version is then made as a whole, or says itself why it cannot be.
            let _ = spare.provide(&read, established);
        }))
    }

    fn has_uncut(&self) -> bool {
        self.uncut.is_some()
    }

    fn take_uncut(&mut self) -> Option<Uncut> {
        self.uncut.take()
    }

    fn leave(&mut self, uncut: Uncut) {
        self.uncut = Some(match self.uncut.take() {
            Some(later) => uncut.and(later),
            None => uncut,
        });
    }

    fn judge(&mut self, last: Option<Judge>) -> Option<Judge> {
        let of_version = |version| last.filter(|judge| judge.version() == version);
        if let Some(live) = &self.live {
            return of_version(live.version()).or_else(|| live.judge());
        }
        if let Some(known) = &self.known {
            return of_version(known.version()).or_else(|| Some(known.judge()));
        }
        let (version, rules) = self.rules.as_ref()?;
        of_version(*version).or_else(|| Some(Judge::iptables(*version, rules)))
    }

    fn is_judging(&mut self) -> Result<bool, Error> {
        self.live.as_ref().map_or(Ok(false), Live::is_judging)
    }

    fn let_pass(&mut self) -> Result<bool, Error> {
        self.live.as_ref().map_or(Ok(false), |live| live.let_pass(&mut System::new()))
    }

    fn bypassed(&mut self) -> Vec<String> {
        bridges::bypassed(&mut System::new(), &self.interfaces)
    }

    fn bundle(&self, before: &Bundle, pods: &Bindings) -> Result<Bundle, Error> {
        let nothing = || Error::Incomplete("it is not known what is in force".to_owned());
        self.live.as_ref().ok_or_else(nothing)?.bundle(before, pods)
    }

    fn status(&mut self) -> Result<Status, Error> {
        let mut status = status::status(&mut System::new(), None)?;
        if let Some(denied) = self.live.as_ref().and_then(Live::denied) {
            let ebpf = status.dataplanes.iter_mut().filter(|found| found.backend == Backend::Ebpf);
            ebpf.for_each(|found| found.denied.clone_from(&denied));
        }
        Ok(status)
    }

    fn choice(&mut self) -> Choice {
        apply::choice(&mut System::new(), self.wanted, &self.refused)
    }

    fn stamp(&mut self) -> Option<Stamp> {
        let last = self.last?;
        let mut kernel = System::new();
        let routes = kernel.routes().ok()?;
        let seen = match last {
            Backend::Nftables => Seen::Generation(generation::current().ok()?),
            Backend::Ebpf => {
                let (version, interfaces) = ebpf::stamp(&mut kernel)?;
                Seen::Programs(version, interfaces)
            }
            Backend::Iptables => return None,
        };
        Some(Stamp { seen, routes })
    }
}
