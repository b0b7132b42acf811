//! One node at a time: plan, emit, read back, prove, bundle.

use crate::args::Backend;
use crate::failure::Failure;
use crate::pipeline::Compiled;
use netpolc_bundle::{Bindings, Bundle, LocalPod, Origin as Place, Parts, Provenance};
use netpolc_frontend::model::Model;
use netpolc_frontend::reference::SetReference;
use netpolc_frontend::source::Sources;
use netpolc_ir::matrix::Matrix;
use netpolc_ir::proof::{Artifact, Packet, Proof, prove};
use netpolc_ir::unit::{Flow, Host, Origin, Verdict};
use netpolc_nftables::decode::Machine;
use netpolc_nftables::emit::{Names, emit};
use netpolc_nftables::select::{Origins, Plan, Selector, local_pods};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

/// The names of policies, with or without places, for comments.
pub(crate) struct Labels {
    labels: Vec<String>,
    places: HashMap<Origin, Place>,
}

impl Labels {
    /// With `places`, every label ends in `file:line:column`; without, labels do not change when a policy is moved.
    pub(crate) fn new(model: &Model, sources: &Sources, places: bool) -> Labels {
        let mut labels = Vec::with_capacity(model.origins.len());
        let mut known = HashMap::new();
        for (i, origin) in model.origins.iter().enumerate() {
            let place = sources.place(origin.at);
            let label = if places { format!("{} {place}", origin.policy) } else { origin.policy.clone() };
            labels.push(label);
            let place = Place {
                policy: origin.policy.clone(),
                file: place.file,
                line: place.line,
                column: place.column,
            };
            known.insert(Origin(i as u32), place);
        }
        Labels { labels, places: known }
    }
}

impl Origins for Labels {
    fn label(&self, origin: Origin) -> String {
        self.labels.get(origin.0 as usize).cloned().unwrap_or_default()
    }
}

/// The nodes to work on: all, or those that were asked for.
pub(crate) fn choose(matrix: &Matrix, wanted: &[String]) -> Result<Vec<Host>, Failure> {
    if wanted.is_empty() {
        return Ok(matrix.hosts.keys().collect());
    }
    let find = |name: &String| {
        let host = matrix.hosts.iter().find(|(_, h)| h.name == *name).map(|(host, _)| host);
        host.ok_or_else(|| Failure::Unusable(format!("there is no node {name}")))
    };
    wanted.iter().map(find).collect()
}

/// Refuses backends that are not there yet, rather than passing them over.
pub(crate) fn only_nftables(backends: &[Backend]) -> Result<(), Failure> {
    match backends.iter().find(|b| **b != Backend::Nftables) {
        Some(backend) => {
            let name = format!("{backend:?}").to_lowercase();
            Err(Failure::Unusable(format!("--backend {name}: this version makes nftables scripts only")))
        }
        None => Ok(()),
    }
}

/// Makes the proven bundle of a node.
pub(crate) struct NodeBuilder<'c> {
    compiled: &'c Compiled,
    labels: &'c Labels,
    reference: SetReference<'c>,
    selector: Selector<'c>,
    ir: &'c str,
}

/// A bundle and what was compared for it.
pub(crate) struct Built {
    pub(crate) bundle: Bundle,
    pub(crate) proof: Proof,
    pub(crate) elements: usize,
}

impl<'c> NodeBuilder<'c> {
    pub(crate) fn new(compiled: &'c Compiled, labels: &'c Labels, ir: &'c str) -> NodeBuilder<'c> {
        NodeBuilder {
            compiled,
            labels,
            reference: SetReference::new(&compiled.input.model),
            selector: Selector::new(&compiled.matrix, labels),
            ir,
        }
    }

    /// The plan of a node.
    pub(crate) fn plan(&mut self, host: Host) -> Result<Plan, Failure> {
        self.selector.plan(host).map_err(|e| Failure::Unsupported(e.to_string()))
    }

    /// Plans, emits, reads back and proves.
    pub(crate) fn build(&mut self, host: Host) -> Result<Built, Failure> {
        let matrix = &self.compiled.matrix;
        let node = matrix.hosts[host].name.as_str();
        let plan = self.plan(host)?;
        let script = emit(&plan.ruleset, &header(node));
        let elements =
            plan.ruleset.tables.values().flat_map(|t| t.sets.values()).map(|s| s.elements.len()).sum();
        let mut parts = self.parts(host, &plan, elements);
        drop(plan);
        parts.script = script;
        let (mut bundle, ruleset) = Bundle::with_ruleset(parts).map_err(|e| Failure::Bug(e.to_string()))?;
        let mut machine = Machine::new(ruleset);
        let proof = prove(&self.reference, &mut machine, node).map_err(|w| {
            Failure::Bug(format!("node {node}: the rules are not what the policies say: {w}"))
        })?;
        bundle.manifest.proof = proof_counts(&proof);
        Ok(Built { bundle, proof, elements })
    }

    fn parts(&self, host: Host, plan: &Plan, elements: usize) -> Parts {
        let data = &self.compiled.matrix.hosts[host];
        let objects = plan.provenance.iter().map(|(name, origins)| {
            let places = origins.iter().filter_map(|o| self.labels.places.get(o).cloned());
            (name.clone(), places.collect())
        });
        let count = |n: usize| n as u64;
        let tables = plan.ruleset.tables.values();
        let counts = BTreeMap::from([
            ("chains".to_owned(), tables.clone().map(|t| count(t.chains.len())).sum()),
            ("sets".to_owned(), tables.clone().map(|t| count(t.sets.len())).sum()),
            ("rules".to_owned(), tables.flat_map(|t| t.chains.values()).map(|c| count(c.rules.len())).sum()),
            ("elements".to_owned(), count(elements)),
        ]);
        Parts {
            compiler: env!("CARGO_PKG_VERSION").to_owned(),
            node: data.name.clone(),
            node_addresses: data.addrs.clone(),
            counts,
            proof: BTreeMap::new(),
            script: String::new(),
            bindings: Bindings { pods: local_bindings(&self.compiled.matrix, host) },
            provenance: Provenance { objects: objects.collect() },
            ir: self.ir.to_owned(),
        }
    }

    /// What is wrong with the bindings of a bundle: they must list just the pods of its node.
    pub(crate) fn bindings_fault(&self, bundle: &Bundle) -> Option<String> {
        let matrix = &self.compiled.matrix;
        let (host, _) = matrix.hosts.iter().find(|(_, h)| h.name == bundle.manifest.node)?;
        let listed = match bundle.bindings() {
            Ok(bindings) => bindings.pods,
            Err(error) => return Some(error.to_string()),
        };
        (listed != local_bindings(matrix, host))
            .then(|| "its bindings do not list the pods of this node".to_owned())
    }

    /// Proves a bundle that was read from a disk.
    pub(crate) fn prove(&self, bundle: &Bundle) -> Result<Result<Proof, String>, Failure> {
        let unusable = |e: netpolc_bundle::BundleError| Failure::Unusable(e.to_string());
        let node = bundle.manifest.node.as_str();
        let mut machine = Machine::new(bundle.ruleset().map_err(unusable)?);
        Ok(prove(&self.reference, &mut machine, node).map_err(|w| format!("node {node}: {w}")))
    }
}

/// Which pod has which address, for people.
pub(crate) fn pod_names(matrix: &Matrix) -> Names {
    let pods = matrix.endpoints.values();
    pods.flat_map(|pod| pod.addrs.iter().map(|(addr, _)| (*addr, pod.name.clone()))).collect()
}

/// The pods of a node, as a bundle lists them.
fn local_bindings(matrix: &Matrix, host: Host) -> Vec<LocalPod> {
    let pods = local_pods(matrix, host).into_iter().map(|(name, mut addresses)| {
        addresses.sort_unstable();
        LocalPod { name, addresses }
    });
    pods.collect()
}

fn header(node: &str) -> Vec<String> {
    vec![
        format!("netpolc {}: node {node}", env!("CARGO_PKG_VERSION")),
        "Made by `netpolc build` and proven against the policies; not to be edited by hand.".to_owned(),
        "`nft -f` loads it in one transaction; `netpol-loader apply` does that too and clears up what is left over.".to_owned(),
    ]
}

fn proof_counts(proof: &Proof) -> BTreeMap<String, u64> {
    let figures = [
        ("atoms", proof.atoms),
        ("cells", proof.cells),
        ("comparisons", proof.comparisons),
        ("local", proof.local),
        ("packets", proof.packets),
    ];
    figures.into_iter().map(|(name, n)| (name.to_owned(), n)).collect()
}

/// What the artifact of a node does with packets, as they pass the node.
pub(crate) struct NodeJudge {
    machine: Machine,
    local: HashSet<IpAddr>,
    node: HashSet<IpAddr>,
}

impl NodeJudge {
    pub(crate) fn new(
        machine: Machine,
        local: impl IntoIterator<Item = IpAddr>,
        node: &[IpAddr],
    ) -> NodeJudge {
        NodeJudge { machine, local: local.into_iter().collect(), node: node.iter().copied().collect() }
    }

    /// Traffic between a pod and its own node does not cross the forward hook, so no rule sees it.
    pub(crate) fn decide(&self, flow: &Flow) -> Verdict {
        let own = |pod: &IpAddr, other: &IpAddr| self.local.contains(pod) && self.node.contains(other);
        if own(&flow.src, &flow.dst) || own(&flow.dst, &flow.src) {
            return Verdict::Allow;
        }
        self.machine.decide(&Packet::opening(*flow))
    }
}
