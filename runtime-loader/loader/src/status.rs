//! `netpol-loader status`: what is in force.

use crate::cut::Established;
use crate::dataplane::{self, Denied, Goal, InForce};
use crate::kernel::Kernel;
use crate::{Error, bridges, routes};
use netpolc_bundle::comment::NOT_ALLOWED;
use netpolc_bundle::{Bundle, ReadBack};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whether a version is in force and nothing differs from it.
    pub in_force: bool,
    /// The version, where it is in force.
    pub version: Option<String>,
    /// The backend that enforces it.
    pub backend: Option<String>,
    /// What of ours is in the kernel: one entry, if all is well.
    pub dataplanes: Vec<InForce>,
    /// What differs from the version that the kernel's objects name, or from the bundle that was given.
    pub drift: Vec<String>,
    /// What passes by the rules in force, whatever they say.
    pub bypassed: Vec<String>,
}

/// Looks at the kernel, and compares it with the bundle in a directory if one is given.
///
/// # Errors
/// If the kernel cannot be looked at, or if the bundle is not sound.
pub fn status(kernel: &mut dyn Kernel, bundle: Option<&Path>) -> Result<Status, Error> {
    let Some(dir) = bundle else { return look(kernel, None) };
    let bundle = Bundle::open(dir)?;
    let read = bundle.read_back()?;
    status_of(kernel, &bundle, &read)
}

/// As [`status`], for a bundle that was read already.
///
/// # Errors
/// As [`status`].
pub fn status_of(kernel: &mut dyn Kernel, bundle: &Bundle, read: &ReadBack) -> Result<Status, Error> {
    let (interfaces, _) = routes::pod_interfaces(&bundle.bindings()?, &kernel.routes()?);
    let goal = Goal {
        bundle,
        read,
        interfaces: &interfaces,
        established: Established::Cut,
        kept: false,
        seen: None,
        spare: None,
        tracked: false,
    };
    look(kernel, Some(&goal))
}

fn look(kernel: &mut dyn Kernel, goal: Option<&Goal<'_>>) -> Result<Status, Error> {
    let mut dataplanes = Vec::new();
    for dataplane in dataplane::ALL {
        dataplanes.extend(dataplane.status(kernel, goal)?);
    }
    let mut drift: Vec<String> = dataplanes.iter().flat_map(|found: &InForce| found.drift.clone()).collect();
    if let [first, second, ..] = dataplanes.as_slice() {
        drift.push(format!("both {} and {} have rules in force", first.backend, second.backend));
    }
    let interfaces: BTreeSet<String> = dataplanes.iter().flat_map(|found| found.interfaces.clone()).collect();
    let bypassed = bridges::bypassed(kernel, &interfaces);
    let first = dataplanes.first();
    let version = first.and_then(|found| found.version.clone()).filter(|_| dataplanes.len() == 1);
    Ok(Status {
        in_force: version.is_some() && drift.is_empty(),
        version,
        backend: first.map(|found| found.backend.to_string()),
        dataplanes,
        drift,
        bypassed,
    })
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.version, &self.backend) {
            (Some(version), Some(backend)) => writeln!(f, "in force: version {version}, backend {backend}")?,
            (_, Some(_)) => writeln!(f, "drifted: the rules in the kernel are no version of ours")?,
            (_, None) => {
                writeln!(f, "nothing in force: there is nothing of netpolc in this network namespace")?
            }
        }
        for found in &self.dataplanes {
            let interfaces = format!("{} interfaces of local pods", found.interfaces.len());
            let mut figures: Vec<String> =
                found.counts.iter().map(|(what, n)| format!("{n} {what}")).collect();
            figures.push(interfaces);
            writeln!(f, "{}: {}", found.backend, figures.join(", "))?;
            for (what, packets) in &found.dropped_packets {
                writeln!(f, "{}: {packets} packets dropped by {what}", found.backend)?;
            }
            for Denied { direction, policies, packets } in found.denied.iter().filter(|d| d.packets > 0) {
                let what = format!("{packets} packets {direction}{NOT_ALLOWED}{policies}");
                writeln!(f, "{}: {what}", found.backend)?;
            }
        }
        for line in &self.drift {
            writeln!(f, "drift: {line}")?;
        }
        for line in &self.bypassed {
            writeln!(f, "bypassed: {line}")?;
        }
        Ok(())
    }
}
