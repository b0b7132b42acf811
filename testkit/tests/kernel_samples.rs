//! Each sample in the running kernel: pods as network namespaces, the rules applied by the real loader, real packets.
//!
//! These need `ip`, `nft`, and root or unprivileged user namespaces.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use netpolc_frontend::model::Model;
use netpolc_ir::ports::{Protocol as IpProtocol, Transport};
use netpolc_ir::unit::{Flow, Verdict};
use netpolc_sandbox::{
    DEFAULT_TIMEOUT, HostId, NodeSpec, Outcome, OutsideSpec, PodSpec, Probe, Protocol, Sandbox, Spec,
    find_program,
};
use netpolc_testkit::pipeline::compile;
use netpolc_testkit::samples::{Sample, folders, programs, repository};
use netpolc_testkit::{bundles, each_sample};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long a packet is waited for that should have arrived and did not at first: machines may be busy.
const PATIENCE: Duration = Duration::from_secs(3);

/// Flows of samples that cannot be sent, by sample and IP protocol, and why. They are left to the other oracles.
const UNSENDABLE: [(&str, u8, &str); 3] = [
    ("other-protocols", 47, "no host of the sandbox answers GRE"),
    ("other-protocols", 50, "no host of the sandbox answers ESP"),
    ("other-protocols", 51, "no host of the sandbox answers AH"),
];

/// A flow of a sample as a probe.
struct Try {
    text: String,
    expect: Verdict,
    probe: Probe,
}

/// The sandbox's protocol for one of a flow; `None` if it speaks no such thing.
fn speaks(protocol: IpProtocol) -> Option<Protocol> {
    match protocol {
        IpProtocol::Transport(Transport::Tcp) => Some(Protocol::Tcp),
        IpProtocol::Transport(Transport::Udp) => Some(Protocol::Udp),
        IpProtocol::Transport(Transport::Sctp) => Some(Protocol::Sctp),
        IpProtocol::ICMP | IpProtocol::ICMPV6 => Some(Protocol::Icmp),
        IpProtocol::Other(_) => None,
    }
}

/// The flows that can be sent, with their protocols. Those that cannot must be on the list, and the list must be true.
fn sendable(sample: &Sample) -> Vec<(usize, Flow, Protocol)> {
    let mut listed: BTreeSet<u8> = UNSENDABLE.iter().filter(|u| u.0 == sample.name).map(|u| u.1).collect();
    let known = listed.clone();
    let mut out = Vec::new();
    for (i, expected) in sample.flows.iter().enumerate() {
        let number = expected.flow.protocol.number();
        match speaks(expected.flow.protocol) {
            Some(protocol) => out.push((i, expected.flow, protocol)),
            None => {
                assert!(known.contains(&number), "cannot be sent, and not on the list: {}", expected.text)
            }
        }
        listed.remove(&number);
    }
    assert!(listed.is_empty(), "no flow has the protocols {listed:?}: take them off the list");
    assert!(out.len() * 2 > sample.flows.len(), "most flows cannot be sent");
    out
}

/// The cluster of a model; every address of a flow that is neither a pod's nor a node's becomes a host outside.
fn cluster(model: &Model, flows: &[(usize, Flow, Protocol)]) -> (Spec, BTreeMap<IpAddr, HostId>) {
    let mut spec = Spec::default();
    let mut owners = BTreeMap::new();
    let mut own = |addrs: &[IpAddr], host: HostId| owners.extend(addrs.iter().map(|a| (*a, host)));
    let mut numbers = BTreeMap::new();
    for (i, (name, node)) in model.nodes.iter().enumerate() {
        numbers.insert(name.as_str(), i);
        own(&node.addrs, HostId::Node(i));
        spec.nodes.push(NodeSpec { name: name.clone(), addrs: node.addrs.clone(), listen: Vec::new() });
    }
    for (i, pod) in model.pods.iter().filter(|p| !p.host_network).enumerate() {
        own(&pod.addrs, HostId::Pod(i));
        let (name, node, addrs) = (pod.full_name(), numbers[pod.node.as_str()], pod.addrs.clone());
        spec.pods.push(PodSpec { name, node, addrs, listen: Vec::new() });
    }
    for addr in flows.iter().flat_map(|(_, flow, _)| [flow.src, flow.dst]) {
        if let std::collections::btree_map::Entry::Vacant(free) = owners.entry(addr) {
            free.insert(HostId::Outside(spec.outside.len()));
            spec.outside.push(OutsideSpec { addr, listen: Vec::new() });
        }
    }
    for (_, flow, protocol) in flows.iter().filter(|f| f.2 != Protocol::Icmp) {
        let listen = match owners[&flow.dst] {
            HostId::Node(i) => &mut spec.nodes[i].listen,
            HostId::Pod(i) => &mut spec.pods[i].listen,
            HostId::Outside(i) => &mut spec.outside[i].listen,
        };
        if !listen.contains(&(*protocol, flow.port)) {
            listen.push((*protocol, flow.port));
        }
    }
    (spec, owners)
}

/// Sends all; what should arrive and did not is sent once more. A packet that arrives against the rules is never excused.
fn send(sandbox: &Sandbox, tries: &[Try], should_arrive: impl Fn(&Try) -> bool) -> Vec<Outcome> {
    let probes: Vec<Probe> = tries.iter().map(|t| t.probe).collect();
    let mut outcomes = sandbox.probe_all(&probes, DEFAULT_TIMEOUT);
    let late = |i: &usize| should_arrive(&tries[*i]) && outcomes[*i] != Outcome::Reached;
    let late: Vec<usize> = (0..tries.len()).filter(late).collect();
    let again: Vec<Probe> = late.iter().map(|&i| probes[i]).collect();
    for (i, outcome) in late.into_iter().zip(sandbox.probe_all(&again, PATIENCE)) {
        outcomes[i] = outcome;
    }
    outcomes
}

/// Runs a program in a node; it must succeed.
fn in_node(sandbox: &Sandbox, node: usize, command: Command, input: &str) {
    let shown = format!("{command:?}");
    let output = sandbox.run_in_node(node, command, input.as_bytes()).unwrap();
    assert!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `body` as root: here, or in this program started again in a user namespace. `test` is the caller's full name.
fn as_root(test: &str, body: impl FnOnce()) {
    if nix::unistd::geteuid().is_root() {
        return body();
    }
    let mut again = Command::new("unshare");
    again.args(["--user", "--map-root-user"]).arg(std::env::current_exe().unwrap());
    let output = again.args(["--exact", test, "--nocapture"]).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn check(test: &str) {
    let sample = Sample::load(&test.replace('_', "-")).unwrap();
    let flows = sendable(&sample);
    let (spec, owners) = cluster(&sample.model, &flows);
    let tries = flows.iter().map(|&(i, flow, protocol)| {
        let (from, from_addr) = (owners[&flow.src], Some(flow.src));
        let probe = Probe { from, from_addr, to: flow.dst, protocol, port: flow.port };
        Try { text: sample.flows[i].text.clone(), expect: sample.flows[i].expect, probe }
    });
    let tries: Vec<Try> = tries.collect();
    let programs = programs().unwrap();
    let dir = tempfile::tempdir().unwrap();
    build(&programs, &sample.name, dir.path());

    let sandbox = Sandbox::build(&spec).unwrap();
    let mut wrong = Vec::new();
    for (t, outcome) in tries.iter().zip(send(&sandbox, &tries, |_| true)) {
        if outcome != Outcome::Reached {
            wrong.push(format!("without rules, {outcome}: {}", t.text));
        }
    }
    assert!(wrong.is_empty(), "the control run shows nothing:\n{}", wrong.join("\n"));
    // Each backend takes the place of the one before, so the switch is tried too.
    for backend in bundles::backends(in_first_user_namespace()) {
        for (i, node) in spec.nodes.iter().enumerate() {
            let mut loader = Command::new(programs.join("netpol-loader"));
            loader.args(["apply", "--backend", &backend.to_string()]).arg(dir.path().join(&node.name));
            in_node(&sandbox, i, loader, "");
        }
        for (t, outcome) in tries.iter().zip(send(&sandbox, &tries, |t| t.expect == Verdict::Allow)) {
            let right = match t.expect {
                Verdict::Allow => outcome == Outcome::Reached,
                // Dropped without a word, not rejected.
                Verdict::Deny => outcome == Outcome::NotReached,
            };
            if !right {
                wrong.push(format!("{backend}, {outcome}: {}", t.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether root here is root of the machine, who alone may load programs.
fn in_first_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"))
}

/// Builds the bundles of a sample.
fn build(programs: &Path, sample: &str, out: &Path) {
    let mut netpolc = Command::new(programs.join("netpolc"));
    netpolc
        .args(["build", "--backend", "ebpf,nftables,iptables"])
        .arg(repository().join("samples").join(sample))
        .arg("--out")
        .arg(out);
    let done = netpolc.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

mod kernel {
    macro_rules! tests {
        ($($name:ident)*) => {
            $(#[test]
            fn $name() {
                super::as_root(concat!("kernel::", stringify!($name)), || super::check(stringify!($name)));
            })*
        };
    }
    super::each_sample!(tests);
}

#[test]
fn nft_takes_every_artifact_and_every_snapshot_as_it_is() {
    as_root("nft_takes_every_artifact_and_every_snapshot_as_it_is", || {
        let sandbox = Sandbox::build(&Spec { nodes: vec![NodeSpec::default()], ..Spec::default() }).unwrap();
        let nft = || {
            let mut command = Command::new(find_program("nft", "nftables").unwrap());
            command.args(["-c", "-f", "-"]);
            command
        };
        let refused = sandbox.run_in_node(0, nft(), b"table ip t { chain c { no such thing\n } }\n").unwrap();
        assert!(!refused.status.success(), "nft takes anything");
        let mut checked = 0;
        for name in folders("samples").unwrap() {
            for node in compile(Sample::load(&name).unwrap().model).unwrap().nodes().unwrap() {
                in_node(&sandbox, 0, nft(), &node.script);
                let file = repository().join("snapshots").join(&name).join(format!("{}.nft", node.name));
                in_node(&sandbox, 0, nft(), &std::fs::read_to_string(file).unwrap());
                checked += 1;
            }
        }
        assert!(checked > 24, "{checked}");
    });
}
