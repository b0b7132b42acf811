//! What should be: every event leads to the right bundle, and pods wait until they are in force.

use crate::cluster::{self, BACKEND, DB, FRONTEND, bindings, binds, db_test, passes, pod};
use crate::plugin::sandbox;
use crate::rig::Rig;
use netpolc_bundle::wire::{FromAgent, Sandbox, ToAgent};
use netpolc_bundle::{Backend, MANIFEST, POLICIES, store};
use netpolc_frontend::model::resolve;
use netpolc_frontend::read::read;
use netpolc_frontend::source::Sources;
use netpolc_node::{Labels, NodeBuilder};
use netpolc_standin::Resource;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

#[test]
fn every_event_leads_to_the_right_bundle() {
    let rig = Rig::running(&[]);
    let first = rig.loader().wait("the first bundle", |_| true);
    assert_eq!(first.manifest.node, "n1");
    assert_eq!(bindings(&first), [("shop/db".to_owned(), vec![DB.to_owned()])]);
    assert!(passes(&first, BACKEND, DB) && !passes(&first, FRONTEND, DB));

    rig.api.apply(pod("backend", "n2", "10.244.2.7"));
    rig.loader()
        .wait("the backend's new address", |b| passes(b, "10.244.2.7", DB) && !passes(b, BACKEND, DB));
    let mut open = db_test();
    open["spec"]["ingress"] = json!([{}]);
    rig.api.apply(open);
    rig.loader().wait("an open policy", |b| passes(b, FRONTEND, DB));
    rig.api.apply(db_test());
    rig.loader().wait("the policy as before", |b| !passes(b, FRONTEND, DB));
    rig.api.delete(Resource::NetworkPolicies, "shop", "db-test");
    rig.loader().wait("no policy", |b| passes(b, FRONTEND, DB));
    rig.api.delete(Resource::Pods, "shop", "db");
    rig.loader().wait("no pod", |b| bindings(b).is_empty());
}

/// Policies of files stay whatever the API server says; pods come and go.
#[test]
fn policies_of_files_are_those_that_count() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policies.json");
    std::fs::write(&file, db_test().to_string()).unwrap();
    std::fs::write(dir.path().join("README"), "not a policy").unwrap();
    let mut rig = Rig::new(&["--policies", dir.path().to_str().unwrap()]);
    cluster::fill(&rig.api);
    let mut open = db_test();
    open["spec"]["ingress"] = json!([{}]);
    rig.api.apply(open);
    rig.start();
    let first = rig.loader().wait("the first bundle", |_| true);
    assert!(passes(&first, BACKEND, DB) && !passes(&first, FRONTEND, DB), "not the one of the API server");
    assert_eq!(rig.api.requests("/apis/networking"), 0, "it need not be allowed to");
    rig.api.delete(Resource::NetworkPolicies, "shop", "db-test");
    rig.api.apply(pod("backend", "n2", "10.244.2.7"));
    rig.loader()
        .wait("the backend's new address", |b| passes(b, "10.244.2.7", DB) && !passes(b, BACKEND, DB));

    // A file that is wrong ends the agent before it begins.
    rig.kill();
    let wrong = db_test().to_string().replace("podSelector", "podselector");
    std::fs::write(&file, wrong).unwrap();
    rig.start();
    rig.until("the reason", || rig.log().contains("policies.json:1:"));
    assert!(rig.ends_with(2), "{}", rig.log());

    // So does a directory where nothing is mounted, which else would open everything.
    std::fs::remove_file(&file).unwrap();
    rig.start();
    rig.until("the reason", || rig.log().contains("no policy"));
    assert!(rig.ends_with(2), "{}", rig.log());
}

/// So do those of a bundle that was built elsewhere, of other pods; and nothing else but what it was built of is taken.
#[test]
fn policies_of_a_bundle_are_those_that_count() {
    let dir = tempfile::tempdir().unwrap();
    built(dir.path(), "n9");
    let mut rig = Rig::new(&["--bundle", dir.path().join("n9").to_str().unwrap()]);
    cluster::fill(&rig.api);
    rig.api.delete(Resource::NetworkPolicies, "shop", "db-test");
    rig.start();
    let first = rig.loader().wait("the first bundle", |_| true);
    assert!(passes(&first, BACKEND, DB) && !passes(&first, FRONTEND, DB), "not those of the API server");
    rig.api.apply(pod("backend", "n2", "10.244.2.7"));
    rig.loader()
        .wait("the backend's new address", |b| passes(b, "10.244.2.7", DB) && !passes(b, BACKEND, DB));
    rig.kill();

    // As a ConfigMap is mounted: links, and no more than the two files.
    let (mounted, n9) = (tempfile::tempdir().unwrap(), dir.path().join("n9"));
    for file in [MANIFEST, POLICIES] {
        std::os::unix::fs::symlink(n9.join(file), mounted.path().join(file)).unwrap();
    }
    let mut rig = Rig::new(&["--bundle", mounted.path().to_str().unwrap()]);
    cluster::fill(&rig.api);
    rig.start();
    rig.loader().wait("a bundle", |b| !passes(b, FRONTEND, DB));
    rig.kill();

    let text = std::fs::read_to_string(n9.join(POLICIES)).unwrap();
    std::fs::write(n9.join(POLICIES), text.replace("backend", "hackend")).unwrap();
    rig.start();
    rig.until("the reason", || rig.log().contains("not the one of the manifest"));
    assert!(rig.ends_with(2), "{}", rig.log());
}

/// A bundle for a node, as a build writes it.
fn built(dir: &Path, node: &str) {
    let mut sources = Sources::default();
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } });
    sources.add("in.json", format!("{node}{}", db_test()).into_bytes());
    let read = read(&sources);
    let (model, _) = resolve(read.objects);
    let compiled = netpolc_node::compile(&model, &mut |_| ()).unwrap();
    let (labels, policies) = (Labels::of_policies(&model), read.written.list());
    let backends = [Backend::Nftables];
    let mut builder = NodeBuilder::new(&model, &compiled.matrix, &labels, backends, Some(&policies));
    for (host, data) in compiled.matrix.hosts.iter() {
        let folder = dir.join(&data.name);
        std::fs::create_dir(&folder).unwrap();
        store::write(&folder, &builder.build(host).unwrap().bundle).unwrap();
    }
}

#[test]
fn labels_of_namespaces_count() {
    let rig = Rig::running(&[]);
    let mut policy = db_test();
    policy["spec"]["ingress"][0]["from"] =
        json!([{ "namespaceSelector": { "matchLabels": { "team": "a" } } }]);
    rig.api.apply(policy);
    rig.loader().wait("a policy that lets no one in", |b| !passes(b, BACKEND, DB));
    let mut namespace = cluster::namespace("shop");
    namespace["metadata"]["labels"]["team"] = json!("a");
    rig.api.apply(namespace);
    rig.loader().wait("all of the namespace let in", |b| passes(b, FRONTEND, DB));
}

#[test]
fn nothing_is_sent_while_a_list_is_not_complete() {
    for resource in [Resource::Pods, Resource::NetworkPolicies, Resource::Namespaces, Resource::Nodes] {
        let mut rig = Rig::new(&[]);
        cluster::fill(&rig.api);
        rig.api.hold_lists(resource, true);
        rig.start();
        rig.until("all lists to be asked for", || {
            rig.api.requests("/api/v1/") >= 3 && rig.api.requests("/apis/networking") >= 1
        });
        // The others are complete long before this; events come too.
        rig.api.apply(pod("new", "n1", "10.244.1.9"));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(rig.loader().count(), 0, "{resource:?} is not complete");
        let status = rig.ask(&ToAgent::Status);
        assert!(matches!(status, FromAgent::Failed { retry: true, .. }), "{status:?}");
        assert!(rig.http("/readyz").0.contains("503") && rig.http("/healthz").0.contains("200"));
        rig.api.hold_lists(resource, false);
        let bundle = rig.loader().wait("the first bundle", |b| binds(b, "10.244.1.9"));
        assert!(passes(&bundle, BACKEND, DB) && !passes(&bundle, FRONTEND, DB));
    }
}

#[test]
fn nothing_is_sent_for_a_name_that_no_node_has() {
    let said = |rig: &Rig| rig.log().contains("no Node object has this name");
    let rig = Rig::running(&[]);
    rig.loader().wait("the first bundle", |_| true);
    assert!(!said(&rig), "{}", rig.log());
    let mut rig = Rig::new(&[]);
    cluster::fill(&rig.api);
    rig.api.delete(Resource::Nodes, "", "n1");
    rig.start();
    rig.until("the warning", || said(&rig));
    rig.api.apply(pod("new", "n2", "10.244.2.9"));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(rig.loader().count(), 0, "{}", rig.log());
    assert!(rig.http("/readyz").0.contains("503"));
    // As when the node joins.
    rig.api.apply(cluster::node("n1", "192.0.2.1", "10.244.1.0/24"));
    let bundle = rig.loader().wait("the first bundle", |_| true);
    assert!(passes(&bundle, BACKEND, DB) && !passes(&bundle, FRONTEND, DB));
    // Its pods are still there when it is taken away, and their policies count.
    rig.api.delete(Resource::Nodes, "", "n1");
    rig.api.delete(Resource::NetworkPolicies, "shop", "db-test");
    rig.loader().wait("no policy", |b| passes(b, FRONTEND, DB));
}

#[test]
fn lists_come_in_pages() {
    let mut rig = Rig::new(&[]);
    cluster::fill(&rig.api);
    for i in 0..600 {
        let mut pod = pod(&format!("p{i}"), "n2", &format!("10.244.{}.{}", 3 + i / 200, 1 + i % 200));
        pod["metadata"]["labels"] = json!({ "app": "backend" });
        rig.api.apply(pod);
    }
    rig.start();
    let bundle = rig.loader().wait("the first bundle", |_| true);
    assert!(passes(&bundle, "10.244.3.1", DB) && passes(&bundle, "10.244.5.200", DB));
    assert!(rig.api.requests("/api/v1/pods") >= 3, "three pages");
}

#[test]
fn a_new_pod_waits_until_it_is_in_force() {
    let rig = Rig::running(&[]);
    rig.until_ready();
    let mode = std::fs::metadata(rig.path("agent.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // The API server has not told of the pod yet.
    let add = rig.asking(ToAgent::Add(sandbox("c1", "shop/web", &["10.244.1.8"])));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!add.is_finished(), "the pod is not known");
    rig.loader().hold(true);
    let mut web = pod("web", "n1", "");
    web["metadata"]["labels"] = json!({ "app": "backend" });
    rig.api.apply(web);
    let bundle = rig.loader().wait("the pod's address", |b| binds(b, "10.244.1.8"));
    assert!(passes(&bundle, "10.244.1.8", DB), "it has the labels of a backend");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!add.is_finished(), "the loader has not answered");
    rig.loader().hold(false);
    assert_eq!(add.join().unwrap(), FromAgent::Done);
    assert_eq!(rig.ask(&ToAgent::Check(sandbox("c1", "shop/web", &["10.244.1.8"]))), FromAgent::Done);
    let other = rig.ask(&ToAgent::Check(sandbox("c1", "shop/web", &["10.244.1.9"])));
    assert!(matches!(other, FromAgent::Failed { .. }), "{other:?}");

    // Known beforehand, it is a matter of milliseconds.
    rig.api.apply(pod("api", "n1", ""));
    rig.until("the pod to be known", || rig.metric("netpolc_agent_pods") == "5");
    assert_eq!(rig.ask(&ToAgent::Add(sandbox("c2", "shop/api", &["10.244.1.10"]))), FromAgent::Done);
    rig.loader().wait("its address", |b| binds(b, "10.244.1.10") && binds(b, "10.244.1.8"));
}

#[test]
fn the_end_of_a_sandbox_ends_its_addresses_at_once() {
    let rig = Rig::running(&[]);
    rig.until_ready();
    rig.api.apply(pod("web", "n1", ""));
    let web = sandbox("c1", "shop/web", &["10.244.1.8"]);
    assert_eq!(rig.ask(&ToAgent::Add(web.clone())), FromAgent::Done);
    rig.api.apply(pod("web", "n1", "10.244.1.8"));
    assert_eq!(rig.ask(&ToAgent::Del(web.clone())), FromAgent::Done);
    rig.loader().wait("its address gone, though the object shows it", |b| !binds(b, "10.244.1.8"));
    // The object changes, and still shows the address.
    let mut late = pod("web", "n1", "10.244.1.8");
    late["metadata"]["labels"]["more"] = json!("labels");
    rig.api.apply(late);
    rig.api.apply(pod("other", "n1", "10.244.1.20"));
    rig.loader().wait("another pod", |b| binds(b, "10.244.1.20") && !binds(b, "10.244.1.8"));
    // Again, without addresses, of one that was never there: always done.
    assert_eq!(rig.ask(&ToAgent::Del(web)), FromAgent::Done);
    assert_eq!(rig.ask(&ToAgent::Del(sandbox("c9", "shop/never", &[]))), FromAgent::Done);
    // The address is given to another pod, which gets it.
    rig.api.apply(pod("next", "n1", ""));
    assert_eq!(rig.ask(&ToAgent::Add(sandbox("c2", "shop/next", &["10.244.1.8"]))), FromAgent::Done);
    let bundle = rig.loader().wait("the next pod", |b| binds(b, "10.244.1.8"));
    assert!(bindings(&bundle).contains(&("shop/next".to_owned(), vec!["10.244.1.8".to_owned()])));
}

#[test]
fn a_pod_of_the_same_name_is_another_pod() {
    let rig = Rig::running(&[]);
    rig.until_ready();
    let mut old = pod("db-0", "n1", "");
    old["metadata"]["uid"] = json!("old");
    rig.api.apply(old);
    let with_uid = |container: &str, uid: &str, address| Sandbox {
        uid: Some(uid.to_owned()),
        ..sandbox(container, "shop/db-0", &[address])
    };
    assert_eq!(rig.ask(&ToAgent::Add(with_uid("c1", "old", "10.244.1.8"))), FromAgent::Done);
    // The runtime is ahead of the API server: it means a pod that is not known yet.
    let add = rig.asking(ToAgent::Add(with_uid("c2", "new", "10.244.1.9")));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!add.is_finished());
    rig.api.delete(Resource::Pods, "shop", "db-0");
    let mut new = pod("db-0", "n1", "");
    new["metadata"]["uid"] = json!("new");
    rig.api.apply(new);
    assert_eq!(add.join().unwrap(), FromAgent::Done);
    // The old one may send until its sandbox ends, so it is judged. That end takes nothing from the new one.
    rig.loader().wait("both", |b| binds(b, "10.244.1.8") && binds(b, "10.244.1.9"));
    assert_eq!(rig.ask(&ToAgent::Del(with_uid("c1", "old", "10.244.1.8"))), FromAgent::Done);
    rig.loader().wait("the new one", |b| !binds(b, "10.244.1.8") && binds(b, "10.244.1.9"));
    assert_eq!(rig.ask(&ToAgent::Check(with_uid("c2", "new", "10.244.1.9"))), FromAgent::Done);
}

#[test]
fn static_pods_are_known_by_the_kubelets_uid() {
    let rig = Rig::running(&[]);
    rig.until_ready();
    let mut mirror = pod("static", "n1", "");
    mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "hash" });
    rig.api.apply(mirror);
    let add = Sandbox { uid: Some("hash".into()), ..sandbox("c1", "shop/static", &["10.244.1.8"]) };
    assert_eq!(rig.ask(&ToAgent::Add(add)), FromAgent::Done);
}

#[test]
fn finished_pods_and_those_of_the_host_do_not_count() {
    let rig = Rig::running(&[]);
    rig.loader().wait("the first bundle", |b| binds(b, DB));
    let mut host = pod("host", "n1", "172.18.0.2");
    host["spec"]["hostNetwork"] = json!(true);
    host["metadata"]["labels"] = json!({ "app": "db" });
    rig.api.apply(host);
    let mut done = pod("db", "n1", DB);
    done["status"]["phase"] = json!("Succeeded");
    rig.api.apply(done);
    let bundle = rig.loader().wait("the finished pod gone", |b| bindings(b).is_empty());
    assert!(passes(&bundle, FRONTEND, DB), "its address belongs to no one");
    assert!(passes(&bundle, FRONTEND, "172.18.0.2"), "the host's pods are not subject");
    let add = rig.ask(&ToAgent::Add(sandbox("c1", "shop/db", &[DB])));
    assert!(matches!(add, FromAgent::Failed { retry: false, .. }), "{add:?}");
}

/// `kubectl delete --force` takes the object first, or the control plane takes a pod for failed; its containers may run on.
#[test]
fn a_pod_counts_for_as_long_as_it_has_a_sandbox() {
    let rig = Rig::running(&[]);
    rig.until_ready();
    let add = |address: &str| ToAgent::Add(sandbox("c1", "shop/db", &[address]));
    assert_eq!(rig.ask(&add(DB)), FromAgent::Done);
    let mut failed = pod("db", "n1", DB);
    failed["status"]["phase"] = json!("Failed");
    rig.api.apply(failed);
    // What comes after it is in force.
    let after = |address: &str| {
        rig.api.apply(pod("backend", "n2", address));
        let bundle = rig.loader().wait("what came after", |b| passes(b, address, DB));
        assert!(binds(&bundle, DB) && !passes(&bundle, FRONTEND, DB));
    };
    after("10.244.2.7");
    rig.api.delete(Resource::Pods, "shop", "db");
    after("10.244.2.8");
    assert_eq!(rig.ask(&ToAgent::Del(sandbox("c1", "shop/db", &[DB]))), FromAgent::Done);
    rig.loader().wait("nobody", |b| bindings(b).is_empty());
}

/// Whoever may write a Node object's status must not take a policy from a pod.
#[test]
fn an_address_that_the_runtime_gave_is_no_nodes() {
    let rig = Rig::running(&[]);
    rig.until_ready();
    assert_eq!(rig.ask(&ToAgent::Add(sandbox("c1", "shop/db", &[DB]))), FromAgent::Done);
    rig.api.apply(cluster::node("n2", DB, "10.244.2.0/24"));
    rig.api.apply(pod("backend", "n2", "10.244.2.7"));
    let bundle = rig.loader().wait("what came after", |b| passes(b, "10.244.2.7", DB));
    assert!(binds(&bundle, DB) && !passes(&bundle, FRONTEND, DB));
    assert_eq!(rig.ask(&ToAgent::Check(sandbox("c1", "shop/db", &[DB]))), FromAgent::Done);
}

/// Nodes behind one gateway may show its address as their own.
#[test]
fn an_address_that_nodes_share_keeps_nobody_from_compiling() {
    let rig = Rig::running(&[]);
    rig.loader().wait("the first bundle", |b| passes(b, BACKEND, DB));
    for (name, address, range) in
        [("n1", "172.18.0.2", "10.244.1.0/24"), ("n2", "172.18.0.3", "10.244.2.0/24")]
    {
        let mut node = cluster::node(name, address, range);
        let addresses = node["status"]["addresses"].as_array_mut().unwrap();
        addresses.push(json!({ "type": "ExternalIP", "address": "203.0.113.5" }));
        rig.api.apply(node);
    }
    rig.api.apply(pod("backend", "n2", "10.244.2.7"));
    rig.loader().wait("what came after", |b| passes(b, "10.244.2.7", DB) && !passes(b, "203.0.113.5", DB));
}

/// Watches are apart: a pod may be told before its namespace. Its labels might be ones that no peer may have.
#[test]
fn a_pod_of_a_namespace_that_was_not_told_is_no_peer() {
    let rig = Rig::running(&[]);
    let mut trusting = db_test();
    let low = json!([{ "key": "trust", "operator": "NotIn", "values": ["low"] }]);
    trusting["spec"]["ingress"] = json!([{ "from": [{ "namespaceSelector": { "matchExpressions": low } }] }]);
    rig.api.apply(trusting);
    rig.loader().wait("whoever is trusted", |b| passes(b, BACKEND, DB));
    let of = |name: &str, address: &str| {
        let mut pod = pod("x", "n2", address);
        pod["metadata"]["namespace"] = json!(name);
        pod["metadata"]["uid"] = json!(format!("uid-{name}"));
        pod
    };
    rig.api.apply(of("later", "10.244.2.20"));
    rig.api.apply(pod("backend", "n2", "10.244.2.7"));
    let bundle = rig.loader().wait("what came after", |b| passes(b, "10.244.2.7", DB));
    assert!(!passes(&bundle, "10.244.2.20", DB));
    rig.api.apply(cluster::namespace("later"));
    rig.loader().wait("a namespace that is trusted", |b| passes(b, "10.244.2.20", DB));
}

#[test]
fn an_address_that_two_objects_show_is_the_younger_pods() {
    let rig = Rig::running(&[]);
    rig.loader().wait("the first bundle", |b| passes(b, BACKEND, DB));
    // The old backend is still there, but its address was given to another pod.
    let mut next = pod("next", "n2", BACKEND);
    next["metadata"]["creationTimestamp"] = json!("2026-06-01T00:00:00Z");
    rig.api.apply(next);
    rig.loader().wait("the address to be the next pod's", |b| !passes(b, BACKEND, DB));
}

#[test]
fn the_runtime_says_which_sandboxes_it_has() {
    let rig = Rig::running(&[]);
    rig.until_ready();
    for (container, name, address) in [("c1", "a", "10.244.1.8"), ("c2", "b", "10.244.1.9")] {
        rig.api.apply(pod(name, "n1", ""));
        let add = ToAgent::Add(sandbox(container, &format!("shop/{name}"), &[address]));
        assert_eq!(rig.ask(&add), FromAgent::Done);
    }
    assert_eq!(rig.ask(&ToAgent::Gc { valid: vec![("c2".into(), "eth0".into())] }), FromAgent::Done);
    rig.loader().wait("the other one only", |b| !binds(b, "10.244.1.8") && binds(b, "10.244.1.9"));
}

#[test]
fn the_network_is_what_the_nodes_ask_for() {
    let rig = Rig::running(&["--cni", "ptp"]);
    let network = rig.loader().wait_network("the network", |n| !n.routes.is_empty());
    assert_eq!(network.pod_ranges, ["10.244.1.0/24"]);
    assert_eq!(network.routes, [("10.244.2.0/24".to_owned(), "172.18.0.3".parse().unwrap())]);
    rig.api.apply(cluster::node("n3", "172.18.0.4", "10.244.3.0/24"));
    let network = rig.loader().wait_network("another node", |n| n.routes.len() == 2);
    assert!(network.cluster_ranges.contains(&"172.18.0.4/32".to_owned()));
    rig.api.delete(Resource::Nodes, "", "n2");
    rig.loader().wait_network("a node less", |n| n.routes.len() == 1);
}

#[test]
fn metrics_say_what_is_in_force() {
    let rig = Rig::running(&[]);
    rig.until_ready();
    rig.until("the figures", || rig.metric("netpolc_agent_policies") == "1");
    assert_eq!(rig.metric("netpolc_agent_pods"), "3");
    assert_eq!(rig.metric("netpolc_agent_classes"), "2");
    assert_eq!(rig.metric("netpolc_agent_loader_up"), "1");
    assert_eq!(rig.metric("netpolc_agent_uncompilable_policies"), "0");
    assert_ne!(rig.metric("netpolc_agent_programming_seconds_count"), "0");
    assert!(rig.http("/readyz").0.contains("200") && rig.http("/other").0.contains("404"));
}
