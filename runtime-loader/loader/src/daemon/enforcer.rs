//! What the daemon needs of whatever enforces a bundle.

use crate::apply::{self, Report};
use crate::cut::Established;
use crate::kernel::{Kernel as _, System};
use crate::routes::Routes;
use crate::status::{self, Status};
use crate::{Error, generation};
use netpolc_bundle::{Backend, Bundle};

/// Brings bundles into force.
pub trait Enforcer: Send {
    /// As [`apply::apply_bundle`].
    ///
    /// # Errors
    /// As there; what was in force still is.
    fn apply(&mut self, bundle: &Bundle, established: Established) -> Result<Report, Error>;

    /// What is in force.
    ///
    /// # Errors
    /// If that cannot be found out.
    fn status(&mut self) -> Result<Status, Error>;

    /// Something that is the same at two moments only if nothing between them can have changed what is in force, or
    /// what should be. `None` if there is no such thing: then one has to look.
    fn stamp(&mut self) -> Option<Stamp>;
}

/// See [`Enforcer::stamp`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The number of the last transaction of nftables.
    generation: u32,
    /// Where the interfaces of pods are found.
    routes: Routes,
}

/// The kernel of this network namespace, anew for each operation: so the lock is held no longer than one takes, and a
/// program that is installed later is found.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThisKernel(pub Option<Backend>);

impl Enforcer for ThisKernel {
    fn apply(&mut self, bundle: &Bundle, established: Established) -> Result<Report, Error> {
        apply::apply_bundle(&mut System::new(), bundle, self.0, established)
    }

    fn status(&mut self) -> Result<Status, Error> {
        status::status(&mut System::new(), None)
    }

    fn stamp(&mut self) -> Option<Stamp> {
        // Other backends have no such number.
        if self.0 != Some(Backend::Nftables) {
            return None;
        }
        let routes = System::new().routes().ok()?;
        Some(Stamp { generation: generation::current().ok()?, routes })
    }
}
