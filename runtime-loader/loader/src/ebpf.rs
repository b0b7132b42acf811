//! The backend eBPF.
//!
//! The module `hook` is what stands in the way of packets and never changes; a `generation` is one version, a program with its
//! maps. Applying makes a new generation beside the old one, and then stores its program into the hook's slot, which is the
//! one step that packets see, for both families and both directions at once. What was not finished when the loader was
//! killed is a directory of pins that no slot names; the next run removes it.
//!
//! Where connections are cut, a version has two programs with the same maps. The first judges every packet, so no connection
//! outlives the version that would not let it begin. When a walk over the kernel's table of connections has ended these, the
//! second takes its place, which lets established connections pass, all of which the version would let begin. Before
//! addresses come and go, the first one comes back.

pub mod bpffs;
mod generation;
mod hook;
pub(crate) mod judging;
mod named;
pub mod spare;
mod sys;
mod track;

use crate::Error;
use crate::cut::Established;
use crate::dataplane::{Dataplane, Denied, Goal, InForce, Outcome};
use crate::kernel::Kernel;
use crate::routes::PodInterfaces;
use generation::{Generation, Meta, Wanted};
use hook::{Hook, lacks_means};
use netpolc_bundle::bpf::contents::{Contents, Pod};
use netpolc_bundle::bpf::layout::SHARED;
use netpolc_bundle::bpf::{Field, tuples_together};
use netpolc_bundle::comment::{denying, not_allowed};
use netpolc_bundle::limits;
use netpolc_bundle::rebind::Unlike;
use netpolc_bundle::{Artifact, Backend, LocalPod, Version};
use nix::net::if_::if_nametoindex;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use sys::ObjectFd;

/// Our programs at the FORWARD hook.
#[derive(Debug)]
pub struct Ebpf;

impl Dataplane for Ebpf {
    fn backend(&self) -> Backend {
        Backend::Ebpf
    }

    fn missing(&self, kernel: &mut dyn Kernel, _: Option<&Goal<'_>>) -> Option<String> {
        if let Err(error) = sys::probe() {
            return Some(format!(
                "the kernel takes no programs of type netfilter (Linux 6.4) that read its memory: {error}"
            ));
        }
        let fields = match generation::kernel_types() {
            Ok(fields) => fields,
            Err(error) => return Some(format!("the kernel's types are not known: {error}")),
        };
        if let Some(field) = Field::ALL.into_iter().find(|field| !fields.contains_key(field)) {
            return Some(format!("the kernel's types lack {}", field.path()));
        }
        if !tuples_together(|field| fields.get(&field).copied()) {
            return Some(
                "the kernel has the two tuples of a connection elsewhere than the program reads them".into(),
            );
        }
        // The last question, since its answer may be to mount one.
        track::missing(kernel).or_else(bpffs::missing)
    }

    fn apply(
        &self,
        kernel: &mut dyn Kernel,
        goal: &Goal<'_>,
        notes: &mut Vec<String>,
    ) -> Result<(Version, Outcome), Error> {
        let none = || Error::Refused("it has no artifacts for eBPF".into());
        let version = *goal.bundle.manifest.artifacts.get(&Artifact::Ebpf).ok_or_else(none)?;
        let pair = goal.read.ebpf.as_ref().ok_or_else(none)?;
        let wanted = Wanted::of(pair, version, goal.established);
        let interfaces = interfaces(goal, &wanted.artifact.contents)?;
        // Another loader may have taken the rule out since it was seen.
        let tracks = goal.kept || goal.tracked && track::stands(kernel) == Some(true);
        if !tracks {
            track::switch_on(kernel)?;
        }
        let dir = bpffs::find_or_mount()?;
        fs::create_dir_all(&dir).map_err(|error| Error::io(dir.display().to_string(), error))?;
        let seen = observe(&dir)?;
        let drift = if goal.kept { seen.broken(&dir) } else { seen.drift(&dir) };
        notes.extend(drift.iter().map(|reason| format!("was found: {reason}")));
        if let (Some(live), true) = (&seen.live, drift.is_empty())
            && live.meta == wanted.meta
        {
            let changed = live.set_interfaces(&interfaces)?;
            seen.remove_stale(notes);
            return Ok((version, if changed { Outcome::Interfaces } else { Outcome::Unchanged }));
        }
        let (fresh, stood) = (next_generation(&dir)?, hook::stands(&dir));
        let made = Generation::create(&fresh, &wanted, &interfaces, goal.spare).and_then(|made| {
            let hook = Hook::open_or_create(&dir, &made.program)?;
            hook.switch(&made.program)?;
            Ok(made)
        });
        if let Err(error) = made {
            // What could not be finished goes. Where the hook had lost its slot, packets may meet it already.
            if !stood || observe(&dir).is_ok_and(|seen| seen.stale.contains(&fresh)) {
                let _ = bpffs::remove(&fresh);
            }
            return Err(error);
        }
        let after = observe(&dir)?;
        let mut faults = if goal.kept { after.broken(&dir) } else { after.drift(&dir) };
        if faults.is_empty() && after.live.as_ref().map(|live| live.meta) != Some(wanted.meta) {
            faults.push("packets do not meet the version".to_owned());
        }
        if !faults.is_empty() {
            return Err(Error::NotConfirmed(faults.join("; ")));
        }
        after.remove_stale(notes);
        let repaired = !drift.is_empty();
        Ok((version, if repaired { Outcome::Repaired } else { Outcome::Applied }))
    }

    fn status(&self, kernel: &mut dyn Kernel, goal: Option<&Goal<'_>>) -> Result<Option<InForce>, Error> {
        let Some(dir) = bpffs::find()?.filter(|dir| dir.exists()) else { return Ok(None) };
        let seen = observe(&dir)?;
        if seen.live.is_none() && seen.hook.is_none() && !hook::stands(&dir) {
            return Ok(None);
        }
        let mut drift = seen.drift(&dir);
        drift.extend(track::drift(kernel)?);
        if let (Some(goal), Some(live)) = (goal, &seen.live) {
            against(goal, live, seen.settled, &mut drift);
        }
        let mut found = seen.in_force(drift);
        let pair = goal.and_then(|goal| goal.read.ebpf.as_ref());
        if let (Some(pair), Some(live)) = (pair, &seen.live) {
            found.denied = denied(&pair.cut.contents, live.meta.version);
        }
        Ok(Some(found))
    }

    fn has_any(&self, kernel: &mut dyn Kernel) -> Result<bool, Error> {
        Ok(bpffs::find()?.is_some_and(|dir| dir.exists()) || track::has_any(kernel)?)
    }

    fn remove(&self, kernel: &mut dyn Kernel) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        if let Some(dir) = bpffs::find()? {
            if dir.exists() {
                let hook = Hook::open(&dir).map_err(|error| Error::io(dir.display().to_string(), error))?;
                // Should that fail, the families are let go one after the other.
                if let Some(hook) = hook {
                    let _ = hook.release();
                }
                bpffs::remove(&dir).map_err(|error| Error::io(dir.display().to_string(), error))?;
                removed.push("eBPF programs".to_owned());
            }
            bpffs::remove_parent(&dir);
        }
        removed.extend(track::remove(kernel)?);
        Ok(removed)
    }
}

/// Whether a version is in force, or may be.
pub(crate) fn may_be_in_force() -> bool {
    let Ok(found) = bpffs::find() else { return true };
    found.is_some_and(|dir| observe(&dir).map_or(true, |seen| seen.live.is_some()))
}

/// Whether conntrack is switched on.
pub(crate) fn tracks(kernel: &mut dyn Kernel) -> bool {
    track::is_on(kernel).unwrap_or(false)
}

/// The version in force and the interfaces that it knows, if all is as it should be as far as can be seen without running a
/// program.
pub(crate) fn stamp(kernel: &mut dyn Kernel) -> Option<(String, Vec<String>)> {
    if track::stands(kernel) == Some(false) {
        return None;
    }
    let dir = bpffs::find().ok()??;
    let seen = observe(&dir).ok()?;
    let drift = seen.drift(&dir);
    let InForce { version, interfaces, .. } = seen.in_force(drift);
    Some((version?, interfaces))
}

/// What differs from the bundle, with a packet that is judged otherwise, if there is one and the program is the bundle's.
fn against(goal: &Goal<'_>, live: &Generation, settled: bool, drift: &mut Vec<String>) {
    let (Some(pair), Some(version)) = (&goal.read.ebpf, goal.bundle.manifest.artifacts.get(&Artifact::Ebpf))
    else {
        return;
    };
    let wanted = Wanted::of(pair, *version, live.meta.established);
    let contents = &wanted.artifact.contents;
    if live.meta.version != *version {
        drift.push(format!("version {} is in force, not the bundle's {version}", live.meta.version));
    } else if live.meta.contents != wanted.meta.contents {
        drift.push("the maps were filled with something else than the bundle's".to_owned());
    }
    let behind = interfaces(goal, contents).ok();
    let there = live.interfaces().ok();
    if there != behind {
        drift.push("other interfaces of pods than the routes say".to_owned());
    }
    let (program, artifact) = match live.settled.as_ref().filter(|_| settled) {
        Some(program) => (program, &pair.keep),
        None => (&live.program, wanted.artifact),
    };
    match live.is(program, artifact) {
        Err(error) => drift.push(format!("the program cannot be compared with the bundle's: {error}")),
        Ok(false) => drift.push("another program than the bundle's is in force".to_owned()),
        Ok(true) if drift.is_empty() => {}
        Ok(true) => {
            let entries = live.entries().ok();
            let witness = entries.and_then(|seen| named::difference(goal.bundle, contents, seen));
            drift.extend(witness.map(|witness| witness.to_string()));
        }
    }
}

/// What of ours is in the kernel.
#[derive(Debug)]
struct Observed {
    hook: Option<Hook>,
    /// The version that the hook calls.
    live: Option<Generation>,
    /// Whether it calls the version's second program.
    settled: bool,
    /// Directories of versions that no packet meets.
    stale: Vec<PathBuf>,
}

/// # Errors
/// If something of it cannot be opened, though it may be there: then nothing may be taken for a leftover, and nothing for
/// missing.
fn observe(dir: &Path) -> Result<Observed, Error> {
    let unreadable = |path: &Path, error: io::Error| {
        Error::Incomplete(format!("what is in force cannot be read: {}: {error}", path.display()))
    };
    let hook = Hook::open(dir).map_err(|error| unreadable(dir, error))?;
    let id = hook.as_ref().and_then(Hook::program_id);
    let mut observed = Observed { hook, live: None, settled: false, stale: Vec::new() };
    let called = |program: &ObjectFd| id.is_some() && program.program_id().ok() == id;
    for path in generations(dir).map_err(|error| unreadable(dir, error))? {
        match Generation::open(&path) {
            Ok(found) if called(&found.program) => observed.live = Some(found),
            Ok(found) if found.settled.as_ref().is_some_and(called) => {
                observed.live = Some(found);
                observed.settled = true;
            }
            Err(error) if lacks_means(&error) => return Err(unreadable(&path, error)),
            _ => observed.stale.push(path),
        }
    }
    Ok(observed)
}

/// The directories of versions, whole or not.
fn generations(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    found.retain(|path| number(path).is_some());
    found.sort_by_key(|path| number(path));
    Ok(found)
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix('g')?.parse().ok()
}

fn next_generation(dir: &Path) -> Result<PathBuf, Error> {
    let there = generations(dir).map_err(|error| Error::io(dir.display().to_string(), error))?;
    let last = there.last().and_then(|path| number(path)).unwrap_or(0);
    Ok(dir.join(format!("g{}", last + 1)))
}

impl Observed {
    /// Why packets do not meet the version that this says; empty if they do, or if there is nothing.
    fn broken(&self, dir: &Path) -> Vec<String> {
        self.hook.as_ref().map(|hook| hook.faults(dir)).unwrap_or_default()
    }

    /// Why this is not wholly the version that it says; empty if it is, or if there is nothing.
    fn drift(&self, dir: &Path) -> Vec<String> {
        if self.hook.is_none() {
            let lost = "the hook has lost its slot, so that everything that is forwarded is dropped";
            return hook::stands(dir).then(|| lost.to_owned()).into_iter().collect();
        }
        let mut reasons = self.broken(dir);
        match &self.live {
            None if reasons.is_empty() => reasons.push("the hook calls no version of ours".to_owned()),
            None => {}
            Some(live) => match live.contents() {
                Ok(contents) if contents == live.meta.contents => {}
                Ok(_) => reasons.push("the maps hold something else than they were filled with".to_owned()),
                Err(error) => reasons.push(format!("the maps cannot be read: {error}")),
            },
        }
        reasons
    }

    fn remove_stale(&self, notes: &mut Vec<String>) {
        for path in &self.stale {
            if let Err(error) = bpffs::remove(path) {
                notes.push(format!(
                    "what an earlier version left could not be removed, no packet meets it: {}: {error}",
                    path.display()
                ));
            }
        }
    }

    fn in_force(&self, drift: Vec<String>) -> InForce {
        let mut counts = BTreeMap::new();
        let mut interfaces = Vec::new();
        let mut dropped_packets = BTreeMap::new();
        if let Some(live) = &self.live {
            for entry in live.entries().unwrap_or_default() {
                *counts.entry(entry.map.name().to_owned()).or_insert(0) += 1;
            }
            let indices = live.interfaces().unwrap_or_default().into_keys();
            interfaces.extend(indices.map(name_of));
            dropped_packets.insert("deny".to_owned(), sum(&live.denied().unwrap_or_default()));
        }
        let version = self.live.as_ref().map(|live| live.meta.version.to_string());
        InForce {
            backend: Backend::Ebpf,
            version: version.filter(|_| drift.is_empty()),
            counts,
            interfaces,
            dropped_packets,
            denied: Vec::new(),
            drift,
        }
    }
}

fn sum(packets: &[u64]) -> u64 {
    packets.iter().fold(0, |sum, packets| sum.saturating_add(*packets))
}

/// The packets that were denied, by the policies behind the rows; nothing if another version is in force.
pub(crate) fn denied(contents: &Contents, version: Version) -> Vec<Denied> {
    let Some(dir) = bpffs::find().ok().flatten().filter(|dir| dir.exists()) else { return Vec::new() };
    let live = observe(&dir).ok().and_then(|seen| seen.live).filter(|live| live.meta.version == version);
    let packets = live.and_then(|live| live.denied().ok()).unwrap_or_default();
    let rows = packets.chunks(contents.columns.max(1) as usize).map(sum);
    let mut denied: BTreeMap<String, u64> = BTreeMap::new();
    for (label, packets) in contents.rows.iter().zip(rows) {
        let (direction, policies) = label.split_once(' ').unwrap_or_default();
        // As many as rules of nftables would name, so that what is counted is called the same.
        let policies = policies.split(", ").map(str::to_owned).collect();
        let sum = denied.entry(not_allowed(direction, &policies, limits::COMMENT_BYTES)).or_default();
        *sum = sum.saturating_add(packets);
    }
    Denied::list(denied.iter().filter_map(|(said, packets)| Some((denying(said)?, *packets))).collect())
}

/// The name of an interface, or its number if it is gone.
fn name_of(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok();
    name.map_or_else(|| format!("#{index}"), |name| name.to_string_lossy().into_owned())
}

/// Which of the contents' pods is behind which interface.
fn interfaces(goal: &Goal<'_>, contents: &Contents) -> Result<BTreeMap<u32, u32>, Error> {
    Ok(interfaces_of(&goal.bundle.bindings()?.pods, goal.interfaces, contents))
}

fn interfaces_of(pods: &[LocalPod], interfaces: &PodInterfaces, contents: &Contents) -> BTreeMap<u32, u32> {
    let mut found = BTreeMap::new();
    for (name, behind) in &interfaces.pods {
        // One that has just gone takes its packets with it.
        let Ok(index) = if_nametoindex(name.as_str()) else { continue };
        let addresses = behind.iter().filter_map(|i| pods.get(*i)).flat_map(|pod| &pod.addresses);
        let numbers: BTreeSet<u32> = addresses
            .filter_map(|addr| contents.pods.get(addr))
            .map(|pod| pod.pod)
            .filter(|n| *n != 0)
            .collect();
        let shared = interfaces.shared.contains(name);
        match numbers.into_iter().collect::<Vec<_>>().as_slice() {
            [] => {}
            [one] if !shared => drop(found.insert(index, *one)),
            _ => drop(found.insert(index, SHARED)),
        }
    }
    found
}

/// Lets addresses of pods come and go in the version in force. Each comes or goes in one step: first those that go, then
/// interfaces, so that no packet of a new pod is taken for forged, then those that come. What the version is called is
/// changed last: a loader that is killed before has left maps that are no version of ours, and a successor mends them.
///
/// # Errors
/// If another version is in force, or if the kernel refuses; then part of it may have been done, which the next look mends.
pub(crate) fn rebind(
    from: Version,
    to: Version,
    (contents, digest): (&Contents, Version),
    changed: &BTreeMap<IpAddr, Option<Pod>>,
    (pods, behind): (&[LocalPod], &PodInterfaces),
) -> Result<(), Error> {
    let other = || Unlike(format!("version {from} is not in force"));
    let dir = bpffs::find()?.ok_or_else(other)?;
    let Observed { hook: Some(hook), live: Some(live), settled, .. } = observe(&dir)? else {
        return Err(other().into());
    };
    if live.meta.version != from {
        return Err(other().into());
    }
    if settled {
        hook.switch(&live.program)?;
    }
    live.set_pods(contents, changed, false)?;
    live.set_interfaces(&interfaces_of(pods, behind, contents))?;
    live.set_pods(contents, changed, true)?;
    live.rename(Meta { version: to, contents: digest, established: live.meta.established })
}

/// What the loader was told becomes of connections, as the programs are called.
impl From<Established> for netpolc_bundle::bpf::contents::Established {
    fn from(established: Established) -> Self {
        match established {
            Established::Cut => Self::Cut,
            Established::Keep => Self::Keep,
        }
    }
}
