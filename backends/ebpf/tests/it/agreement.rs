//! What the instructions of the object do is what the policies say, for every packet.

use super::common::{compiled, nodes};
use netpolc_ebpf::contents::Established;
use netpolc_frontend::reference::SetReference;
use netpolc_ir::proof::prove;
use netpolc_ir::unit::Verdict;
use netpolc_testkit::flows::Questions;
use netpolc_testkit::generate::{Options, generate};
use netpolc_testkit::pipeline::seeds;
use netpolc_testkit::random::Random;

fn check(yaml: &str, seed: u64, established: Established) {
    let compiled = compiled(yaml);
    let mut nodes = nodes(&compiled, established);
    let reference = SetReference::new(&compiled.model);
    for flow in Questions::new(&compiled.model).sample(&mut Random::new(seed), 400) {
        let expected = compiled.model.decide(&flow).verdict;
        let actual = Verdict::allow_if(nodes.iter().all(|n| n.decide(&flow) == Verdict::Allow));
        assert_eq!(actual, expected, "seed {seed} {established:?}: {flow}\n{yaml}");
    }
    for node in &mut nodes {
        if let Err(witness) = prove(&reference, &mut node.machine, &node.name) {
            panic!(
                "seed {seed} {established:?}, node {}: {witness}\n{}\n{yaml}",
                node.name,
                node.contents.text()
            );
        }
    }
}

fn established(seed: u64) -> Established {
    if seed.is_multiple_of(2) { Established::Cut } else { Established::Keep }
}

#[test]
fn network_policies() {
    for seed in 0..seeds(250) {
        check(&generate(seed, Options::default()).yaml(), seed, established(seed));
    }
}

#[test]
fn tiers() {
    let options = Options { tiers: true, ..Options::default() };
    for seed in 0..seeds(120) {
        check(&generate(seed, options).yaml(), seed, established(seed));
    }
}

#[test]
fn a_small_cluster_both_ways() {
    for established in Established::ALL {
        check(&super::common::shop(), 1, established);
    }
}
