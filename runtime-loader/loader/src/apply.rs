//! `netpol-loader apply`: open, check, choose, switch in one step, confirm, clean up, cut.

use crate::cut::{Cut, Established, cut};
use crate::dataplane::{self, Goal};
use crate::ebpf::spare::Spare;
use crate::judge::Judge;
use crate::kernel::Kernel;
use crate::nftables::observe::Early;
use crate::routes::{self, PodInterfaces};
use crate::{Error, bridges, ebpf};
use netpolc_bundle::{Backend, Bundle, ReadBack, Version};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

pub use crate::dataplane::Outcome;

/// What [`apply`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What enforces it.
    pub backend: Backend,
    /// The version in force now.
    pub version: Version,
    /// How it came about.
    pub outcome: Outcome,
    /// The interfaces of local pods that are known.
    pub interfaces: BTreeSet<String>,
    /// The established connections that were ended; `None` if they were to live on, if that could not be done, or if that is
    /// left for later or was done before.
    pub cut: Option<Cut>,
    /// Whether the kernel's rules were read back afterwards.
    pub confirmed: bool,
    /// What else there is to say.
    pub notes: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { backend, version, outcome, .. } = self;
        let interfaces = self.interfaces.len();
        write!(f, "{outcome}: version {version}, backend {backend}, {interfaces} interfaces of local pods")?;
        self.cut.iter().try_for_each(|cut| write!(f, ", {cut}"))
    }
}

/// Makes the kernel enforce the bundle in a directory, by one backend or by the best that bundle and kernel have (`None`),
/// and ends connections that it would not let begin. That these cannot be ended is a note and no error.
///
/// # Errors
/// If the bundle is not sound, or the kernel refuses; then what was in force still is.
pub fn apply(
    kernel: &mut dyn Kernel,
    dir: &Path,
    backend: Option<Backend>,
    established: Established,
) -> Result<Report, Error> {
    apply_bundle(kernel, &Bundle::open(dir)?, backend, established)
}

/// As [`apply`], for a bundle that was read already.
///
/// # Errors
/// As [`apply`].
pub fn apply_bundle(
    kernel: &mut dyn Kernel,
    bundle: &Bundle,
    backend: Option<Backend>,
    established: Established,
) -> Result<Report, Error> {
    let read = bundle.read_back()?;
    let (mut report, _) = apply_read(kernel, bundle, &read, &By { backend, ..By::default() }, established)?;
    if established == Established::Cut {
        report.cut = cut_denied(kernel, read, &mut report);
    }
    Ok(report)
}

/// By what a bundle is to be brought into force, and what the caller knows already.
#[derive(Debug, Clone, Copy, Default)]
pub struct By<'a> {
    /// The backend; without it the first that bundle and kernel have.
    pub backend: Option<Backend>,
    /// What the caller has in force and looks after: what only another hand can have changed is then left to its next look.
    pub kept: Option<Backend>,
    /// What was seen of nftables' rules. If they are no longer these, they are listed.
    pub early: Option<&'a Early>,
    /// What was seen beside the backend's rules.
    pub beside: Option<&'a Beside>,
    /// What of eBPF may have been made before.
    pub spare: Option<&'a Spare>,
    /// Why the kernel has refused eBPF, though it had seemed to take it; known from before, or found out now.
    pub refused: Option<&'a OnceLock<String>>,
}

/// What was seen of the kernel beside the rules of the backend in force, a moment ago and while nobody had to wait for it: it
/// takes several programs that list.
#[derive(Debug)]
pub struct Beside {
    of: Backend,
    /// Nothing of the other backends is there.
    alone: bool,
    /// Conntrack is switched on for eBPF.
    tracked: bool,
}

impl Beside {
    /// Looks at the kernel. What cannot be seen is left to who looks in earnest.
    pub fn look(kernel: &mut dyn Kernel, of: Backend) -> Beside {
        let others = dataplane::ALL.into_iter().filter(|dataplane| dataplane.backend() != of);
        let alone = others.map(|other| other.has_any(kernel)).all(|any| matches!(any, Ok(false)));
        Beside { of, alone, tracked: of == Backend::Ebpf && ebpf::tracks(kernel) }
    }
}

/// As [`apply_bundle`], for one whose artifacts were read back already. To end connections is left to the caller; under eBPF
/// every packet is judged until [that is done](crate::live::Live::let_pass). Gives the pods' interfaces, too.
///
/// # Errors
/// As [`apply`].
pub fn apply_read(
    kernel: &mut dyn Kernel,
    bundle: &Bundle,
    read: &ReadBack,
    by: &By<'_>,
    established: Established,
) -> Result<(Report, PodInterfaces), Error> {
    let bindings = bundle.bindings()?;
    let mut notes: Vec<String> = kernel.lock()?.into_iter().collect();
    let (interfaces, missing) = routes::pod_interfaces(&bindings, &kernel.routes()?);
    notes.extend(missing);
    notes.extend(bridges::bypassed(kernel, &interfaces.shared));
    let mut goal = Goal {
        bundle,
        read,
        interfaces: &interfaces,
        established,
        kept: false,
        seen: None,
        tracked: false,
        spare: by.spare,
    };
    let unknown = OnceLock::new();
    let refused = by.refused.unwrap_or(&unknown);
    let mut tried = false;
    let (chosen, (version, outcome)) = loop {
        let chosen = choose(kernel, &goal, by.backend, refused, &mut notes)?;
        goal.kept = by.kept == Some(chosen);
        goal.tracked = by.beside.is_some_and(|beside| beside.of == chosen && beside.tracked);
        goal.seen = by.early.and_then(Early::still);
        match dataplane::of(chosen).apply(kernel, &goal, &mut notes) {
            Ok(done) => break (chosen, done),
            Err(error @ Error::Kernel { .. }) if is_refusal(by, chosen) => {
                // Known now, so that another one is chosen; or it was known, and this is the error.
                refused.set(error.to_string()).map_err(|_| error)?;
                tried = true;
            }
            Err(error) => return Err(error),
        }
    };
    notes.extend(about_sctp(kernel));
    // What of eBPF was made before it was refused goes, too.
    let alone = goal.kept || by.beside.is_some_and(|beside| beside.of == chosen && beside.alone);
    if tried || !alone {
        remove_others(kernel, chosen, &mut notes);
    }
    let (backend, names) = (chosen, interfaces.all());
    let report = Report { backend, version, outcome, interfaces: names, cut: None, confirmed: true, notes };
    Ok((report, interfaces))
}

/// Whether that the kernel refuses a backend's rules means that it does not take eBPF, though it takes what it was asked with:
/// what is in force, it took.
fn is_refusal(by: &By<'_>, chosen: Backend) -> bool {
    let free = by.backend.is_none() && chosen == Backend::Ebpf;
    free && !ebpf::may_be_in_force()
}

/// Without the ports of SCTP, conntrack takes all packets of it between two addresses for one connection.
fn about_sctp(kernel: &mut dyn Kernel) -> Option<String> {
    kernel.lacks_sctp().then(|| {
        "conntrack does not know SCTP here (CONFIG_NF_CT_PROTO_SCTP): what policies say of its ports does not hold"
            .to_owned()
    })
}

/// The backend to use: the one that was asked for, or the first that bundle and kernel have.
fn choose(
    kernel: &mut dyn Kernel,
    goal: &Goal<'_>,
    wanted: Option<Backend>,
    refused: &OnceLock<String>,
    notes: &mut Vec<String>,
) -> Result<Backend, Error> {
    let there = goal.bundle.manifest.backends();
    if let Some(backend) = wanted {
        if !there.contains(&backend) {
            return Err(Error::Refused(format!("it has no artifacts for {backend}")));
        }
        return match dataplane::of(backend).missing(kernel, Some(goal)) {
            None => Ok(backend),
            Some(reason) => Err(Error::Unusable { backend, reason }),
        };
    }
    let mut reasons = Vec::new();
    for dataplane in dataplane::ALL {
        let backend = dataplane.backend();
        let reason = match there.contains(&backend) {
            true => refusal(backend, refused).or_else(|| dataplane.missing(kernel, Some(goal))),
            false => Some("the bundle has no artifacts for it".to_owned()),
        };
        match reason {
            None => {
                notes.extend(reasons);
                return Ok(backend);
            }
            Some(reason) => reasons.push(format!("not {backend}: {reason}")),
        }
    }
    Err(Error::NoBackend(reasons.join("; ")))
}

/// What bundles could be enforced by here: the backends, the best one first, and why not the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// Their names.
    pub usable: Vec<String>,
    /// Why not the others, as far as they were to be considered.
    pub reasons: Vec<String>,
}

/// Why a backend is not to be chosen, if it is eBPF and the kernel has refused it.
fn refusal(backend: Backend, refused: &OnceLock<String>) -> Option<String> {
    refused.get().filter(|_| backend == Backend::Ebpf).cloned()
}

/// Looks which backends this kernel has, of all or of the one that is wanted. `refused` is as [`By::refused`].
pub fn choice(kernel: &mut dyn Kernel, wanted: Option<Backend>, refused: &OnceLock<String>) -> Choice {
    let mut choice = Choice { usable: Vec::new(), reasons: Vec::new() };
    for dataplane in dataplane::ALL {
        let backend = dataplane.backend();
        if wanted.is_some_and(|wanted| wanted != backend) {
            continue;
        }
        let known = refusal(backend, refused).filter(|_| wanted.is_none());
        match known.or_else(|| dataplane.missing(kernel, None)) {
            None => choice.usable.push(backend.to_string()),
            Some(reason) => choice.reasons.push(format!("not {backend}: {reason}")),
        }
    }
    choice
}

/// After a change of backend: the rules of the earlier one go. What cannot be taken out still drops what it dropped.
fn remove_others(kernel: &mut dyn Kernel, chosen: Backend, notes: &mut Vec<String>) {
    for dataplane in dataplane::ALL {
        let backend = dataplane.backend();
        if backend == chosen {
            continue;
        }
        match dataplane.remove(kernel) {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => notes.push(format!("removed what {backend} enforced: {}", removed.join(", "))),
            Err(error) => notes.push(format!("what {backend} enforced could not be removed: {error}")),
        }
    }
}

/// Ends the connections that what is in force now would not let begin.
fn cut_denied(kernel: &mut dyn Kernel, read: ReadBack, report: &mut Report) -> Option<Cut> {
    if report.backend == Backend::Ebpf {
        return ebpf::judging::stop(kernel, read.ebpf.as_ref()?, report.version).unwrap_or_else(|why| {
            report.notes.push(why.to_string());
            None
        });
    }
    let judge = match report.backend {
        Backend::Nftables => Judge::nftables(report.version, &Arc::new(read)),
        // Whichever of the two is in force: they say the same of every packet.
        _ => (read.iptables.or(read.iptables_plain))
            .map(|rules| Judge::iptables(report.version, &Arc::new(rules))),
    }?;
    cut(kernel, &|packet| judge.passes(packet), &mut report.notes)
}
