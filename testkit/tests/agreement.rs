//! Every stage gives every flow the verdict that the model gives it, and what the proof relies on holds.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use netpolc_bundle::Backend;
use netpolc_frontend::reference::SetReference;
use netpolc_ir::addr::{Family, bits};
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::{Protocol, Transport};
use netpolc_ir::proof::{Artifact, Atoms, Bounds, Kind, Reference, prove};
use netpolc_ir::unit::{Direction, Flow, Verdict};
use netpolc_node::Machines;
use netpolc_testkit::bundles;
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

/// The first ports of all stretches that policies or artifact name.
fn starts(of: [&Bounds; 2], transport: Transport) -> Vec<u16> {
    let ports = of.into_iter().flat_map(|bounds| bounds.ports[transport as usize].iter().copied());
    ports.chain([0]).collect::<std::collections::BTreeSet<u16>>().into_iter().collect()
}

/// Holds that answers change at no other ports than those which are said to be about an address; gives how many stretches
/// were left out by that.
fn changes_where_it_says(reference: &SetReference<'_>, artifact: &mut dyn Artifact, node: &str) -> usize {
    let mut left_out = 0;
    for family in Family::ALL {
        let endpoints: Vec<_> =
            reference.endpoints(node).into_iter().filter(|e| Family::of(e.0) == family).collect();
        let bound: Vec<_> = endpoints.iter().map(|e| (bits(e.0), e.1, e.2)).collect();
        let constants = (artifact.addresses(family), &reference.constants().addrs[family as usize]);
        let atoms = Atoms::new(family, &bound, &constants.0, constants.1);
        let others: BitSet = (0..atoms.len()).map(|atom| (atom, !atoms.local(atom))).collect();
        let all = artifact.ports();
        artifact.begin(&atoms);
        for &(addr, group, _) in endpoints.iter().filter(|e| e.2) {
            let Some(own) = artifact.ports_of(&atoms, addr) else { continue };
            for transport in Transport::ALL {
                let protocol = Protocol::Transport(transport);
                let mut before = None;
                for port in starts([&all, reference.constants()], transport) {
                    let mut answers = Vec::new();
                    for (direction, kind) in [
                        (Direction::Ingress, Kind::Opening),
                        (Direction::Ingress, Kind::Asymmetric),
                        (Direction::Egress, Kind::Opening),
                    ] {
                        let asked = artifact.permitted_kind(&atoms, addr, direction, kind, protocol, port);
                        let mut answer = asked.unwrap();
                        // What is said of the address itself is not asked for.
                        if atoms.representative(atoms.atom(bits(addr))) == bits(addr) {
                            answer.remove(atoms.atom(bits(addr)));
                        }
                        if direction == Direction::Egress {
                            answer.and_with(&others);
                        }
                        answers.push(answer);
                    }
                    let said =
                        Direction::ALL.map(|direction| reference.permits(group, direction, protocol, port));
                    if let Some((answered, meant)) = &before {
                        if !own.ports[transport as usize].contains(&port) {
                            assert!(answers == *answered, "{node}: {addr}, {protocol:?} {port}");
                            left_out += 1;
                        }
                        for direction in Direction::ALL {
                            let changes = reference.ports(group, direction);
                            let new = changes.ports[transport as usize].contains(&port);
                            let (direction, meant): (_, &[Option<_>; 2]) = (direction as usize, meant);
                            assert!(new || said[direction] == meant[direction], "{node}: {addr}, {port}");
                        }
                    }
                    before = Some((answers, said));
                }
            }
        }
    }
    left_out
}

/// The proof asks about each address only where something may change for it: see [`Artifact::ports_of`].
#[test]
fn answers_change_where_it_is_said() {
    let mut left_out = [0; 3];
    for seed in first()..first() + seeds(60) {
        let cluster = generate(seed, Options { tiers: seed % 4 == 3, ..Options::default() });
        let (compiled, _) = compiled(&cluster.yaml());
        let reference = SetReference::new(&compiled.model);
        for bundle in bundles::build(&compiled, &Backend::ALL).unwrap() {
            for (i, backend) in Backend::ALL.into_iter().enumerate() {
                let mut machine = Machines::open(&bundle).unwrap().take(backend).unwrap();
                left_out[i] += changes_where_it_says(&reference, machine.as_mut(), &bundle.manifest.node);
            }
        }
    }
    assert!(left_out.iter().all(|n| *n > 100), "{left_out:?}");
}
