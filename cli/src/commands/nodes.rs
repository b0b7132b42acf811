//! Nodes and backends, as the commands ask for them.

use crate::args::Backend;
use crate::failure::Failure;
use crate::pipeline::Compiled;
use netpolc_ir::matrix::Matrix;
use netpolc_ir::unit::Host;
use netpolc_nftables::emit::Names;
use netpolc_node::{BuildError, Labels, MachinesError, NodeBuilder, local_bindings};
use std::collections::BTreeSet;

impl From<Backend> for netpolc_bundle::Backend {
    fn from(backend: Backend) -> netpolc_bundle::Backend {
        match backend {
            Backend::Nftables => netpolc_bundle::Backend::Nftables,
            Backend::Iptables => netpolc_bundle::Backend::Iptables,
            Backend::Ebpf => netpolc_bundle::Backend::Ebpf,
        }
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Failure {
        match error {
            BuildError::Unsupported(..) => Failure::Unsupported(error.to_string()),
            BuildError::Bug(text) => Failure::Bug(text),
        }
    }
}

impl From<MachinesError> for Failure {
    fn from(error: MachinesError) -> Failure {
        Failure::Unusable(error.to_string())
    }
}

/// The nodes to work on: all, or those that were asked for, each once and in the order of their names.
pub(crate) fn choose(matrix: &Matrix, wanted: &[String]) -> Result<Vec<Host>, Failure> {
    if wanted.is_empty() {
        return Ok(matrix.hosts.keys().collect());
    }
    let find = |name: &String| {
        let host = matrix.hosts.iter().find(|(_, h)| h.name == *name).map(|(host, _)| host);
        host.ok_or_else(|| Failure::Unusable(format!("there is no node {name}")))
    };
    // A node that is named twice is still one: its bundle has one folder.
    let unique: BTreeSet<&String> = wanted.iter().collect();
    unique.into_iter().map(find).collect()
}

/// The names of policies for comments, with their places or without.
pub(crate) fn labels(compiled: &Compiled, places: bool) -> Labels {
    Labels::new(&compiled.input.model, &compiled.input.sources, places)
}

/// What makes the bundles of nodes for these backends. `policies` is the text of the policies that every bundle carries.
pub(crate) fn builder<'c>(
    compiled: &'c Compiled,
    labels: &'c Labels,
    backends: &[Backend],
    policies: Option<&'c str>,
) -> NodeBuilder<'c> {
    let backends = backends.iter().map(|backend| (*backend).into());
    NodeBuilder::new(&compiled.input.model, &compiled.matrix, labels, backends, policies)
}

/// What is wrong with the bindings of a bundle: they must list just the pods of its node.
pub(crate) fn bindings_fault(matrix: &Matrix, bundle: &netpolc_bundle::Bundle) -> Option<String> {
    let (host, _) = matrix.hosts.iter().find(|(_, h)| h.name == bundle.manifest.node)?;
    let listed = match bundle.bindings() {
        Ok(bindings) => bindings.pods,
        Err(error) => return Some(error.to_string()),
    };
    (listed != local_bindings(matrix, host))
        .then(|| "its bindings do not list the pods of this node".to_owned())
}

/// Which pod has which address, for people.
pub(crate) fn pod_names(matrix: &Matrix) -> Names {
    let pods = matrix.endpoints.values();
    pods.flat_map(|pod| pod.addrs.iter().map(|(addr, _)| (*addr, pod.name.clone()))).collect()
}
