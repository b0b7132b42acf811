//! Objects -> the proven bundle of one node, by the same way as `netpolc build`.

use crate::alike::Alike;
use crate::log;
use crate::relevant::Slice;
use netpolc_bundle::{Backend, Bundle};
use netpolc_frontend::model::resolve;
use netpolc_frontend::objects::Objects;
use netpolc_frontend::source::Sources;
use netpolc_node::{BuildError, Labels, NodeBuilder, compile as common};

/// Which of several backends a bundle has artifacts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All.
    All,
    /// The first that can express the policies.
    First,
}

/// Compiles, and remembers what the last bundle was made of. Most events of a cluster are about pods that no rule of the
/// node depends on: they lead to the same slice, and the same slice to the same bundle.
#[derive(Debug, Default)]
pub struct Compiler {
    /// Of what, and for which backends.
    last: Option<(Objects, Vec<Backend>)>,
    /// Which pods the rules cannot tell apart that are in force.
    pub alike: Alike,
}

impl Compiler {
    /// The bundle of a node; `None` if its rules depend on nothing else than those of the last one that was made.
    ///
    /// # Errors
    /// As [`compile`]. The last bundle is then still the one that was made last.
    pub fn bundle(
        &mut self,
        slice: Slice,
        node: &str,
        (which, backends): (Which, &[Backend]),
    ) -> Result<Option<Bundle>, BuildError> {
        let Slice { objects, sources, alike } = slice;
        // The names of the sources follow from the objects.
        if self.last.as_ref().is_some_and(|(last, of)| *last == objects && of == backends) {
            self.alike = alike;
            return Ok(None);
        }
        let bundle = match which {
            Which::All => compile(objects.clone(), &sources, node, backends)?,
            Which::First => compile_for_first(&objects, &sources, node, backends)?,
        };
        (self.last, self.alike) = (Some((objects, backends.to_vec())), alike);
        Ok(Some(bundle))
    }
}

/// As [`compile`], for the first of the backends that can express the policies; and why those before it could not.
fn compile_for_first(
    objects: &Objects,
    sources: &Sources,
    node: &str,
    backends: &[Backend],
) -> Result<Bundle, BuildError> {
    let mut refused = BuildError::Bug("there is no backend to compile for".to_owned());
    for backend in backends {
        match compile(objects.clone(), sources, node, &[*backend]) {
            Err(error @ BuildError::Unsupported(..)) => {
                log::warn("a backend cannot express the policies", &[("error", &error)]);
                refused = error;
            }
            result => return result,
        }
    }
    Err(refused)
}

/// Compiles for one node what its rules depend on.
///
/// # Errors
/// If a backend refuses, or if we have a bug.
pub fn compile(
    objects: Objects,
    sources: &Sources,
    node: &str,
    backends: &[Backend],
) -> Result<Bundle, BuildError> {
    let (model, _) = resolve(objects);
    let compiled = common(&model, &mut |_| ()).map_err(BuildError::Bug)?;
    let host = compiled.matrix.hosts.iter().find(|(_, h)| h.name == node).map(|(host, _)| host);
    let host = host.ok_or_else(|| BuildError::Bug(format!("there is no node {node}")))?;
    // Objects of the API have no lines; their names are in the provenance.
    let labels = Labels::new(&model, sources, false);
    // The loader has no use for the policies themselves.
    let mut builder = NodeBuilder::new(&model, &compiled.matrix, &labels, backends.iter().copied(), None);
    Ok(builder.build(host)?.bundle)
}
