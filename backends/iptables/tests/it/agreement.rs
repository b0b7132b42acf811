//! The decoded texts give every flow the verdict that the model gives it.

use crate::common::{Node, compiled, nodes};
use netpolc_frontend::reference::SetReference;
use netpolc_ir::proof::{Artifact, Packet, prove};
use netpolc_ir::unit::{Flow, Verdict};
use netpolc_testkit::flows::Questions;
use netpolc_testkit::generate::{Options, generate};
use netpolc_testkit::pipeline::{Compiled, seeds};
use netpolc_testkit::random::Random;

/// Whether a flow is between a pod and its own node, so that no rule sees it.
fn own(compiled: &Compiled, node: &str, flow: &Flow) -> bool {
    let host = compiled.matrix.hosts.iter().find(|(_, h)| h.name == node).unwrap();
    let local = |a| {
        let mut pods = compiled.matrix.endpoints.values().filter(|e| e.host == host.0);
        pods.any(|e| e.addrs.iter().any(|(b, _)| *b == a))
    };
    let pair = |pod, other| local(pod) && host.1.addrs.contains(&other);
    pair(flow.src, flow.dst) || pair(flow.dst, flow.src)
}

fn decide(compiled: &Compiled, nodes: &[Node], flow: &Flow) -> Verdict {
    let passes = |n: &Node| {
        own(compiled, &n.name, flow) || n.machine.decide(&Packet::opening(*flow)) == Verdict::Allow
    };
    Verdict::allow_if(nodes.iter().all(passes))
}

fn check(seed: u64, options: Options, flows: usize) {
    let yaml = generate(seed, options).yaml();
    let compiled = compiled(&yaml);
    let flows = Questions::new(&compiled.model).sample(&mut Random::new(seed), flows);
    for sets in [true, false] {
        let mut nodes = nodes(&compiled, sets);
        for flow in &flows {
            let (expected, actual) = (compiled.model.decide(flow).verdict, decide(&compiled, &nodes, flow));
            assert_eq!(actual, expected, "seed {seed} {options:?}, sets {sets}: {flow}\n{yaml}");
        }
        let reference = SetReference::new(&compiled.model);
        for node in &mut nodes {
            if let Err(witness) = prove(&reference, &mut node.machine, &node.name) {
                panic!("seed {seed} {options:?}, sets {sets}: {witness}\n{}\n{yaml}", node.artifacts.v4);
            }
        }
    }
}

#[test]
fn network_policies() {
    (0..seeds(300)).for_each(|seed| check(seed, Options::default(), 400));
}

#[test]
fn tiers() {
    let options = Options { tiers: true, ..Options::default() };
    (0..seeds(150)).for_each(|seed| check(1_000_000 + seed, options, 400));
}
