//! Generated clusters in the kernel: real packets meet the verdict that was predicted for them.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

use netpolc_bundle::Backend;
use netpolc_ir::addr::Family;
use netpolc_ir::ports::{Protocol, Transport};
use netpolc_ir::unit::{Flow, Verdict};
use netpolc_sandbox::{
    HostId, NodeSpec, Outcome, OutsideSpec, PodSpec, Probe, Protocol as Wire, Sandbox, Spec,
};
use netpolc_testkit::bundles;
use netpolc_testkit::flows::Questions;
use netpolc_testkit::generate::{Options, generate};
use netpolc_testkit::pipeline::{Compiled, Node, compile, decide, model, seeds};
use netpolc_testkit::random::Random;
use netpolc_testkit::samples::programs;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Flows for each cluster, about half of them denied.
const FLOWS: usize = 150;
/// Hosts outside, beside those that stand at the bounds of blocks.
const OUTSIDE: [&str; 4] = ["203.0.113.7", "198.51.100.1", "2001:db8::7", "2001:db8:1::1"];
/// Time for an answer, and for the second look at silence that was not expected.
const PATIENCE: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(3)];

/// Runs `body` as root: here if this is root, else in this same program started again in a user namespace.
fn as_root(test: &str, body: fn()) {
    if nix::unistd::geteuid().is_root() {
        return body();
    }
    let this = std::env::current_exe().unwrap();
    let output =
        Command::new("unshare").arg("-r").arg(this).args(["--exact", test, "--nocapture"]).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Whether root here is root of the machine.
fn in_first_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"))
}

fn spec(compiled: &Compiled, questions: &Questions, random: &mut Random) -> Spec {
    let ports: BTreeSet<(Wire, u16)> =
        questions.services.iter().filter_map(|(p, n)| Some((wire(*p)?, *n))).collect();
    let listen: Vec<(Wire, u16)> = ports.into_iter().filter(|(p, n)| *n != 0 && *p != Wire::Icmp).collect();
    let names: Vec<&String> = compiled.model.nodes.keys().collect();
    let nodes = compiled.model.nodes.iter();
    let nodes = nodes
        .map(|(name, n)| NodeSpec { name: name.clone(), addrs: n.addrs.clone(), listen: listen.clone() })
        .collect();
    let pods = compiled.model.pods.iter().filter(|p| !p.host_network).map(|p| PodSpec {
        name: p.full_name(),
        node: names.iter().position(|n| **n == p.node).unwrap(),
        addrs: p.addrs.clone(),
        listen: listen.clone(),
    });
    let mut spec = Spec { nodes, pods: pods.collect(), outside: Vec::new() };
    let mut taken: BTreeSet<IpAddr> = spec.hosts().flat_map(|h| spec.addrs(h).to_vec()).collect();
    let edges: Vec<IpAddr> = questions.others.iter().flatten().copied().filter(usable).collect();
    let wanted = OUTSIDE.iter().map(|a| a.parse().unwrap()).chain(random.sample(edges, 8));
    spec.outside = wanted
        .filter(|a| taken.insert(*a))
        .map(|addr| OutsideSpec { addr, listen: listen.clone() })
        .collect();
    spec
}

/// Whether a host can have an address, in a sandbox that routes.
fn usable(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => (1..224).contains(&a.octets()[0]) && !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => (a.segments()[0] & 0xe000 == 0x2000) || (a.segments()[0] & 0xfe00 == 0xfc00),
    }
}

fn wire(protocol: Protocol) -> Option<Wire> {
    Some(match protocol {
        Protocol::Transport(Transport::Tcp) => Wire::Tcp,
        Protocol::Transport(Transport::Udp) => Wire::Udp,
        Protocol::Transport(Transport::Sctp) => Wire::Sctp,
        Protocol::ICMP | Protocol::ICMPV6 => Wire::Icmp,
        Protocol::Other(_) => return None,
    })
}

/// Flows between hosts of the sandbox, allowed and denied ones in equal parts where there are both.
fn flows(spec: &Spec, questions: &Questions, nodes: &[Node], random: &mut Random) -> Vec<(Flow, Verdict)> {
    let addrs = |pods: bool| -> Vec<IpAddr> {
        let hosts = spec.hosts().filter(|h| !pods || matches!(h, HostId::Pod(_)));
        hosts.flat_map(|h| spec.addrs(h).to_vec()).collect()
    };
    let (pods, all) = (addrs(true), addrs(false));
    let services: Vec<(Protocol, u16)> = questions
        .services
        .iter()
        .copied()
        .filter(|(p, n)| wire(*p).is_some() && (*n != 0 || *p == Protocol::ICMP))
        .collect();
    let mut kinds: [BTreeSet<Flow>; 2] = Default::default();
    for _ in 0..FLOWS * 20 {
        let (Some(pod), Some(other), Some((protocol, port))) =
            (random.pick(&pods), random.pick(&all), random.pick(&services))
        else {
            break;
        };
        if pod == other || pod.is_ipv4() != other.is_ipv4() {
            continue;
        }
        let (src, dst) = if random.percent(50) { (*pod, *other) } else { (*other, *pod) };
        let protocol = if *protocol == Protocol::ICMP && Family::of(src) == Family::V6 {
            Protocol::ICMPV6
        } else {
            *protocol
        };
        let flow = Flow { src, dst, protocol, port: *port };
        let list = &mut kinds[decide(nodes, &flow) as usize];
        if list.len() < FLOWS / 2 {
            list.insert(flow);
        }
    }
    let verdicts = [Verdict::Allow, Verdict::Deny];
    kinds.into_iter().zip(verdicts).flat_map(|(list, v)| list.into_iter().map(move |f| (f, v))).collect()
}

fn probe(sandbox: &Sandbox, flow: &Flow) -> Probe {
    let from = sandbox.owner(flow.src).unwrap();
    Probe {
        from,
        from_addr: Some(flow.src),
        to: flow.dst,
        protocol: wire(flow.protocol).unwrap(),
        port: flow.port,
    }
}

/// The flows that did not do as predicted, after a second and longer look.
fn wrong(sandbox: &Sandbox, flows: &[(Flow, Verdict)]) -> Vec<(Flow, Verdict, Outcome)> {
    let mut left: Vec<(Flow, Verdict)> = flows.to_vec();
    let mut found = Vec::new();
    for patience in PATIENCE {
        let probes: Vec<Probe> = left.iter().map(|(flow, _)| probe(sandbox, flow)).collect();
        let outcomes = sandbox.probe_all(&probes, patience);
        let differs = |((flow, expected), outcome): ((Flow, Verdict), Outcome)| {
            (outcome.arrived() != Some(expected == Verdict::Allow)).then_some((flow, expected, outcome))
        };
        found = left.into_iter().zip(outcomes).filter_map(differs).collect();
        left = found.iter().map(|(f, v, _)| (*f, *v)).collect();
    }
    found
}

fn load(sandbox: &Sandbox, node: usize, loader: &Path, bundle: &Path, backend: Backend) {
    let mut command = Command::new(loader);
    command.args(["apply", "--backend", &backend.to_string()]).arg(bundle);
    let output = sandbox.run_in_node(node, command, b"").unwrap();
    assert!(output.status.success(), "{backend}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Returns how many flows were allowed and denied.
fn check(seed: u64) -> [usize; 2] {
    let options = Options { buildable: true, tiers: seed % 4 == 3 };
    let yaml = generate(seed, options).yaml();
    let compiled = compile(model(&[("a.yaml", yaml.clone())]).unwrap()).unwrap();
    let nodes = compiled.nodes().unwrap();
    let mut random = Random::new(seed);
    let questions = Questions::new(&compiled.model);
    let spec = spec(&compiled, &questions, &mut random);
    let sandbox = Sandbox::build(&spec).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{spec:?}"));
    let flows = flows(&spec, &questions, &nodes, &mut random);
    for (flow, verdict) in &flows {
        assert_eq!(compiled.model.decide(flow).verdict, *verdict, "seed {seed}: {flow}");
    }
    // Without rules everything arrives; else silence would say nothing.
    let all: Vec<(Flow, Verdict)> = flows.iter().map(|(f, _)| (*f, Verdict::Allow)).collect();
    let lost = wrong(&sandbox, &all);
    assert!(lost.is_empty(), "seed {seed}: without rules {lost:?}\n{yaml}");
    let loader = programs().unwrap().join("netpol-loader");
    let backends = bundles::backends(nix::unistd::geteuid().is_root() && in_first_user_namespace());
    let dir = tempfile::tempdir().unwrap();
    bundles::write(&compiled, &backends, dir.path()).unwrap();
    for backend in backends {
        for (i, node) in nodes.iter().enumerate() {
            load(&sandbox, i, &loader, &dir.path().join(&node.name), backend);
        }
        let wrong = wrong(&sandbox, &flows);
        assert!(wrong.is_empty(), "seed {seed}, {backend}: {wrong:#?}\n{yaml}");
    }
    [Verdict::Allow, Verdict::Deny].map(|v| flows.iter().filter(|(_, verdict)| *verdict == v).count())
}

#[test]
fn packets_meet_the_predicted_verdict() {
    as_root("packets_meet_the_predicted_verdict", || {
        let first = std::env::var("NETPOLC_FIRST_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut counts = [0; 2];
        for seed in first..first + seeds(12) {
            let [allowed, denied] = check(seed);
            counts = [counts[0] + allowed, counts[1] + denied];
        }
        assert!(counts.iter().all(|n| *n > 100), "{counts:?}");
        println!("allowed and denied: {counts:?}");
    });
}
