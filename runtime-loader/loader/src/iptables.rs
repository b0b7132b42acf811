//! The backend iptables.

use crate::Error;
use crate::dataplane::{Dataplane, Goal, InForce, Outcome};
use crate::kernel::Kernel;
use netpolc_bundle::{Backend, Version};

/// Our chains of iptables and our ipsets, by way of the programs.
#[derive(Debug)]
pub struct Iptables;

impl Dataplane for Iptables {
    fn backend(&self) -> Backend {
        Backend::Iptables
    }

    fn missing(&self, _: &mut dyn Kernel, _: &Goal<'_>) -> Option<String> {
        Some("this version of the loader cannot load it yet".to_owned())
    }

    fn apply(
        &self,
        _: &mut dyn Kernel,
        _: &Goal<'_>,
        _: &mut Vec<String>,
    ) -> Result<(Version, Outcome), Error> {
        Err(Error::Refused("this version of the loader cannot load it yet".to_owned()))
    }

    fn status(&self, _: &mut dyn Kernel, _: Option<&Goal<'_>>) -> Result<Option<InForce>, Error> {
        Ok(None)
    }

    fn remove(&self, _: &mut dyn Kernel) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }
}
