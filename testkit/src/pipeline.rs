//! The way from texts to proven rules, with every stage kept.

use netpolc_frontend::diagnostic::{Diagnostic, Severity};
use netpolc_frontend::model::{Model, resolve};
use netpolc_frontend::source::Sources;
use netpolc_frontend::{lower, read};
use netpolc_ir::matrix::{Matrix, fold};
use netpolc_ir::passes;
use netpolc_ir::proof::{Artifact, Packet};
use netpolc_ir::unit::{Flow, Host, Origin, Unit, Verdict};
use netpolc_ir::verify::verify;
use netpolc_nftables::decode::{Machine, decode};
use netpolc_nftables::emit::emit;
use netpolc_nftables::select::{Origins, Plan, Selector};
use std::collections::HashSet;
use std::net::IpAddr;

/// All stages of one input.
#[derive(Debug)]
pub struct Compiled {
    /// The resolved input.
    pub model: Model,
    /// As lowered.
    pub unit: Unit,
    /// After each pass, with the pass's name.
    pub after: Vec<(&'static str, Unit)>,
    /// Folded after the last pass.
    pub matrix: Matrix,
}

/// A node's rules.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The rules as planned.
    pub plan: Plan,
    /// The rules as text.
    pub script: String,
    /// The text, read back.
    pub machine: Machine,
    local: HashSet<IpAddr>,
    own: HashSet<IpAddr>,
}

/// Reads named texts. Fails on any error in them.
///
/// # Errors
/// The first diagnostics that are errors.
pub fn model(texts: &[(&str, String)]) -> Result<Model, String> {
    let mut sources = Sources::default();
    for (name, text) in texts {
        sources.add(*name, text.clone().into_bytes());
    }
    let read = read::read(&sources);
    let (model, more) = resolve(read.objects);
    let errors: Vec<&Diagnostic> =
        read.diagnostics.iter().chain(&more).filter(|d| d.severity == Severity::Error).collect();
    if errors.is_empty() { Ok(model) } else { Err(format!("{errors:#?}")) }
}

/// Compiles a model as far as all nodes have it in common.
///
/// # Errors
/// A stage that broke its promise: a bug.
pub fn compile(model: Model) -> Result<Compiled, String> {
    let unit = lower::lower(&model);
    let mut verified = verify(unit.clone()).map_err(|v| format!("lowering: {v:?}"))?;
    let mut after = Vec::new();
    for pass in passes::pipeline() {
        verified = passes::run_passes(&[*pass], verified, |_| {}).map_err(|e| e.to_string())?;
        after.push((pass.name, (*verified).clone()));
    }
    let matrix = fold(&verified);
    Ok(Compiled { model, unit, after, matrix })
}

/// Labels that name the policy alone, so that they do not change when it is moved.
#[derive(Debug)]
pub struct PolicyNames<'m>(pub &'m Model);

impl Origins for PolicyNames<'_> {
    fn label(&self, origin: Origin) -> String {
        self.0.origin(origin).map(|o| o.policy.clone()).unwrap_or_default()
    }
}

impl Compiled {
    /// The unit after the last pass.
    pub fn optimized(&self) -> &Unit {
        self.after.last().map_or(&self.unit, |(_, unit)| unit)
    }

    /// Plans, prints and reads back the rules of every node.
    ///
    /// # Errors
    /// If rules cannot be planned or read back.
    pub fn nodes(&self) -> Result<Vec<Node>, String> {
        let names = PolicyNames(&self.model);
        let mut selector = Selector::new(&self.matrix, &names);
        self.matrix.hosts.keys().map(|host| self.node(&mut selector, host)).collect()
    }

    fn node(&self, selector: &mut Selector<'_>, host: Host) -> Result<Node, String> {
        let plan = selector.plan(host).map_err(|e| e.to_string())?;
        let script = emit(&plan.ruleset, &[]);
        let machine = decode(&script).map_err(|e| format!("{e}\n{script}"))?;
        let data = &self.matrix.hosts[host];
        let local = self.matrix.endpoints.values().filter(|e| e.host == host);
        let local = local.flat_map(|e| e.addrs.iter().map(|(a, _)| *a)).collect();
        Ok(Node {
            name: data.name.clone(),
            plan,
            script,
            machine,
            local,
            own: data.addrs.iter().copied().collect(),
        })
    }
}

impl Node {
    /// The addresses of this node's pods.
    pub fn local(&self) -> &HashSet<IpAddr> {
        &self.local
    }

    /// Whether a flow is between a pod of this node and the node: such packets do not cross the forward hook.
    pub fn is_own(&self, flow: &Flow) -> bool {
        let own = |pod: &IpAddr, other: &IpAddr| self.local.contains(pod) && self.own.contains(other);
        own(&flow.src, &flow.dst) || own(&flow.dst, &flow.src)
    }

    /// Whether a packet with this flow can be told from others by this node's rules: a pod of the node has a part in it.
    pub fn touches(&self, flow: &Flow) -> bool {
        self.local.contains(&flow.src) || self.local.contains(&flow.dst)
    }

    /// What this node does with the packet that opens a flow.
    pub fn decide(&self, flow: &Flow) -> Verdict {
        self.decide_with(&self.machine, flow)
    }

    /// The same with other rules in force.
    pub fn decide_with(&self, machine: &Machine, flow: &Flow) -> Verdict {
        if self.is_own(flow) { Verdict::Allow } else { machine.decide(&Packet::opening(*flow)) }
    }
}

/// What all nodes together do with a flow: it passes where every one lets it pass.
pub fn decide(nodes: &[Node], flow: &Flow) -> Verdict {
    Verdict::allow_if(nodes.iter().all(|n| n.decide(flow) == Verdict::Allow))
}

/// The number in an environment variable, or a default.
pub fn seeds(default: u64) -> u64 {
    std::env::var("NETPOLC_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}
