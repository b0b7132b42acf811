//! A whole cluster on one machine: an API server's stand-in over HTTP, nodes as network namespaces with the real agent, the
//! real loader and the real plugins, pods as runtimes make them, and something outside.

use crate::lan::{self, Lan};
use crate::netns::Netns;
use crate::node::{self, Node, Sandbox};
use crate::objects;
use crate::server::{Port, Server, ask};
use netpolc_bundle::Backend;
use netpolc_standin::{Resource, Standin};
use netpolc_testkit::samples::programs;
use serde_json::{Value, json};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long silence must last to count as such, and how long an answer may take that should come.
const SILENCE: Duration = Duration::from_millis(300);
const ANSWER: Duration = Duration::from_secs(3);

/// A pod that runs.
pub(crate) struct Pod {
    pub(crate) sandbox: Sandbox,
    labels: Value,
    node: usize,
    _server: Server,
}

pub(crate) struct Cluster {
    // In the order in which they end.
    pub(crate) nodes: Vec<Node>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) api: Standin,
    pub(crate) lan: Lan,
    _dir: tempfile::TempDir,
    uids: AtomicUsize,
}

/// One question to the network.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// Name and network namespace of who asks.
    pub(crate) from: (String, String),
    pub(crate) to: (String, IpAddr, Port),
    /// Whether the answer should come.
    pub(crate) passes: bool,
}

impl Cluster {
    /// Nodes `n1`, `n2` and so on, with namespaces `shop` and `other`, all daemons running, and no pod.
    pub(crate) fn new(nodes: u8, backend: Backend) -> Cluster {
        let backend = backend.to_string();
        Cluster::with(nodes, &backend, &backend)
    }

    /// With these flags of the loaders and of the agents.
    pub(crate) fn with(nodes: u8, loaders: &str, agents: &str) -> Cluster {
        let mut cluster = Cluster::without_daemons(nodes, "ptp", (loaders, agents));
        for node in &mut cluster.nodes {
            node.start_loader();
            node.start_agent();
        }
        cluster
    }

    /// With another CNI that makes the network, by ptp and host-local, and no daemon yet.
    pub(crate) fn beside_another_cni(nodes: u8, backend: Backend) -> Cluster {
        let backend = backend.to_string();
        let cluster = Cluster::without_daemons(nodes, "chain", (&backend, &backend));
        for node in &cluster.nodes {
            let [v4, v6] = lan::ranges(node.number);
            node.write_other(
                &json!({ "type": "host-local", "ranges": [[{ "subnet": v4 }], [{ "subnet": v6 }]] }),
            );
            for other in cluster.nodes.iter().filter(|other| other.number != node.number) {
                for (range, via) in lan::ranges(other.number).iter().zip(lan::addrs(other.number)) {
                    node.netns.sh(&format!("ip route add {range} via {via}"));
                }
            }
        }
        cluster
    }

    /// With the flags `--cni` and `--backend` of daemons that are not started yet.
    pub(crate) fn without_daemons(nodes: u8, cni: &'static str, backends: (&str, &str)) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let installed = dir.path().join("programs");
        node::install(&programs().unwrap(), &installed);
        let lan = Lan::new(nodes);
        let api = lan.outside.inside(|| Standin::start_on(Ipv4Addr::UNSPECIFIED.into())).unwrap();
        let reached = lan::addrs(lan::OUTSIDE)[0];
        let kubeconfig = api.kubeconfig_for(reached, dir.path()).unwrap();
        fs::set_permissions(&kubeconfig, fs::Permissions::from_mode(0o644)).unwrap();
        for (name, team) in [("shop", "blue"), ("other", "red")] {
            api.apply(objects::namespace(name, team));
        }
        let new = |number| Node::new(&lan, number, dir.path(), &installed, &kubeconfig, (cni, backends));
        let nodes: Vec<Node> = (1..=nodes).map(new).collect();
        for node in &nodes {
            api.apply(objects::node(node.number));
        }
        Cluster { nodes, pods: Vec::new(), api, lan, _dir: dir, uids: AtomicUsize::new(0) }
    }

    /// What all daemons said.
    pub(crate) fn logs(&self) -> String {
        self.nodes.iter().map(Node::logs).collect()
    }

    /// Makes a pod as scheduler, kubelet and runtime do together, and starts what answers in it.
    pub(crate) fn start(&mut self, pod: &str, labels: &Value, node: usize) {
        let uid = format!("uid-{}", self.uids.fetch_add(1, Ordering::Relaxed));
        let on = &self.nodes[node];
        self.api.apply(objects::pod(pod, &uid, labels, &on.name, &[]));
        let mut sandbox = Sandbox::new(pod, &uid);
        let server = Server::start(&sandbox.netns, pod);
        sandbox.add(on, PATIENCE);
        self.api.apply(objects::pod(pod, &uid, labels, &on.name, &sandbox.addrs));
        self.pods.push(Pod { sandbox, labels: labels.clone(), node, _server: server });
    }

    /// Changes a pod's labels.
    pub(crate) fn label(&mut self, pod: &str, labels: &Value) {
        let pod = self.pods.iter_mut().find(|p| p.sandbox.pod == pod).unwrap();
        pod.labels = labels.clone();
        let (sandbox, node) = (&pod.sandbox, &self.nodes[pod.node].name);
        self.api.apply(objects::pod(&sandbox.pod, &sandbox.uid, labels, node, &sandbox.addrs));
    }

    /// Ends a pod.
    pub(crate) fn end(&mut self, pod: &str) {
        let position = self.pods.iter().position(|p| p.sandbox.pod == pod).unwrap();
        let pod = self.pods.remove(position);
        self.nodes[pod.node].cni("DEL", &pod.sandbox).unwrap();
        let (namespace, name) = pod.sandbox.pod.split_once('/').unwrap();
        assert!(self.api.delete(Resource::Pods, namespace, name));
    }

    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|p| p.sandbox.pod == name).unwrap()
    }

    /// The name and network namespace of everything that can ask and be asked: pods, nodes, outside.
    pub(crate) fn hosts(&self) -> Vec<(String, &Netns, Vec<IpAddr>)> {
        let pods =
            self.pods.iter().map(|p| (p.sandbox.pod.clone(), &p.sandbox.netns, p.sandbox.addrs.clone()));
        let nodes = self.nodes.iter().map(|n| (n.name.clone(), &n.netns, lan::addrs(n.number).to_vec()));
        let outside = ("outside".to_owned(), &self.lan.outside, lan::addrs(lan::OUTSIDE).to_vec());
        pods.chain(nodes).chain([outside]).collect()
    }

    /// All questions from all hosts to all others, with what the rule says of them.
    pub(crate) fn questions(&self, ports: &[Port], rule: &dyn Fn(&str, &str, Port) -> bool) -> Vec<Question> {
        let hosts = self.hosts();
        let mut questions = Vec::new();
        for (from, netns, _) in &hosts {
            for (to, _, addrs) in hosts.iter().filter(|(to, ..)| to != from) {
                for (addr, port) in addrs.iter().flat_map(|a| ports.iter().map(move |p| (*a, *p))) {
                    let passes = rule(from, to, port);
                    let from = (from.clone(), netns.path());
                    questions.push(Question { from, to: (to.clone(), addr, port), passes });
                }
            }
        }
        questions
    }

    /// Waits until the network answers all questions as it should.
    pub(crate) fn agrees(&self, what: &str, questions: &[Question]) {
        let denied = questions.iter().filter(|q| !q.passes).count();
        println!("{what}: {} questions, {denied} of which must not be answered", questions.len());
        let end = Instant::now() + PATIENCE;
        let mut wrong = differing(questions);
        while !wrong.is_empty() {
            assert!(
                Instant::now() < end,
                "{what}: {} are not answered as they should be:\n{}\n{}",
                wrong.len(),
                wrong.iter().map(|q| format!("  {q:?}\n")).collect::<String>(),
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(50));
            // What is right now must stay so, so all are asked again.
            wrong = differing(questions);
        }
    }
}

/// The questions that are not answered as they should be.
fn differing(questions: &[Question]) -> Vec<Question> {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                while let Some(question) = questions.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !as_it_should(question) {
                        wrong.lock().unwrap().push(question.clone());
                    }
                }
            });
        }
    });
    wrong.into_inner().unwrap()
}

fn as_it_should(question: &Question) -> bool {
    let file = fs::File::open(&question.from.1).unwrap();
    // A thread changes its network namespace as often as it likes.
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let (name, addr, port) = &question.to;
    let patience = if question.passes { ANSWER } else { SILENCE };
    let answer = ask(*addr, *port, patience);
    // Whoever answers must be the one that was asked.
    let right = answer.as_ref().map_or(true, |text| text.split(' ').next() == Some(name));
    right && answer.is_ok() == question.passes
}
