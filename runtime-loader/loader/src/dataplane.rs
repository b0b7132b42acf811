//! What each backend does for the loader.
//!
//! A backend that is asked to apply leaves the rules of the others alone; [`crate::apply`] takes those out once the new
//! ones are in force. So at a change of backend packets meet both for a moment: what both allow passes, and nothing else.

use crate::Error;
use crate::cut::Established;
use crate::ebpf::Ebpf;
use crate::ebpf::spare::Spare;
use crate::iptables::Iptables;
use crate::kernel::Kernel;
use crate::nftables::Nftables;
use crate::nftables::observe::Observed;
use crate::routes::PodInterfaces;
use netpolc_bundle::{Backend, Bundle, ReadBack, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What is to be brought into force.
#[derive(Debug)]
pub struct Goal<'a> {
    /// The bundle.
    pub bundle: &'a Bundle,
    /// Its artifacts.
    pub read: &'a ReadBack,
    /// The interfaces of the node's pods.
    pub interfaces: &'a PodInterfaces,
    /// What becomes of established connections.
    pub established: Established,
    /// Whether the caller has this backend in force and looks after it, so that what only another hand can have changed
    /// need not be looked at.
    pub kept: bool,
    /// Whether the caller has seen the very rule that switches conntrack on for eBPF.
    pub tracked: bool,
    /// The rules of nftables that are in the kernel, if the caller knows them.
    pub seen: Option<&'a Observed>,
    /// What of eBPF may have been made before.
    pub spare: Option<&'a Spare>,
}

/// What happened to the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The version was in force already, and the interfaces were right.
    Unchanged,
    /// The version was in force already; only interfaces of pods were added or taken out.
    Interfaces,
    /// The version was in force already, but its rules had other comments: a policy was moved, say.
    Comments,
    /// There were no rules, or those of another version.
    Applied,
    /// The rules had been changed by another hand, and now are the bundle's.
    Repaired,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Unchanged => "unchanged",
            Outcome::Interfaces => "interfaces of pods updated",
            Outcome::Comments => "comments updated",
            Outcome::Applied => "applied",
            Outcome::Repaired => "repaired",
        })
    }
}

/// What a backend has in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InForce {
    /// The backend.
    #[serde(serialize_with = "as_text")]
    pub backend: Backend,
    /// The version that is in force; `None` if the rules in the kernel are no version of ours.
    pub version: Option<String>,
    /// Figures: what there is how much of.
    pub counts: BTreeMap<String, u64>,
    /// The interfaces of local pods that the rules know.
    pub interfaces: Vec<String>,
    /// How many packets were dropped, by what dropped them.
    pub dropped_packets: BTreeMap<String, u64>,
    /// How many of them no policy allows, as far as the rules say for whom they count.
    pub denied: Vec<Denied>,
    /// What differs from the version that the kernel's objects name, or from the bundle that was given.
    pub drift: Vec<String>,
}

/// Packets that no policy allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// `ingress` where they were to a pod, `egress` where they were from one.
    pub direction: String,
    /// The policies that isolate the pod so, `namespace/name`, with commas between; of many the first.
    pub policies: String,
    /// How many there were since the version came into force.
    pub packets: u64,
}

impl Denied {
    /// From packets by direction and policies.
    pub(crate) fn list(packets: BTreeMap<(&str, &str), u64>) -> Vec<Denied> {
        let denied = |((direction, policies), packets): ((&str, &str), u64)| Denied {
            direction: direction.to_owned(),
            policies: policies.to_owned(),
            packets,
        };
        packets.into_iter().map(denied).collect()
    }
}

fn as_text<S: serde::Serializer>(backend: &Backend, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(backend)
}

/// A backend.
pub trait Dataplane {
    /// Which it is.
    fn backend(&self) -> Backend;

    /// Why this kernel cannot enforce a bundle so, or without a goal any bundle; `None` if it can.
    fn missing(&self, kernel: &mut dyn Kernel, goal: Option<&Goal<'_>>) -> Option<String>;

    /// Makes the kernel enforce the goal, in one step. The answer is the version in force and how it came about.
    ///
    /// # Errors
    /// If the kernel refuses; then what was in force still is.
    fn apply(
        &self,
        kernel: &mut dyn Kernel,
        goal: &Goal<'_>,
        notes: &mut Vec<String>,
    ) -> Result<(Version, Outcome), Error>;

    /// What of ours is in the kernel; `None` if nothing is. With a goal it is compared with that too.
    ///
    /// # Errors
    /// If the kernel cannot be looked at.
    fn status(&self, kernel: &mut dyn Kernel, goal: Option<&Goal<'_>>) -> Result<Option<InForce>, Error>;

    /// Whether there is anything that [`Dataplane::remove`] would take out.
    ///
    /// # Errors
    /// If the kernel cannot be looked at.
    fn has_any(&self, kernel: &mut dyn Kernel) -> Result<bool, Error>;

    /// Takes out everything of ours; the answer names what there was.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn remove(&self, kernel: &mut dyn Kernel) -> Result<Vec<String>, Error>;
}

/// All backends, in the order in which they are preferred.
pub const ALL: [&dyn Dataplane; 3] = [&Ebpf, &Nftables, &Iptables];

/// The backend of this name.
pub fn of(backend: Backend) -> &'static dyn Dataplane {
    match backend {
        Backend::Ebpf => &Ebpf,
        Backend::Nftables => &Nftables,
        Backend::Iptables => &Iptables,
    }
}
