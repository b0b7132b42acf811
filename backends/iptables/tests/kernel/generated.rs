//! Generated clusters: real packets meet the verdict that the model predicts.

use crate::as_root;
use crate::common::{compiled, nodes};
use crate::load::{Variant, load};
use netpolc_ir::addr::Family;
use netpolc_ir::ports::{Protocol, Transport};
use netpolc_ir::unit::{Flow, Verdict};
use netpolc_sandbox::{
    HostId, NodeSpec, Outcome, OutsideSpec, PodSpec, Probe, Protocol as Wire, Sandbox, Spec,
};
use netpolc_testkit::flows::Questions;
use netpolc_testkit::generate::{Options, generate};
use netpolc_testkit::pipeline::{Compiled, seeds};
use netpolc_testkit::random::Random;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// Flows of each cluster, about half of them denied.
const FLOWS: usize = 100;
/// Time for an answer, and for the second look at silence that was not expected.
const PATIENCE: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(3)];

fn wire(protocol: Protocol) -> Option<Wire> {
    Some(match protocol {
        Protocol::Transport(Transport::Tcp) => Wire::Tcp,
        Protocol::Transport(Transport::Udp) => Wire::Udp,
        Protocol::Transport(Transport::Sctp) => Wire::Sctp,
        Protocol::ICMP | Protocol::ICMPV6 => Wire::Icmp,
        Protocol::Other(_) => return None,
    })
}

/// Whether a host can have an address, in a sandbox that routes.
fn usable(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => (1..224).contains(&a.octets()[0]) && !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => (a.segments()[0] & 0xe000 == 0x2000) || (a.segments()[0] & 0xfe00 == 0xfc00),
    }
}

/// The cluster, and hosts at some bounds of its blocks.
fn spec(compiled: &Compiled, questions: &Questions, random: &mut Random) -> Spec {
    let ports = questions.services.iter().filter_map(|(p, n)| Some((wire(*p)?, *n)));
    let listen: BTreeSet<(Wire, u16)> = ports.filter(|(p, n)| *n != 0 && *p != Wire::Icmp).collect();
    let listen: Vec<(Wire, u16)> = listen.into_iter().collect();
    let names: Vec<&String> = compiled.model.nodes.keys().collect();
    let nodes = compiled.model.nodes.iter();
    let nodes = nodes.map(|(name, node)| (name.clone(), node.addrs.clone()));
    let nodes = nodes.map(|(name, addrs)| NodeSpec { name, addrs, listen: listen.clone() }).collect();
    let pods = compiled.model.pods.iter().filter(|p| !p.host_network).map(|pod| PodSpec {
        name: pod.full_name(),
        node: names.iter().position(|name| **name == pod.node).unwrap(),
        addrs: pod.addrs.clone(),
        listen: listen.clone(),
    });
    let mut spec = Spec { nodes, pods: pods.collect(), outside: Vec::new() };
    let mut taken: BTreeSet<IpAddr> = spec.hosts().flat_map(|h| spec.addrs(h).to_vec()).collect();
    let edges: Vec<IpAddr> = questions.others.iter().flatten().copied().filter(usable).collect();
    let outside = ["203.0.113.7", "2001:db8::7"].map(|a| a.parse().unwrap()).into_iter();
    let outside = outside.chain(random.sample(edges, 8)).filter(|a| taken.insert(*a));
    spec.outside = outside.map(|addr| OutsideSpec { addr, listen: listen.clone() }).collect();
    spec
}

/// Flows between hosts of the sandbox, allowed and denied ones in equal parts where there are both.
fn flows(
    compiled: &Compiled,
    spec: &Spec,
    questions: &Questions,
    random: &mut Random,
) -> Vec<(Flow, Verdict)> {
    let addrs = |host: HostId| spec.addrs(host).to_vec();
    let all: Vec<IpAddr> = spec.hosts().flat_map(addrs).collect();
    let pods: Vec<IpAddr> = spec.hosts().filter(|h| matches!(h, HostId::Pod(_))).flat_map(addrs).collect();
    let services = questions.services.iter().copied();
    let services: Vec<(Protocol, u16)> =
        services.filter(|(p, n)| wire(*p).is_some() && (*n != 0 || *p == Protocol::ICMP)).collect();
    let mut kinds: [BTreeSet<Flow>; 2] = Default::default();
    for _ in 0..FLOWS * 20 {
        let (pod, other) = (*random.pick(&pods).unwrap(), *random.pick(&all).unwrap());
        let (protocol, port) = *random.pick(&services).unwrap();
        if pod == other || pod.is_ipv4() != other.is_ipv4() {
            continue;
        }
        let (src, dst) = if random.percent(50) { (pod, other) } else { (other, pod) };
        let six = protocol == Protocol::ICMP && Family::of(src) == Family::V6;
        let flow = Flow { src, dst, protocol: if six { Protocol::ICMPV6 } else { protocol }, port };
        let list = &mut kinds[usize::from(compiled.model.decide(&flow).verdict == Verdict::Deny)];
        if list.len() < FLOWS / 2 {
            list.insert(flow);
        }
    }
    let verdicts = [Verdict::Allow, Verdict::Deny];
    kinds.into_iter().zip(verdicts).flat_map(|(list, v)| list.into_iter().map(move |f| (f, v))).collect()
}

/// The flows that did not do as predicted, after a second and longer look.
fn wrong(sandbox: &Sandbox, flows: &[(Flow, Verdict)]) -> Vec<(Flow, Verdict, Outcome)> {
    let mut left: Vec<(Flow, Verdict)> = flows.to_vec();
    let mut found = Vec::new();
    for patience in PATIENCE {
        let probe = |flow: &Flow| Probe {
            from: sandbox.owner(flow.src).unwrap(),
            from_addr: Some(flow.src),
            to: flow.dst,
            protocol: wire(flow.protocol).unwrap(),
            port: flow.port,
        };
        let probes: Vec<Probe> = left.iter().map(|(flow, _)| probe(flow)).collect();
        let outcomes = sandbox.probe_all(&probes, patience);
        let differs = |((flow, expected), outcome): ((Flow, Verdict), Outcome)| {
            (outcome.arrived() != Some(expected == Verdict::Allow)).then_some((flow, expected, outcome))
        };
        found = left.into_iter().zip(outcomes).filter_map(differs).collect();
        left = found.iter().map(|(f, v, _)| (*f, *v)).collect();
    }
    found
}

/// Returns how many flows were allowed and denied.
fn check(seed: u64, variant: Variant, sets: bool) -> [usize; 2] {
    let yaml = generate(seed, Options { buildable: true, tiers: seed % 4 == 3 }).yaml();
    let compiled = compiled(&yaml);
    let nodes = nodes(&compiled, sets);
    let mut random = Random::new(seed);
    let questions = Questions::new(&compiled.model);
    let spec = spec(&compiled, &questions, &mut random);
    let sandbox = Sandbox::build(&spec).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{spec:?}"));
    let flows = flows(&compiled, &spec, &questions, &mut random);
    // Without rules everything arrives; else silence would say nothing.
    let all: Vec<(Flow, Verdict)> = flows.iter().map(|(f, _)| (*f, Verdict::Allow)).collect();
    let lost = wrong(&sandbox, &all);
    assert!(lost.is_empty(), "seed {seed}: without rules {lost:?}\n{yaml}");
    for (i, node) in nodes.iter().enumerate() {
        load(&sandbox, i, variant, node);
    }
    let found = wrong(&sandbox, &flows);
    assert!(found.is_empty(), "seed {seed}, {variant:?}, sets {sets}: {found:#?}\n{yaml}");
    [Verdict::Allow, Verdict::Deny].map(|v| flows.iter().filter(|(_, verdict)| *verdict == v).count())
}

#[test]
fn packets_meet_the_predicted_verdict() {
    as_root("generated::packets_meet_the_predicted_verdict", || {
        let mut counts = [0; 2];
        for i in 0..seeds(8) {
            let (variant, sets) = (Variant::ALL[i as usize % 2], i % 4 < 2);
            let [allowed, denied] = check(700 + i * 3, variant, sets);
            counts = [counts[0] + allowed, counts[1] + denied];
        }
        assert!(counts.iter().all(|n| *n > 50), "{counts:?}");
    });
}
