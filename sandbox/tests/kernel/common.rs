//! Shared by the tests: being root, and one usual network.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use netpolc_sandbox::{
    DEFAULT_TIMEOUT, HostId, NodeSpec, Outcome, OutsideSpec, PodSpec, Probe, Protocol, Sandbox, Spec,
    find_program,
};

/// Patience for probes that should succeed, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) const LISTEN: [(Protocol, u16); 4] =
    [(Protocol::Tcp, 80), (Protocol::Tcp, 81), (Protocol::Udp, 53), (Protocol::Sctp, 7777)];

/// The example program, which can make an ordinary user root in a user namespace.
pub(crate) fn helper() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples/sandbox")
}

/// Runs `body` as root: here if this is root, else in this same program started again inside a user namespace. `test` is
/// the full name of the calling test.
pub(crate) fn as_root(test: &str, body: fn()) {
    if nix::unistd::geteuid().is_root() {
        return body();
    }
    let this = std::env::current_exe().unwrap();
    let mut command = Command::new(helper());
    command.arg("exec").arg(this).args(["--exact", test, "--nocapture"]);
    let output = command.output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two nodes, two pods on the first, one on the second, and an outside host in each family.
pub(crate) fn usual() -> Spec {
    let listen = || LISTEN.to_vec();
    let node = |n: u8| NodeSpec {
        name: format!("node{n}"),
        addrs: vec![ip(&format!("192.168.9.{n}")), ip(&format!("fd99::{n}"))],
        listen: listen(),
    };
    let pod = |name: &str, node, n: u8| PodSpec {
        name: name.into(),
        node,
        addrs: vec![ip(&format!("10.1.{node}.{n}")), ip(&format!("fd00:1:{node}::{n}"))],
        listen: listen(),
    };
    Spec {
        nodes: vec![node(1), node(2)],
        pods: vec![pod("a", 0, 1), pod("b", 0, 2), pod("c", 1, 1)],
        outside: vec![
            OutsideSpec { addr: ip("203.0.113.7"), listen: listen() },
            OutsideSpec { addr: ip("2001:db8::7"), listen: listen() },
        ],
    }
}

pub(crate) fn probe(from: HostId, to: &str, protocol: Protocol, port: u16) -> Probe {
    Probe { from, from_addr: None, to: ip(to), protocol, port }
}

/// Every protocol and port from every host to every address of a family that the sender has.
pub(crate) fn all_probes(spec: &Spec) -> Vec<Probe> {
    let mut probes = Vec::new();
    for from in spec.hosts() {
        for &to in spec.hosts().collect::<Vec<_>>().iter().flat_map(|&host| spec.addrs(host)) {
            if !spec.addrs(from).iter().any(|own| own.is_ipv4() == to.is_ipv4()) {
                continue;
            }
            for (protocol, port) in LISTEN.into_iter().chain([(Protocol::Icmp, 0)]) {
                probes.push(Probe { from, from_addr: None, to, protocol, port });
            }
        }
    }
    probes
}

/// Runs probes; silent ones get a second and longer try.
pub(crate) fn probe_patiently(sandbox: &Sandbox, probes: &[Probe]) -> Vec<Outcome> {
    let mut outcomes = sandbox.probe_all(probes, DEFAULT_TIMEOUT);
    let silent: Vec<usize> = (0..probes.len()).filter(|&i| outcomes[i] == Outcome::NotReached).collect();
    let again: Vec<Probe> = silent.iter().map(|&i| probes[i]).collect();
    for (i, outcome) in silent.into_iter().zip(sandbox.probe_all(&again, Duration::from_secs(2))) {
        outcomes[i] = outcome;
    }
    outcomes
}

/// Loads an nft script in a node.
pub(crate) fn nft(sandbox: &Sandbox, node: usize, script: &str) {
    let mut command = Command::new(find_program("nft", "nftables").unwrap());
    command.args(["-f", "-"]);
    let output = sandbox.run_in_node(node, command, script.as_bytes()).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An nft script that puts `rules` into a chain at the forward hook, in the table `inet test`.
pub(crate) fn forward(rules: &str) -> String {
    format!(
        "table inet test {{
            chain forward {{
                type filter hook forward priority 0; policy accept;
                {rules}
            }}
        }}"
    )
}
