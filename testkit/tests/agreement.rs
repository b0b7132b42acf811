//! Every stage gives every flow the verdict that the model gives it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use netpolc_frontend::reference::SetReference;
use netpolc_ir::proof::prove;
use netpolc_ir::unit::{Flow, Verdict};
use netpolc_testkit::flows::Questions;
use netpolc_testkit::generate::{Options, generate};
use netpolc_testkit::pipeline::{Compiled, Node, compile, decide, model, seeds};
use netpolc_testkit::random::Random;

/// Flows that are asked about, for each seed. The proof covers all of them; this is what the proof is held against.
const FLOWS: usize = 1_500;

fn compiled(yaml: &str) -> (Compiled, Vec<Node>) {
    let model = model(&[("cluster.yaml", yaml.to_owned())]).unwrap();
    let compiled = compile(model).unwrap();
    let nodes = compiled.nodes().unwrap();
    (compiled, nodes)
}

/// Where a stage disagrees with the model about a flow.
fn disagreements(compiled: &Compiled, nodes: &[Node], flows: &[Flow]) -> Vec<String> {
    let bindings = compiled.unit.bindings();
    let optimized: Vec<_> =
        compiled.after.iter().map(|(name, unit)| (*name, unit, unit.bindings())).collect();
    let matrix = netpolc_ir::eval::Bindings::new(&compiled.matrix.endpoints, &compiled.matrix.hosts);
    let mut found = Vec::new();
    for flow in flows {
        let expected = compiled.model.decide(flow).verdict;
        let mut check = |stage: &str, actual: Verdict| {
            if actual != expected {
                found.push(format!("{flow}: the model says {expected}, {stage} says {actual}"));
            }
        };
        check("the unit", compiled.unit.decide(&bindings, flow));
        for (name, unit, bindings) in &optimized {
            check(name, unit.decide(bindings, flow));
        }
        check("the matrix", compiled.matrix.decide(&matrix, flow));
        check("the script", decide(nodes, flow));
    }
    found
}

fn check(seed: u64, options: Options, flows: usize) {
    let cluster = generate(seed, options);
    let yaml = cluster.yaml();
    let run = std::panic::catch_unwind(|| {
        let (compiled, nodes) = compiled(&yaml);
        let questions = Questions::new(&compiled.model);
        let flows = questions.sample(&mut Random::new(seed), flows);
        let found = disagreements(&compiled, &nodes, &flows);
        assert!(found.is_empty(), "{}", found[..found.len().min(10)].join("\n"));
        let reference = SetReference::new(&compiled.model);
        for mut node in nodes {
            let name = node.name.clone();
            if let Err(witness) = prove(&reference, &mut node.machine, &name) {
                let flow = witness.packet.flow;
                let said = compiled.model.decide(&flow);
                panic!("node {name} is not proven: {witness}; the model says {:?}\n{}", said, node.script);
            }
        }
    });
    assert!(run.is_ok(), "seed {seed} {options:?} failed:\n{yaml}");
}

/// First seed, so that long runs can be split.
fn first() -> u64 {
    std::env::var("NETPOLC_FIRST_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn network_policies() {
    (first()..first() + seeds(250)).for_each(|seed| check(seed, Options::default(), FLOWS));
}

#[test]
fn tiers() {
    let options = Options { tiers: true, ..Options::default() };
    (first()..first() + seeds(150)).for_each(|seed| check(seed, options, FLOWS));
}

#[test]
fn every_flow_of_a_few_clusters() {
    (90_000..90_002).for_each(|seed| check(seed, Options::default(), usize::MAX));
}

/// A generator that no longer makes what it is there for would let everything pass.
#[test]
fn the_generator_makes_what_it_promises() {
    let mut counts: std::collections::BTreeMap<&str, usize> = Default::default();
    for seed in 0..120 {
        let cluster = generate(seed, Options { tiers: seed % 2 == 1, ..Options::default() });
        let (compiled, nodes) = compiled(&cluster.yaml());
        let mut count = |what, n| *counts.entry(what).or_default() += n;
        let flows = Questions::new(&compiled.model).sample(&mut Random::new(seed), 300);
        let allowed = flows.iter().filter(|f| compiled.model.decide(f).verdict == Verdict::Allow).count();
        count("allowed", allowed);
        count("denied", flows.len() - allowed);
        for pod in &compiled.model.pods {
            count("host network", usize::from(pod.host_network));
            count("made-up address", usize::from(pod.planned));
            count(
                "two families",
                usize::from(pod.addrs.iter().any(|a| a.is_ipv4()) && pod.addrs.iter().any(|a| a.is_ipv6())),
            );
        }
        for script in nodes.iter().map(|n| &n.script) {
            for what in [
                "map ports_",
                "map ranges_",
                "map protos_",
                "set pods_",
                "set not_",
                "set blocks_",
                "map blocks32_",
                "map blocks128_",
                "map blocks1_",
                "jump out_",
                "goto in_",
                "set isolated_",
            ] {
                count(what, script.matches(what).count());
            }
        }
    }
    let scarce: Vec<_> = counts.iter().filter(|(_, n)| **n < 20).collect();
    assert!(scarce.is_empty() && counts.len() == 17, "{counts:?}");
}
