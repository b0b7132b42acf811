//! Addresses that another CNI gives out and nobody announced are closed (`--cni=chain`): as far as its configuration says
//! which these are, and where it does not say, that is said.

use crate::node::Sandbox;
use crate::rig::{Cluster, PATIENCE, Question};
use crate::server::{PORTS, Server};
use crate::{lan, objects};
use netpolc_bundle::Backend;
use serde_json::{Value, json};
use std::time::Instant;

/// Something with an address of the node that no one has announced, and that answers.
struct Stray {
    sandbox: Sandbox,
    _server: Server,
}

impl Stray {
    /// By all plugins but ours, as a pod is for the moment before ours is called.
    fn start(cluster: &Cluster, name: &str, other: &Value) -> Stray {
        let node = &cluster.nodes[0];
        let mut sandbox = Sandbox::new(&format!("other/{name}"), &format!("uid-{name}"));
        let server = Server::start(&sandbox.netns, &sandbox.pod);
        node.write_other(other);
        let result = node.cni_but("ADD", &sandbox, &["netpol-cni"]);
        sandbox.took(result.unwrap());
        Stray { sandbox, _server: server }
    }
}

/// Both ways between each two of these, and with outside; none of it passes that one of the closed has a part in.
fn questions(cluster: &Cluster, open: &[&Sandbox], closed: &[&Sandbox]) -> Vec<Question> {
    let host = |sandbox: &&Sandbox, passes: bool| {
        (sandbox.pod.clone(), sandbox.netns.path(), sandbox.addrs.clone(), passes)
    };
    let outside = ("outside".to_owned(), cluster.lan.outside.path(), lan::addrs(lan::OUTSIDE).to_vec(), true);
    let mut hosts = vec![outside];
    hosts.extend(open.iter().map(|sandbox| host(sandbox, true)));
    hosts.extend(closed.iter().map(|sandbox| host(sandbox, false)));
    let mut questions = Vec::new();
    for (from, netns, _, from_open) in &hosts {
        for (to, _, addrs, to_open) in hosts.iter().filter(|(to, ..)| to != from) {
            for (addr, port) in addrs.iter().flat_map(|addr| PORTS.map(|port| (*addr, port))) {
                let passes = *from_open && *to_open;
                let to = (to.clone(), addr, port);
                questions.push(Question { from: (from.clone(), netns.clone()), to, passes });
            }
        }
    }
    questions
}

/// Waits until the loader's `status` says something of addresses that no pod has.
fn says(cluster: &Cluster, what: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = cluster.nodes[0].status();
        if status.lines().any(|line| line.starts_with("addresses that no pod has:") && line.contains(what)) {
            return;
        }
        assert!(Instant::now() < end, "{what}: {status}\n{}", cluster.logs());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn host_local(ranges: &[Value]) -> Value {
    let lists: Vec<Value> = ranges.iter().map(|range| json!([range])).collect();
    json!({ "type": "host-local", "ranges": lists })
}

fn check(backend: Backend) {
    let mut cluster = Cluster::beside_another_cni(1, backend);
    // Of the node that is not there the API server says which range it has.
    cluster.api.apply(objects::node(2));
    let [v4, v6] = lan::ranges(1);
    let own = host_local(&[json!({ "subnet": v4 }), json!({ "subnet": v6 })]);

    // Before netpolc: a pod, and something that is none. The control: without a loader all passes.
    cluster.start("shop/early", &json!({ "app": "early" }), 0);
    let stray = Stray::start(&cluster, "stray", &own);
    let all = |cluster: &Cluster, open: &[&str], more: &[&Sandbox], closed: &[&Sandbox]| {
        let open: Vec<&Sandbox> = open.iter().map(|pod| &cluster.pod(pod).sandbox).collect();
        questions(cluster, &[&open[..], more].concat(), closed)
    };
    cluster.agrees("control: no loader", &all(&cluster, &["shop/early"], &[&stray.sandbox], &[]));

    let node = &mut cluster.nodes[0];
    node.start_loader();
    node.start_agent();
    says(&cluster, &format!("closed in {v4}, {v6}"));
    cluster.agrees("closed", &all(&cluster, &["shop/early"], &[], &[&stray.sandbox]));
    assert!(cluster.nodes[0].is_chained());
    cluster.start("shop/late", &json!({ "app": "late" }), 0);
    let pods = ["shop/early", "shop/late"];
    cluster.agrees("announced", &all(&cluster, &pods, &[], &[&stray.sandbox]));

    cluster.nodes[0].wrote_down(cluster.pod("shop/late").sandbox.addrs[0]);

    // A successor without an agent closes the same, and opens what was open.
    let node = &mut cluster.nodes[0];
    node.kill_agent();
    node.kill_loader();
    node.netns.sh("nft delete table ip netpolc_closed; nft delete table ip6 netpolc_closed");
    cluster.agrees("control: not closed", &all(&cluster, &pods, &[&stray.sandbox], &[]));
    cluster.nodes[0].start_loader();
    says(&cluster, &format!("closed in {v4}, {v6}"));
    cluster.agrees("without an agent", &all(&cluster, &pods, &[], &[&stray.sandbox]));
    cluster.nodes[0].start_agent();

    // The other CNI gives out a part of a network only, in one family; then what is another node's too; then what nobody
    // knows. It is read again whenever the configuration changes, and what is not closed is said.
    let part = json!({ "subnet": v4, "rangeStart": "10.244.1.9", "rangeEnd": "10.244.1.12" });
    let part = host_local(&[part, json!({ "subnet": v6 })]);
    let inside = Stray::start(&cluster, "inside", &part);
    assert!(inside.sandbox.addrs[0] >= "10.244.1.9".parse::<std::net::IpAddr>().unwrap());
    says(&cluster, "closed in 10.244.1.9/32, 10.244.1.10/31, 10.244.1.12/32");
    let only_v4 = |mut questions: Vec<Question>| {
        questions.retain(|question| question.to.1.is_ipv4());
        questions
    };
    let of_both = all(&cluster, &pods, &[&stray.sandbox], &[&inside.sandbox]);
    cluster.agrees("a part", &only_v4(of_both));

    let open = |cluster: &Cluster| all(cluster, &pods, &[&stray.sandbox, &inside.sandbox], &[]);
    let shared = host_local(&[json!({ "subnet": "10.244.0.0/16" }), json!({ "subnet": "fd00:244::/48" })]);
    cluster.nodes[0].write_other(&shared);
    says(&cluster, "closed nowhere");
    says(&cluster, "10.244.0.0/16 is not this node's alone");
    cluster.agrees("of all nodes", &open(&cluster));
    cluster.nodes[0].write_other(&json!({ "type": "dhcp" }));
    says(&cluster, "which addresses dhcp gives out is not in the configuration");
    cluster.agrees("of nobody knows whom", &open(&cluster));
    let logs = cluster.logs();
    for said in ["closed in 10.244.1.0/28", "10.244.0.0/16 is not this node's alone", "which addresses dhcp"]
    {
        let times =
            logs.lines().filter(|l| l.contains("event=unknown-addresses") && l.contains(said)).count();
        // Once for each time that it has become so, and not at each look.
        assert!((1..=4).contains(&times), "{said}: {times}\n{logs}");
    }

    // While the file is not whole, what was closed stays so.
    cluster.nodes[0].write_other(&own);
    let strays = [&stray.sandbox, &inside.sandbox];
    cluster.agrees("closed again", &all(&cluster, &pods, &[], &strays));
    cluster.nodes[0].break_other();
    says(&cluster, &format!("closed in {v4}, {v6}; "));
    cluster.agrees("half a file", &all(&cluster, &pods, &[], &strays));

    cluster.nodes[0].kill_loader();
    cluster.nodes[0].loader(&["remove"]);
    cluster.agrees("control: removed", &open(&cluster));
}

#[test]
fn closed_beside_another_cni_with_nftables() {
    check(Backend::Nftables);
}

#[test]
fn closed_beside_another_cni_with_iptables() {
    check(Backend::Iptables);
}

#[test]
fn closed_beside_another_cni_with_ebpf() {
    check(Backend::Ebpf);
}
