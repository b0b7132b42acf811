//! A version that is made before anyone asks for it.
//!
//! Most of what a new version takes is that the kernel verifies its program, and that program is the same for every version
//! whose maps have the same shapes: one in which a policy has other ports, say. So while nobody waits, a program is loaded
//! with empty maps of the shapes that are in force, for the next version to fill. Nothing pins it: it goes with the process,
//! and no packet meets it before it is a version like any other.

use super::sys::{MapFd, ObjectFd};
use crate::Error;
use crate::cut::Established;
use netpolc_bundle::ReadBack;
use netpolc_bundle::bpf::btf::MapShape;
use netpolc_bundle::bpf::layout::Map;
use netpolc_bundle::bpf::object::{Artifact, Information, Program};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most bytes of keys and values for which the kernel is asked to have room twice.
const MOST_BYTES: u64 = 8 << 20;

/// Maps without entries, and a program that asks them.
#[derive(Debug)]
pub(super) struct Blank {
    pub(super) program: ObjectFd,
    pub(super) maps: BTreeMap<Map, MapFd>,
}

/// What a program was loaded from.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    program: Program,
    information: Information,
    shapes: Vec<MapShape>,
}

impl Made {
    fn is_of(&self, artifact: &Artifact) -> bool {
        let Artifact { program, information, shapes, .. } = artifact;
        (&self.program, &self.information, &self.shapes) == (program, information, shapes)
    }
}

/// Room for one.
#[derive(Debug, Default)]
pub struct Spare(Mutex<Option<(Made, Blank)>>);

impl Spare {
    fn lock(&self) -> MutexGuard<'_, Option<(Made, Blank)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that is there, if it is for versions of this artifact. Then there is none.
    pub(super) fn take(&self, artifact: &Artifact) -> Option<Blank> {
        let (made, blank) = self.lock().take()?;
        made.is_of(artifact).then_some(blank)
    }

    /// Makes one for versions like the one that was read back, in place of one for others.
    ///
    /// # Errors
    /// What the kernel refuses; then there is none.
    pub fn provide(&self, read: &ReadBack, established: Established) -> Result<(), Error> {
        let Some(pair) = &read.ebpf else { return Ok(()) };
        let artifact = match established {
            Established::Cut => &pair.cut,
            Established::Keep => &pair.keep,
        };
        if self.lock().as_ref().is_some_and(|(made, _)| made.is_of(artifact)) {
            return Ok(());
        }
        *self.lock() = None;
        let bytes = artifact.shapes.iter().map(|s| u64::from(s.entries) * u64::from(s.key + s.value));
        if bytes.sum::<u64>() > MOST_BYTES {
            return Ok(());
        }
        let blank = Blank::make(artifact)?;
        let made = Made {
            program: artifact.program.clone(),
            information: artifact.information.clone(),
            shapes: artifact.shapes.clone(),
        };
        *self.lock() = Some((made, blank));
        Ok(())
    }
}
