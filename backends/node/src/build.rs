//! Plan, emit, read back, prove, bundle.

use crate::labels::Labels;
use crate::proving::{Unproven, with_helpers};
use netpolc_bundle::{
    Artifact, Artifacts, Backend, Bindings, Bundle, CLASSES, EbpfFiles, IptablesFiles, LocalPod, Parts,
    Provenance, ReadBack,
};
use netpolc_ebpf::contents::Established;
use netpolc_frontend::model::Model;
use netpolc_frontend::reference::SetReference;
use netpolc_ir::matrix::Matrix;
use netpolc_ir::proof::Proof;
use netpolc_ir::unit::{Host, Origin};
use netpolc_nftables::select::local_pods;
use std::collections::{BTreeMap, BTreeSet};

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A backend cannot express the policies.
    #[error("{0}: {1}")]
    Unsupported(Backend, String),
    /// A stage broke its promise, or the artifact does not say what the policies say: a bug of ours.
    #[error("{0}")]
    Bug(String),
}

/// A bundle and what was compared for it.
#[derive(Debug)]
pub struct Built {
    /// The bundle.
    pub bundle: Bundle,
    /// What was proven, by artifact.
    pub proofs: BTreeMap<Artifact, Proof>,
    /// Worth knowing: what was left out and why, how many rules a packet meets.
    pub notes: Vec<String>,
}

/// Makes the proven bundles of nodes. What nodes share is made once.
pub struct NodeBuilder<'c> {
    model: &'c Model,
    matrix: &'c Matrix,
    labels: &'c Labels,
    backends: BTreeSet<Backend>,
    reference: SetReference<'c>,
    nftables: netpolc_nftables::select::Selector<'c>,
    /// With ipsets, and without.
    iptables: [netpolc_iptables::select::Selector<'c>; 2],
    /// Which of these two alone, where it is known.
    form: Option<Artifact>,
    policies: Option<&'c str>,
    /// How many prove at a time, and what each of them but the first does before.
    threads: (usize, &'c (dyn Fn() + Sync)),
}

impl std::fmt::Debug for NodeBuilder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeBuilder").field("backends", &self.backends).finish_non_exhaustive()
    }
}

/// What is gathered for one bundle.
#[derive(Default)]
struct Gathered {
    artifacts: Artifacts,
    provenance: BTreeMap<String, Vec<Origin>>,
    counts: BTreeMap<String, u64>,
    notes: Vec<String>,
}

impl Gathered {
    fn count(&mut self, backend: Backend, what: &str, n: usize) {
        self.counts.insert(format!("{backend}.{what}"), n as u64);
    }

    fn origins(&mut self, objects: impl IntoIterator<Item = (String, Vec<Origin>)>) {
        for (name, origins) in objects {
            let known = self.provenance.entry(name).or_default();
            known.extend(origins);
            known.sort_unstable();
            known.dedup();
        }
    }
}

impl<'c> NodeBuilder<'c> {
    /// For these backends. `policies` are those that every bundle carries, as a `List` in JSON.
    pub fn new(
        model: &'c Model,
        matrix: &'c Matrix,
        labels: &'c Labels,
        backends: impl IntoIterator<Item = Backend>,
        policies: Option<&'c str>,
    ) -> NodeBuilder<'c> {
        use netpolc_iptables::select::Selector;
        NodeBuilder {
            model,
            matrix,
            labels,
            backends: backends.into_iter().collect(),
            reference: SetReference::new(model),
            nftables: netpolc_nftables::select::Selector::new(matrix, labels),
            iptables: [Selector::new(matrix, labels), Selector::new(matrix, labels).without_sets()],
            form: None,
            policies,
            threads: (1, &|| ()),
        }
    }

    /// Has so many threads prove at a time: for one node, where the threads are not busy with others. Each but the caller's
    /// begins with what is given: where it may run, say.
    pub fn on_threads(mut self, threads: usize, begin: &'c (dyn Fn() + Sync)) -> NodeBuilder<'c> {
        self.threads = (threads, begin);
        self
    }

    /// Of the two forms that rules of iptables have, makes one alone: for a node of which it is known which one it loads.
    pub fn in_form(mut self, form: Option<Artifact>) -> NodeBuilder<'c> {
        self.form = form.filter(|form| form.backend() == Backend::Iptables);
        self
    }

    /// The plan of a node for nftables.
    ///
    /// # Errors
    /// If nftables cannot express it.
    pub fn nftables_plan(&mut self, host: Host) -> Result<netpolc_nftables::select::Plan, BuildError> {
        let plan = self.nftables.plan(host);
        plan.map_err(|e| BuildError::Unsupported(Backend::Nftables, e.to_string()))
    }

    /// The artifacts of a node without proof, as text where they are text: for review.
    ///
    /// # Errors
    /// If a backend cannot express the policies.
    pub fn artifacts(&mut self, host: Host) -> Result<Artifacts, BuildError> {
        Ok(self.gather(host)?.artifacts)
    }

    /// Plans, emits, reads back and proves.
    ///
    /// # Errors
    /// If a backend cannot express the policies, or if a proof fails.
    pub fn build(&mut self, host: Host) -> Result<Built, BuildError> {
        let node = &self.matrix.hosts[host].name;
        with_helpers(self.model, node, self.threads, |helpers| {
            let (mut bundle, read, notes) = self.unproven(host)?;
            let proofs = helpers.prove(read, &self.reference).map_err(|unproven| match unproven {
                Unproven::Machine(error) => bug(&error),
                otherwise => bug(&format!("node {node}: {otherwise}")),
            })?;
            for (artifact, proof) in &proofs {
                bundle.manifest.proof.extend(proof_counts(*artifact, proof));
            }
            Ok(Built { bundle, proofs, notes })
        })
    }

    /// Plans, emits and reads back.
    fn unproven(&mut self, host: Host) -> Result<(Bundle, ReadBack, Vec<String>), BuildError> {
        let Gathered { artifacts, provenance, mut counts, notes } = self.gather(host)?;
        counts.insert(CLASSES.to_owned(), self.matrix.classes.len() as u64);
        let data = &self.matrix.hosts[host];
        let objects = provenance.into_iter().map(|(name, origins)| (name, self.labels.places(&origins)));
        let parts = Parts {
            compiler: env!("CARGO_PKG_VERSION").to_owned(),
            node: data.name.clone(),
            node_addresses: data.addrs.clone(),
            counts,
            proof: BTreeMap::new(),
            artifacts,
            bindings: Bindings { pods: local_bindings(self.matrix, host) },
            provenance: Provenance::new(objects),
            policies: self.policies.map(str::to_owned),
        };
        let (bundle, read) = Bundle::with_read_back(parts).map_err(|e| bug(&e))?;
        Ok((bundle, read, notes))
    }

    /// Proves a bundle that was read from elsewhere.
    ///
    /// # Errors
    /// If it cannot be read, or else the first packet that is judged otherwise than the policies say.
    pub fn prove(&self, bundle: &Bundle) -> Result<BTreeMap<Artifact, Proof>, String> {
        let node = bundle.manifest.node.as_str();
        with_helpers(self.model, node, self.threads, |helpers| {
            let read = bundle.read_back().map_err(|e| e.to_string())?;
            helpers.prove(read, &self.reference).map_err(|unproven| match unproven {
                other @ (Unproven::Machine(_) | Unproven::Apart(..)) => other.to_string(),
                Unproven::Otherwise(artifact, witness) => {
                    format!("node {node}: {}: {witness}", artifact.backend())
                }
            })
        })
    }

    fn gather(&mut self, host: Host) -> Result<Gathered, BuildError> {
        let mut gathered = Gathered::default();
        for backend in self.backends.clone() {
            match backend {
                Backend::Ebpf => self.ebpf(host, &mut gathered)?,
                Backend::Nftables => self.nftables(host, &mut gathered)?,
                Backend::Iptables => self.iptables(host, &mut gathered)?,
            }
        }
        Ok(gathered)
    }

    fn nftables(&mut self, host: Host, gathered: &mut Gathered) -> Result<(), BuildError> {
        let plan = self.nftables_plan(host)?;
        let header = header(&self.matrix.hosts[host].name, "`nft -f` loads it in one transaction");
        gathered.artifacts.nftables = Some(netpolc_nftables::emit::emit(&plan.ruleset, &header));
        let tables = || plan.ruleset.tables.values();
        let figures = [
            ("chains", tables().map(|t| t.chains.len()).sum()),
            ("sets", tables().map(|t| t.sets.len()).sum()),
            ("rules", tables().flat_map(|t| t.chains.values()).map(|c| c.rules.len()).sum()),
            ("elements", tables().flat_map(|t| t.sets.values()).map(|s| s.elements.len()).sum()),
        ];
        figures.into_iter().for_each(|(what, n)| gathered.count(Backend::Nftables, what, n));
        gathered.origins(plan.provenance);
        Ok(())
    }

    fn iptables(&mut self, host: Host, gathered: &mut Gathered) -> Result<(), BuildError> {
        let name = &self.matrix.hosts[host].name;
        let header = header(name, "`ipset restore`, then `iptables-restore --noflush` loads it");
        let refused = |e: &dyn std::fmt::Display| BuildError::Unsupported(Backend::Iptables, e.to_string());
        let rules = |plan: &netpolc_iptables::select::Plan| -> usize {
            plan.ruleset.tables.values().flat_map(|chains| chains.values()).map(Vec::len).sum()
        };
        let [with_sets, without] = &mut self.iptables;
        if self.form != Some(Artifact::IptablesPlain) {
            let plan = with_sets.plan(host).map_err(|e| refused(&e))?;
            gathered.artifacts.iptables = Some(iptables_files(&plan, &header));
            gathered.notes.push(format!("{name}: iptables: {}", plan.worst_case()));
            let chains = plan.ruleset.tables.values().map(|chains| chains.len()).sum();
            gathered.count(Backend::Iptables, "chains", chains);
            gathered.count(Backend::Iptables, "rules", rules(&plan));
            gathered.count(Backend::Iptables, "sets", plan.ruleset.sets.len());
            let elements = plan.ruleset.sets.values().map(|set| set.elements.len()).sum();
            gathered.count(Backend::Iptables, "elements", elements);
            let worst = plan.worst_case();
            gathered.count(Backend::Iptables, "most-rules-met", worst.v4.max(worst.v6));
            gathered.origins(plan.provenance);
        }
        if self.form == Some(Artifact::Iptables) {
            return Ok(());
        }
        match without.plan(host) {
            Ok(plan) => {
                gathered.artifacts.iptables_plain = Some(iptables_files(&plan, &header));
                gathered.count(Backend::Iptables, "rules-without-sets", rules(&plan));
                gathered.origins(plan.provenance);
            }
            Err(error) if self.form.is_some() => return Err(refused(&error)),
            // Large sets of peers may not fit into plain rules; kernels with ipset are served all the same.
            Err(error) => {
                gathered.notes.push(format!("{name}: no iptables rules for kernels without ipset: {error}"));
            }
        }
        Ok(())
    }

    fn ebpf(&mut self, host: Host, gathered: &mut Gathered) -> Result<(), BuildError> {
        let plan = netpolc_ebpf::select::plan(self.matrix, host, self.labels);
        let plan = plan.map_err(|e| BuildError::Unsupported(Backend::Ebpf, e.to_string()))?;
        let object = |established| {
            netpolc_ebpf::emit::emit(&plan.contents, established).map_err(|e| BuildError::Bug(e.to_string()))
        };
        gathered.artifacts.ebpf = Some(EbpfFiles {
            cut: object(Established::Cut)?,
            keep: object(Established::Keep)?,
            maps: plan.contents.text(),
        });
        let contents = &plan.contents;
        let figures = [
            ("rows", contents.rows.len()),
            ("columns", contents.columns as usize),
            ("pods", contents.pods.len()),
            ("blocks", contents.blocks.len()),
            ("pairs", contents.pairs.len()),
            ("port-sets", contents.ports.len()),
        ];
        figures.into_iter().for_each(|(what, n)| gathered.count(Backend::Ebpf, what, n));
        gathered.origins(
            (1..).zip(plan.provenance).map(|(row, origins): (u32, _)| (format!("row {row}"), origins)),
        );
        Ok(())
    }
}

fn bug(error: &dyn std::fmt::Display) -> BuildError {
    BuildError::Bug(error.to_string())
}

fn iptables_files(plan: &netpolc_iptables::select::Plan, header: &[String]) -> IptablesFiles {
    let netpolc_iptables::emit::Artifacts { sets, v4, v6 } =
        netpolc_iptables::emit::emit(&plan.ruleset, header);
    IptablesFiles { sets, v4, v6 }
}

/// The pods of a node, as a bundle lists them.
pub fn local_bindings(matrix: &Matrix, host: Host) -> Vec<LocalPod> {
    let pods = local_pods(matrix, host).into_iter().map(|(name, mut addresses)| {
        addresses.sort_unstable();
        LocalPod { name, addresses }
    });
    pods.collect()
}

fn header(node: &str, how: &str) -> Vec<String> {
    vec![
        format!("netpolc {}: node {node}", env!("CARGO_PKG_VERSION")),
        "Made by `netpolc build` and proven against the policies; not to be edited by hand.".to_owned(),
        format!("{how}; `netpol-loader apply` does that too and clears up what is left over."),
    ]
}

fn proof_counts(artifact: Artifact, proof: &Proof) -> Vec<(String, u64)> {
    let figures = [
        ("atoms", proof.atoms),
        ("cells", proof.cells),
        ("comparisons", proof.comparisons),
        ("local", proof.local),
        ("packets", proof.packets),
    ];
    let backend = artifact.backend();
    figures.into_iter().map(|(name, n)| (format!("{backend}.{name}"), n)).collect()
}
