//! Bundles for tests in the kernel.

use crate::pipeline::Compiled;
use netpolc_bundle::{Backend, store};
use netpolc_node::{Labels, NodeBuilder};
use std::path::Path;

/// The backends whose rules are tried in this kernel: without root, programs cannot be loaded.
pub fn backends(root: bool) -> Vec<Backend> {
    Backend::ALL.into_iter().filter(|backend| root || *backend != Backend::Ebpf).collect()
}

/// Writes a proven bundle for each node into a directory, in folders of the nodes' names.
///
/// # Errors
/// What the builder or the file system says.
pub fn write(compiled: &Compiled, backends: &[Backend], dir: &Path) -> Result<(), String> {
    let labels = Labels::of_policies(&compiled.model);
    let ir = netpolc_ir::text::write(compiled.optimized());
    let backends = backends.iter().copied();
    let mut builder = NodeBuilder::new(&compiled.model, &compiled.matrix, &labels, backends, &ir);
    for (host, data) in compiled.matrix.hosts.iter() {
        let built = builder.build(host).map_err(|e| e.to_string())?;
        let folder = dir.join(&data.name);
        std::fs::create_dir(&folder).map_err(|e| e.to_string())?;
        store::write(&folder, &built.bundle).map_err(|e| e.to_string())?;
    }
    Ok(())
}
