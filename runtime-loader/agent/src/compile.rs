//! Objects -> the proven bundle of one node, by the same way as `netpolc build`.

use crate::relevant::keep_relevant;
use netpolc_bundle::{Backend, Bundle};
use netpolc_frontend::model::resolve;
use netpolc_frontend::objects::Objects;
use netpolc_frontend::source::Sources;
use netpolc_ir::text;
use netpolc_node::{BuildError, Labels, NodeBuilder, compile as common};

/// Compiles for one node, and only what its rules depend on.
///
/// # Errors
/// If a backend refuses, or if we have a bug.
pub fn compile(
    mut objects: Objects,
    sources: &Sources,
    node: &str,
    backends: &[Backend],
) -> Result<Bundle, BuildError> {
    keep_relevant(&mut objects, node);
    compile_all(objects, sources, node, backends)
}

/// Compiles for one node.
///
/// # Errors
/// If a backend refuses, or if we have a bug.
pub fn compile_all(
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
    // As in a build: the bindings list this node's pods, and all others would make the bundle as large as the cluster.
    let mut policies = compiled.optimized;
    policies.endpoints.clear();
    let ir = text::write(&policies);
    let mut builder = NodeBuilder::new(&model, &compiled.matrix, &labels, backends.iter().copied(), &ir);
    Ok(builder.build(host)?.bundle)
}
