//! Who reaches whom while policies, labels and pods change, asked with real connections from everywhere to everywhere. The
//! expected answers are worked out by hand.

use crate::rig::{Cluster, PATIENCE, Question};
use crate::server::{PORTS, Port};
use crate::services::{self, Mode};
use crate::{lan, objects};
use netpolc_bundle::Backend;
use serde_json::json;
use std::time::{Duration, Instant};

/// The pod's node is where processes of its own may always reach it.
fn node_of(pod: &str) -> Option<&'static str> {
    match pod {
        "shop/db" | "shop/backend" => Some("n1"),
        "shop/frontend" | "other/probe" => Some("n2"),
        _ => None,
    }
}

fn own_node(from: &str, to: &str) -> bool {
    node_of(from) == Some(to) || node_of(to) == Some(from)
}

fn everything(_: &str, _: &str, _: Port) -> bool {
    true
}

/// The database is for the backend alone, and only on its named port.
fn first(from: &str, to: &str, port: Port) -> bool {
    let ingress = to != "shop/db" || (from == "shop/backend" && port == Port::Tcp(80));
    ingress || own_node(from, to)
}

/// The database is for namespaces of the red team and for a block; the frontend may only ask for names.
fn second(from: &str, to: &str, port: Port) -> bool {
    let ingress = to != "shop/db" || from == "other/probe" || (from == "outside" && port == Port::Tcp(81));
    let egress = from != "shop/frontend" || port == Port::Udp(53);
    (ingress && egress) || own_node(from, to)
}

/// The Service, asked by its own address and on a node's port, leads to the database.
fn of_service(cluster: &Cluster, rule: &dyn Fn(&str, &str, Port) -> bool) -> Vec<Question> {
    let mut questions = Vec::new();
    for (from, netns, _) in cluster.hosts().into_iter().filter(|(from, ..)| from != "outside") {
        for addr in services::addrs() {
            let passes = rule(&from, "shop/db", Port::Tcp(80)) || from == "shop/db";
            let to = ("shop/db".to_owned(), addr, Port::Tcp(services::PORT));
            questions.push(Question { from: (from.clone(), netns.path()), to, passes });
        }
    }
    for addr in lan::addrs(1).into_iter().chain(lan::addrs(2)) {
        let from = ("outside".to_owned(), cluster.lan.outside.path());
        let to = ("shop/db".to_owned(), addr, Port::Tcp(services::NODE_PORT));
        questions.push(Question { from, to, passes: rule("outside", "shop/db", Port::Tcp(80)) });
    }
    questions
}

/// The policy that [`first`] is about.
fn apply_first(cluster: &Cluster) {
    cluster.api.apply(objects::policy(
        "db",
        "db",
        &json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "backend" } } }],
            "ports": [{ "protocol": "TCP", "port": "web" }] }] }),
    ));
}

fn check(backend: Backend) {
    let mut cluster = Cluster::new(2, backend);
    for (pod, app, node) in
        [("shop/db", "db", 0), ("shop/backend", "backend", 0), ("shop/frontend", "frontend", 1)]
    {
        cluster.start(pod, &json!({ "app": app }), node);
    }
    cluster.start("other/probe", &json!({ "app": "probe" }), 1);
    cluster.agrees("no policy", &cluster.questions(&PORTS, &everything));

    apply_first(&cluster);
    cluster.agrees("first policy", &cluster.questions(&PORTS, &first));

    // The control: it is the rules of the loader, and nothing else, that keep packets out.
    for node in &mut cluster.nodes {
        node.kill_loader();
    }
    cluster.agrees("killed loaders", &cluster.questions(&PORTS, &first));
    for node in &cluster.nodes {
        let said = node.loader(&["remove"]);
        println!("{said}");
    }
    cluster.agrees("control: no rules", &cluster.questions(&PORTS, &everything));
    for node in &mut cluster.nodes {
        node.start_loader();
    }
    cluster.agrees("loaders again", &cluster.questions(&PORTS, &first));

    // Services, as both modes of kube-proxy lead to them; its own rules come first in the chain.
    let db = cluster.pod("shop/db").sandbox.addrs.clone();
    for mode in [Mode::Nftables, Mode::Iptables] {
        for node in &cluster.nodes {
            services::program(&node.netns, mode, &db);
        }
        cluster.agrees(&format!("Service, {mode:?}"), &of_service(&cluster, &first));
        if mode == Mode::Nftables {
            for node in &cluster.nodes {
                node.netns.sh("nft delete table ip kube-proxy; nft delete table ip6 kube-proxy");
            }
        }
    }
    cluster.agrees("beside kube-proxy", &cluster.questions(&PORTS, &first));

    // Other policies.
    let blocks = lan::addrs(lan::OUTSIDE).map(|addr| {
        let length = if addr.is_ipv4() { 32 } else { 128 };
        json!({ "ipBlock": { "cidr": format!("{addr}/{length}") } })
    });
    cluster.api.apply(objects::policy(
        "db",
        "db",
        &json!({ "ingress": [
            { "from": [{ "namespaceSelector": { "matchLabels": { "team": "red" } } }] },
            { "from": blocks, "ports": [{ "port": 81 }] }] }),
    ));
    cluster.api.apply(objects::policy(
        "frontend",
        "frontend",
        &json!({ "egress": [{ "ports": [{ "protocol": "UDP", "port": 53 }] }] }),
    ));
    cluster.agrees("other policies", &cluster.questions(&PORTS, &second));
    cluster.agrees("Service, other policies", &of_service(&cluster, &second));

    // Labels of a pod and of a namespace.
    cluster.label("shop/frontend", &json!({ "app": "former" }));
    cluster.api.apply(objects::namespace("other", "green"));
    let rule = |from: &str, to: &str, port: Port| {
        let ingress = to != "shop/db" || (from == "outside" && port == Port::Tcp(81));
        ingress || own_node(from, to)
    };
    cluster.agrees("other labels", &cluster.questions(&PORTS, &rule));

    // Another pod gets the address that was the database's, and nothing of its policy.
    let freed = db[0];
    cluster.end("shop/db");
    for attempt in 0.. {
        assert!(attempt < 100, "the address does not come back");
        let name = format!("other/next-{attempt}");
        cluster.start(&name, &json!({ "app": "next" }), 0);
        if cluster.pod(&name).sandbox.addrs[0] == freed {
            break;
        }
        cluster.end(&name);
    }
    cluster.agrees("address of another", &cluster.questions(&[Port::Tcp(80)], &everything));
}

#[test]
fn with_nftables() {
    check(Backend::Nftables);
}

#[test]
fn with_iptables() {
    check(Backend::Iptables);
}

#[test]
fn with_ebpf() {
    check(Backend::Ebpf);
}

/// The backend that enforces on a node, as its loader's `status` says.
fn enforced_by(cluster: &Cluster, backend: &str) {
    let end = Instant::now() + PATIENCE;
    for node in &cluster.nodes {
        while !node.loader(&["status", "--format=json"]).contains(&format!("\"backend\": \"{backend}\"")) {
            assert!(Instant::now() < end, "{backend} does not enforce\n{}", cluster.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Agents compile for what their loaders take, also when other loaders take their place.
#[test]
fn with_what_the_loader_takes() {
    let mut cluster = Cluster::with(2, "auto", "auto");
    cluster.start("shop/db", &json!({ "app": "db" }), 0);
    cluster.start("shop/backend", &json!({ "app": "backend" }), 0);
    cluster.start("shop/frontend", &json!({ "app": "frontend" }), 1);
    cluster.agrees("no policy", &cluster.questions(&PORTS, &everything));
    apply_first(&cluster);
    cluster.agrees("the best backend", &cluster.questions(&PORTS, &first));
    enforced_by(&cluster, "ebpf");
    for backend in ["nftables", "auto"] {
        for node in &mut cluster.nodes {
            node.kill_loader();
            node.set_loader_backend(backend);
            node.start_loader();
        }
        enforced_by(&cluster, if backend == "auto" { "ebpf" } else { backend });
        cluster.agrees(backend, &cluster.questions(&PORTS, &first));
    }
    // The control: without rules everything passes.
    for node in &mut cluster.nodes {
        node.kill_loader();
        node.loader(&["remove"]);
    }
    cluster.agrees("control: no rules", &cluster.questions(&PORTS, &everything));
}
