//! Bundles for tests in the kernel.

use crate::pipeline::Compiled;
use netpolc_bundle::{Backend, Bundle, store};
use netpolc_node::{Labels, NodeBuilder};
use std::path::Path;

/// The backends whose rules are tried in this kernel: without root, programs cannot be loaded.
pub fn backends(root: bool) -> Vec<Backend> {
    Backend::ALL.into_iter().filter(|backend| root || *backend != Backend::Ebpf).collect()
}

/// Makes a proven bundle for each node, in the order of the nodes.
///
/// # Errors
/// What the builder says.
pub fn build(compiled: &Compiled, backends: &[Backend]) -> Result<Vec<Bundle>, String> {
    let labels = Labels::of_policies(&compiled.model);
    let backends = backends.iter().copied();
    let mut builder = NodeBuilder::new(&compiled.model, &compiled.matrix, &labels, backends, None);
    let built = |host| builder.build(host).map(|built| built.bundle).map_err(|e| e.to_string());
    compiled.matrix.hosts.keys().map(built).collect()
}

/// Writes these bundles into a directory, in folders of the nodes' names.
///
/// # Errors
/// What the builder or the file system says.
pub fn write(compiled: &Compiled, backends: &[Backend], dir: &Path) -> Result<(), String> {
    for bundle in build(compiled, backends)? {
        let folder = dir.join(&bundle.manifest.node);
        std::fs::create_dir(&folder).map_err(|e| e.to_string())?;
        store::write(&folder, &bundle).map_err(|e| e.to_string())?;
    }
    Ok(())
}
