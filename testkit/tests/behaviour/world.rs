//! A small cluster as namespaces: YAML in, outcomes of packets out.

use netpolc_bundle::{Backend, Bundle, store};
use netpolc_frontend::model::Model;
use netpolc_sandbox::{
    DEFAULT_TIMEOUT, HostId, NodeSpec, Outcome, OutsideSpec, PodSpec, Probe, Protocol, Sandbox, Spec,
    find_program,
};
use netpolc_testkit::bundles;
use netpolc_testkit::pipeline::{compile, model};
use netpolc_testkit::samples::programs;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

/// For packets that should arrive, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The backend that this program is about.
pub(crate) fn backend() -> Backend {
    let program = module_path!().split("::").next().unwrap();
    let named = |backend: &Backend| program == format!("kernel_behaviour_{backend}");
    Backend::ALL.into_iter().find(named).unwrap()
}

/// Where every host answers.
pub(crate) const LISTEN: [(Protocol, u16); 14] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 81),
    (Protocol::Tcp, 8080),
    (Protocol::Tcp, 9090),
    (Protocol::Tcp, 7999),
    (Protocol::Tcp, 8000),
    (Protocol::Tcp, 8005),
    (Protocol::Tcp, 8010),
    (Protocol::Tcp, 8011),
    (Protocol::Tcp, 7777),
    (Protocol::Udp, 53),
    (Protocol::Udp, 54),
    (Protocol::Sctp, 7777),
    (Protocol::Sctp, 80),
];

/// Hosts outside of the cluster.
pub(crate) const OUTSIDE: [&str; 4] = ["203.0.113.7", "2001:db8::7", "203.0.113.8", "2001:db8::8"];

/// Nodes alpha and beta with both families. Pods: name and node number, then what stands in `labels` and `ports`.
pub(crate) fn cluster(pods: &[(&str, u8, &str, &str)]) -> String {
    let mut yaml = String::new();
    for (n, node) in [(1, "alpha"), (2, "beta")] {
        yaml += &format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\nstatus: {{addresses: [{{type: InternalIP, address: \
             192.168.9.{n}}}, {{type: InternalIP, address: \"fd99::{n}\"}}]}}\n---\n"
        );
    }
    for (i, (name, node, labels, ports)) in pods.iter().enumerate() {
        let (n, host) = (i + 1, ["alpha", "beta"][usize::from(*node)]);
        yaml += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{name: {name}, {labels}}}}}\n\
             spec: {{nodeName: {host}, containers: [{{name: main, image: example/main, ports: [{ports}]}}]}}\n\
             status: {{phase: Running, podIPs: [{{ip: 10.1.{node}.{n}}}, {{ip: \"fd00:1:{node}::{n}\"}}]}}\n---\n"
        );
    }
    yaml
}

/// A policy of namespace `shop` for pods with `app` among their labels, or for the pod with this name.
pub(crate) fn policy(name: &str, selector: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  podSelector: {{matchLabels: {{{selector}}}}}\n{spec}---\n"
    )
}

/// Neither in nor out.
pub(crate) const NOTHING: &str = "  policyTypes: [Ingress, Egress]\n";

/// A running cluster.
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    cluster: String,
    names: BTreeMap<String, (HostId, Vec<IpAddr>)>,
    nodes: Vec<String>,
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl World {
    pub(crate) fn new(cluster: &str) -> World {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let model = read(cluster);
        let mut names = BTreeMap::new();
        let mut spec = Spec::default();
        for (i, (name, node)) in model.nodes.iter().enumerate() {
            names.insert(name.clone(), (HostId::Node(i), node.addrs.clone()));
            spec.nodes.push(NodeSpec {
                name: name.clone(),
                addrs: node.addrs.clone(),
                listen: LISTEN.to_vec(),
            });
        }
        let nodes: Vec<String> = model.nodes.keys().cloned().collect();
        for (i, pod) in model.pods.iter().enumerate() {
            names.insert(pod.name.clone(), (HostId::Pod(i), pod.addrs.clone()));
            let node = nodes.iter().position(|node| *node == pod.node).unwrap();
            let addrs = pod.addrs.clone();
            spec.pods.push(PodSpec { name: pod.name.clone(), node, addrs, listen: LISTEN.to_vec() });
        }
        for (i, addr) in OUTSIDE.into_iter().enumerate() {
            names.insert(addr.to_owned(), (HostId::Outside(i), vec![ip(addr)]));
            spec.outside.push(OutsideSpec { addr: ip(addr), listen: LISTEN.to_vec() });
        }
        World { sandbox: Sandbox::build(&spec).unwrap(), cluster: cluster.to_owned(), names, nodes }
    }

    pub(crate) fn host(&self, name: &str) -> HostId {
        self.names[name].0
    }

    /// The address of a host in a family.
    pub(crate) fn addr(&self, name: &str, v4: bool) -> IpAddr {
        *self.names[name].1.iter().find(|addr| addr.is_ipv4() == v4).unwrap()
    }

    /// A bundle for each node, with these policies.
    pub(crate) fn compile(&self, policies: &[String]) -> Vec<tempfile::TempDir> {
        let model = read(&format!("{}{}", self.cluster, policies.concat()));
        let made = bundles::build(&compile(model).unwrap(), &Backend::ALL).unwrap();
        let names: Vec<&String> = made.iter().map(|bundle| &bundle.manifest.node).collect();
        assert_eq!(names, self.nodes.iter().collect::<Vec<_>>());
        let write = |bundle: &Bundle| {
            let dir = tempfile::tempdir().unwrap();
            store::write(dir.path(), bundle).unwrap();
            dir
        };
        made.iter().map(write).collect()
    }

    /// Applies a bundle at a node; the answer is what the loader said.
    pub(crate) fn load(&self, node: usize, bundle: &Path) -> String {
        self.load_with(node, bundle, &[])
    }

    /// The same with options.
    pub(crate) fn load_with(&self, node: usize, bundle: &Path, options: &[&str]) -> String {
        let mut command = Command::new(loader());
        command.arg("apply").arg(bundle).args(options);
        if !options.contains(&"--backend") {
            command.args(["--backend", &backend().to_string()]);
        }
        text(&self.sandbox.run_in_node(node, command, b"").unwrap())
    }

    /// Compiles and applies at every node.
    pub(crate) fn apply(&self, policies: &[String]) {
        for (node, bundle) in self.compile(policies).iter().enumerate() {
            self.load(node, bundle.path());
        }
    }

    /// A line of shell in a node; it must succeed.
    pub(crate) fn sh(&self, node: usize, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        text(&self.sandbox.run_in_node(node, command, b"").unwrap())
    }

    pub(crate) fn nft(&self, node: usize, script: &str) {
        let mut command = Command::new(find_program("nft", "nftables").unwrap());
        command.args(["-f", "-"]);
        text(&self.sandbox.run_in_node(node, command, script.as_bytes()).unwrap());
    }

    /// Whether packets arrive. A row reads `client server tcp 80 yes`: who, to whom (a name, in both families, or an
    /// address), what, on which port, and the wanted answer.
    pub(crate) fn check(&self, when: &str, rows: &[&str]) {
        let (mut probes, mut wanted) = (Vec::new(), Vec::new());
        for row in rows {
            let words: Vec<&str> = row.split_whitespace().collect();
            let [from, to, protocol, port, answer] = words[..] else { panic!("{row}") };
            for to in self.targets(to) {
                probes.push(self.probe(from, to, protocol, port.parse().unwrap()));
                wanted.push((*row, answer == "yes"));
            }
        }
        let mut outcomes = self.sandbox.probe_all(&probes, DEFAULT_TIMEOUT);
        for (i, outcome) in outcomes.iter_mut().enumerate() {
            if wanted[i].1 && outcome.arrived() != Some(true) {
                *outcome = self.sandbox.probe_all(&probes[i..=i], PATIENCE).remove(0);
            }
        }
        let wrong = wanted.iter().zip(&outcomes).zip(&probes);
        let wrong = wrong.filter(|(((_, wanted), outcome), _)| outcome.arrived() != Some(*wanted));
        let wrong: Vec<String> =
            wrong.map(|(((row, _), outcome), probe)| format!("{row} ({}): {outcome}", probe.to)).collect();
        assert!(wrong.is_empty(), "{when}: {}\n{}", wrong.join("\n"), self.sh(0, "nft list ruleset"));
    }

    /// All rows, without rules: everything arrives.
    pub(crate) fn control(&self, rows: &[&str]) {
        let open: Vec<String> = rows.iter().map(|row| row.replace(" no", " yes")).collect();
        self.check("without rules", &open.iter().map(String::as_str).collect::<Vec<_>>());
    }

    pub(crate) fn targets(&self, to: &str) -> Vec<IpAddr> {
        self.names.get(to).map_or_else(|| vec![ip(to)], |(_, addrs)| addrs.clone())
    }

    pub(crate) fn probe(&self, from: &str, to: IpAddr, protocol: &str, port: u16) -> Probe {
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            "icmp" => Protocol::Icmp,
            other => panic!("{other}"),
        };
        Probe { from: self.host(from), from_addr: None, to, protocol, port }
    }

    pub(crate) fn outcome(&self, probe: &Probe, timeout: Duration) -> Outcome {
        self.sandbox.probe_all(std::slice::from_ref(probe), timeout).remove(0)
    }
}

/// A cluster, a control run, the policies, and the rows again.
pub(crate) fn trial(cluster: &str, policies: &[String], rows: &[&str]) -> World {
    let world = World::new(cluster);
    world.control(rows);
    world.apply(policies);
    world.check("with rules", rows);
    world
}

fn read(yaml: &str) -> Model {
    model(&[("cluster.yaml", yaml.to_owned())]).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    let all = String::from_utf8_lossy(&all).into_owned();
    assert!(output.status.success(), "{all}");
    all
}

/// The loader's program.
pub(crate) fn loader() -> &'static Path {
    static LOADER: OnceLock<PathBuf> = OnceLock::new();
    LOADER.get_or_init(|| programs().unwrap().join("netpol-loader"))
}
