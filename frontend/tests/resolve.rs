//! Who counts and who has which address: objects in, the model out.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use netpolc_frontend::lower::lower;
use netpolc_frontend::model::{Model, resolve};
use netpolc_frontend::read::read;
use netpolc_frontend::source::Sources;
use netpolc_ir::ports::Protocol;
use netpolc_ir::unit::{Flow, Verdict};

/// The model of documents, and code and message of what was said about them.
fn model(documents: &[String]) -> (Model, Vec<String>) {
    let mut sources = Sources::default();
    sources.add("a.yaml", documents.join("---\n").into_bytes());
    let read = read(&sources);
    let (model, more) = resolve(read.objects);
    let said = read.diagnostics.iter().chain(&more).map(|d| format!("{} {}", d.code, d.message)).collect();
    (model, said)
}

fn object(version: &str, kind: &str, metadata: &str, rest: &str) -> String {
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{{metadata}}}\n{rest}\n")
}

fn workload(kind: &str, name: &str, more: &str, labels: &str) -> String {
    let version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
    let spec = format!(
        "spec: {{selector: {{matchLabels: {{{labels}}}}}, template: {{metadata: {{labels: {{{labels}}}}}}}}}"
    );
    object(version, kind, &format!("name: {name}, namespace: shop{more}"), &spec)
}

fn cron_job(name: &str) -> String {
    let spec = "spec: {jobTemplate: {spec: {template: {metadata: {labels: {a: cron}}}}}}";
    object("batch/v1", "CronJob", &format!("name: {name}, namespace: shop"), spec)
}

fn owner(kind: &str, name: &str) -> String {
    format!(", ownerReferences: [{{kind: {kind}, name: {name}, controller: true}}]")
}

fn pod(name: &str, more: &str, spec: &str, ip: &str) -> String {
    let rest = format!("spec: {{{spec}}}\nstatus: {{phase: Running, podIP: {ip}}}");
    object("v1", "Pod", &format!("name: {name}, namespace: shop{more}"), &rest)
}

fn node(name: &str, addresses: &[(&str, &str)]) -> String {
    let list: Vec<String> =
        addresses.iter().map(|(kind, a)| format!("{{type: {kind}, address: {a}}}")).collect();
    object("v1", "Node", &format!("name: {name}"), &format!("status: {{addresses: [{}]}}", list.join(", ")))
}

/// The names of the pods that count, without the namespace.
fn names(documents: &[String]) -> Vec<String> {
    model(documents).0.pods.into_iter().map(|p| p.name).collect()
}

fn flow(src: &str, dst: &str, protocol: Protocol, port: u16) -> Flow {
    Flow { src: src.parse().unwrap(), dst: dst.parse().unwrap(), protocol, port }
}

/// The verdict of the model, with which the IR must agree.
fn verdict(model: &Model, flow: &Flow) -> Verdict {
    let unit = lower(model);
    let verdict = model.decide(flow).verdict;
    assert_eq!(unit.decide(&unit.bindings(), flow), verdict, "{flow}");
    verdict
}

#[test]
fn workloads_of_one_name_are_pods_of_their_own() {
    let both = [workload("Deployment", "web", "", "a: b"), cron_job("web")];
    assert_eq!(names(&both), ["web", "web-cronjob"]);
    assert_eq!(names(&[both[1].clone(), both[0].clone()]), ["web", "web-cronjob"]);
    let (_, said) = model(&both);
    assert!(
        said.iter().any(|s| s == "N0206 the pod that CronJob web stands for is called shop/web-cronjob"),
        "{said:?}"
    );
    let third = [both[0].clone(), both[1].clone(), workload("Deployment", "web-cronjob", "", "c: d")];
    assert_eq!(names(&third), ["web", "web-cronjob", "web-cronjob-2"]);
}

#[test]
fn a_pod_that_is_none_of_its_does_not_stand_for_a_workload() {
    let documents = [pod("web", "", "", "10.0.0.1"), workload("Deployment", "web", "", "a: b")];
    assert_eq!(names(&documents), ["web", "web-deployment"]);
}

#[test]
fn a_replica_set_is_its_own_deployments() {
    let deployment = workload("Deployment", "web", "", "a: b");
    let of = |kind: &str, name: &str| pod("p", &owner(kind, name), "", "10.0.0.1");
    assert_eq!(names(&[deployment.clone(), of("ReplicaSet", "web-5d4f9c")]), ["p"]);
    assert_eq!(names(&[deployment.clone(), of("ReplicaSet", "web-api-5d4f9c")]), ["p", "web"]);
    assert_eq!(names(&[deployment.clone(), of("ReplicaSet", "web-")]), ["p", "web"]);
    assert_eq!(names(&[cron_job("night"), of("Job", "night-28374650")]), ["p"]);
    assert_eq!(names(&[cron_job("night"), of("Job", "night-clean")]), ["night", "p"]);
    assert_eq!(names(&[cron_job("night"), of("Job", "night-clean-28374650")]), ["night", "p"]);
    // What its own object says of its maker counts more than its name.
    let by_hand = workload("Job", "by-hand", &owner("CronJob", "night"), "x: z");
    assert_eq!(names(&[cron_job("night"), by_hand, of("Job", "by-hand")]), ["p"]);
}

#[test]
fn what_another_workload_makes_stands_for_nobody() {
    let made = workload("ReplicaSet", "web-5d4f9c", &owner("Deployment", "web"), "a: b");
    assert_eq!(names(std::slice::from_ref(&made)), [""; 0]);
    assert_eq!(names(&[made, workload("Deployment", "web", "", "a: b")]), ["web"]);
    assert_eq!(names(&[workload("Job", "night-1", &owner("CronJob", "night"), "a: b")]), [""; 0]);
    assert_eq!(names(&[workload("ReplicaSet", "alone", "", "a: b")]), ["alone"]);
}

#[test]
fn made_up_addresses_are_no_nodes() {
    let planned = [object("v1", "Pod", "name: web, namespace: shop", "")];
    let (first, _) = model(&planned);
    let taken = first.pods[0].addrs[0];
    let (second, said) = model(&[planned[0].clone(), node("n1", &[("InternalIP", &taken.to_string())])]);
    assert_ne!(second.pods[0].addrs[0], taken);
    assert!(!said.iter().any(|s| s.starts_with('E')), "{said:?}");
}

#[test]
fn more_pods_than_made_up_addresses_is_said_once() {
    let pods: Vec<String> =
        (0..66_000).map(|i| object("v1", "Pod", &format!("name: p{i}, namespace: shop"), "")).collect();
    let (_, said) = model(&pods);
    // To say it for each pod means to search the whole block for each.
    assert_eq!(said.iter().filter(|s| s.starts_with("E0203")).count(), 1);
}

#[test]
fn a_pod_on_the_nodes_network_tells_the_nodes_address() {
    let host =
        |name: &str, node: &str, ip: &str| pod(name, "", &format!("hostNetwork: true, nodeName: {node}"), ip);
    let deny = object(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        "name: deny, namespace: shop",
        "spec: {podSelector: {}}",
    );
    let web = |node: &str| pod("web", "", &format!("nodeName: {node}"), "10.0.0.1");
    let (known, said) = model(&[host("proxy", "n1", "192.168.0.1"), web("n1"), deny.clone()]);
    assert_eq!(said, [""; 0]);
    assert_eq!(known.pod_named("shop/proxy").unwrap().addrs, known.nodes["n1"].addrs);
    let probe = flow("192.168.0.1", "10.0.0.1", Protocol::TCP, 80);
    assert_eq!(verdict(&known, &probe), Verdict::Allow);
    let (other, _) = model(&[host("proxy", "n2", "192.168.0.1"), web("n1"), deny]);
    assert_eq!(verdict(&other, &probe), Verdict::Deny);
    let (_, said) = model(&[host("a", "n1", "192.168.0.1"), host("b", "n2", "192.168.0.1")]);
    assert!(said[0].starts_with("E0202 the address 192.168.0.1 of pod shop/b"), "{said:?}");
    // The node's object decides where it is given; the pod's own address comes first.
    let addresses = [("ExternalIP", "203.0.113.1"), ("InternalIP", "192.168.0.1")];
    let (given, _) = model(&[host("proxy", "n1", "192.168.0.1"), node("n1", &addresses)]);
    let addrs: Vec<String> =
        given.pod_named("shop/proxy").unwrap().addrs.iter().map(ToString::to_string).collect();
    assert_eq!(addrs, ["192.168.0.1", "203.0.113.1"]);
}

#[test]
fn a_named_port_is_every_port_of_that_name() {
    let ports = "containers: [{ports: [{name: dns, containerPort: 53, protocol: UDP}, {name: web, containerPort: 80}]}, \
                 {ports: [{name: dns, containerPort: 53}, {name: web, containerPort: 81}]}]";
    let pods = [pod("server", ", labels: {a: server}", ports, "10.0.0.1"), pod("client", "", "", "10.0.0.2")];
    let network = |name: &str| {
        let spec = format!("spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: {name}}}]}}]}}");
        object("networking.k8s.io/v1", "NetworkPolicy", "name: p, namespace: shop", &spec)
    };
    let cluster = |direction: &str, name: &str| {
        let peer = if direction == "ingress" { "from" } else { "to" };
        let rule = format!(
            "{{action: Deny, {peer}: [{{namespaces: {{}}}}], protocols: [{{destinationNamedPort: {name}}}]}}"
        );
        object(
            "policy.networking.k8s.io/v1alpha2",
            "ClusterNetworkPolicy",
            "name: p",
            &format!(
                "spec: {{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, {direction}: [{rule}]}}"
            ),
        )
    };
    let check = |policy: String, protocol: Protocol, port: u16, expect: Verdict| {
        let (model, said) = model(&[pods[0].clone(), pods[1].clone(), policy.clone()]);
        assert_eq!(said, [""; 0]);
        let flow = flow("10.0.0.2", "10.0.0.1", protocol, port);
        assert_eq!(verdict(&model, &flow), expect, "{flow} with {policy}");
    };
    for port in [80, 81] {
        check(network("web"), Protocol::TCP, port, Verdict::Allow);
        check(network("web"), Protocol::UDP, port, Verdict::Deny);
    }
    check(network("web"), Protocol::TCP, 82, Verdict::Deny);
    check(network("dns"), Protocol::TCP, 53, Verdict::Allow);
    check(network("dns"), Protocol::UDP, 53, Verdict::Deny);
    for direction in ["ingress", "egress"] {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            check(cluster(direction, "dns"), protocol, 53, Verdict::Deny);
            check(cluster(direction, "dns"), protocol, 54, Verdict::Allow);
        }
        check(cluster(direction, "web"), Protocol::TCP, 81, Verdict::Deny);
    }
}
