//! The backend eBPF.

use crate::Error;
use crate::dataplane::{Dataplane, Goal, InForce, Outcome};
use crate::kernel::Kernel;
use netpolc_bundle::{Backend, Version};

/// Our programs at the FORWARD hook.
#[derive(Debug)]
pub struct Ebpf;

impl Dataplane for Ebpf {
    fn backend(&self) -> Backend {
        Backend::Ebpf
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
