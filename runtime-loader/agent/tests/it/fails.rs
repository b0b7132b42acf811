//! What happens when something fails: nothing opens, and everything comes right again.

use crate::cluster::{self, BACKEND, DB, FRONTEND, binds, db_test, passes, pod};
use crate::plugin::sandbox;
use crate::rig::Rig;
use netpolc_bundle::wire::{FromAgent, ToAgent};
use netpolc_bundle::{Artifact, Backend, Bundle};
use netpolc_standin::Resource;
use serde_json::json;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[test]
fn a_history_that_is_too_old_leads_to_a_new_list() {
    for as_status in [false, true] {
        let rig = Rig::running(&[]);
        rig.loader().wait("the first bundle", |b| binds(b, DB));
        let lists = rig.api.requests("/api/v1/pods");
        // What happens before the list is not in any watch.
        rig.api.hold_watches(Resource::Pods, true);
        rig.api.delete(Resource::Pods, "shop", "db");
        rig.api.apply(pod("new", "n1", "10.244.1.9"));
        if as_status {
            rig.api.disconnect();
        }
        rig.api.expire(as_status);
        rig.api.hold_watches(Resource::Pods, false);
        rig.loader().wait("what the new list says", |b| binds(b, "10.244.1.9") && !binds(b, DB));
        assert!(rig.api.requests("/api/v1/pods") > lists);
        rig.api.apply(pod("newer", "n1", "10.244.1.10"));
        rig.loader().wait("watches that work again", |b| binds(b, "10.244.1.10"));
    }
}

#[test]
fn a_cut_watch_goes_on_where_it_was() {
    let rig = Rig::running(&[]);
    rig.loader().wait("the first bundle", |_| true);
    rig.api.bookmark();
    for i in 0..5 {
        rig.api.disconnect();
        rig.api.apply(pod("web", "n1", &format!("10.244.1.{}", 20 + i)));
        rig.loader().wait("the pod's next address", |b| binds(b, &format!("10.244.1.{}", 20 + i)));
    }
}

#[test]
fn without_the_api_server_everything_stays_in_force() {
    let rig = Rig::running(&[]);
    rig.until_ready();
    rig.api.apply(pod("web", "n1", ""));
    rig.until("the pod to be known", || rig.metric("netpolc_agent_pods") == "4");
    rig.api.refuse(true);
    let bundles = rig.loader().count();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(rig.loader().count(), bundles, "nothing is sent");
    // A pod that is known can still start.
    assert_eq!(rig.ask(&ToAgent::Add(sandbox("c1", "shop/web", &["10.244.1.8"]))), FromAgent::Done);
    rig.api.delete(Resource::NetworkPolicies, "shop", "db-test");
    rig.api.refuse(false);
    rig.loader().wait("what happened in the meantime", |b| passes(b, FRONTEND, DB));
    assert_ne!(rig.metric("netpolc_agent_watch_errors_total"), "0");
}

#[test]
fn a_connection_that_leads_nowhere_is_soon_given_up() {
    // Takes connections and says nothing, as what is found where the API server's address leads nowhere yet.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut rig = Rig::new(&[]);
    let server = format!("https://{}", nowhere.local_addr().unwrap());
    rig.start_with(&json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": { "server": server, "insecure-skip-tls-verify": true } }],
        "users": [{ "name": "c", "user": {} }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "c" } }]
    }));
    let begun = Instant::now();
    rig.until("the first try to end", || rig.metric("netpolc_agent_watch_errors_total") != "0");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn events_may_come_in_any_order() {
    let rig = Rig::running(&[]);
    rig.loader().wait("the first bundle", |_| true);
    // The policy and the pod of a namespace come before the namespace's label.
    rig.api.hold_watches(Resource::Namespaces, true);
    let mut namespace = cluster::namespace("other");
    namespace["metadata"]["labels"]["team"] = json!("a");
    rig.api.apply(namespace);
    let mut guest = pod("guest", "n2", "10.244.2.30");
    guest["metadata"]["namespace"] = json!("other");
    rig.api.apply(guest);
    let mut policy = db_test();
    policy["spec"]["ingress"] =
        json!([{ "from": [{ "namespaceSelector": { "matchLabels": { "team": "a" } } }] }]);
    rig.api.apply(policy);
    rig.loader().wait("the policy", |b| !passes(b, BACKEND, DB) && !passes(b, "10.244.2.30", DB));
    rig.api.hold_watches(Resource::Namespaces, false);
    rig.loader().wait("the guest let in", |b| passes(b, "10.244.2.30", DB) && !passes(b, BACKEND, DB));
}

#[test]
fn a_policy_that_cannot_be_compiled_isolates_and_says_so() {
    let rig = Rig::running(&[]);
    rig.loader().wait("the first bundle", |b| passes(b, BACKEND, DB));
    let mut wrong = db_test();
    wrong["spec"]["ingress"][0]["fromTheFuture"] = json!(true);
    rig.api.apply(wrong);
    rig.loader().wait("the database isolated", |b| {
        !passes(b, BACKEND, DB) && passes(b, DB, BACKEND) && passes(b, DB, FRONTEND)
    });
    rig.until("the metric", || rig.metric("netpolc_agent_uncompilable_policies") == "1");
    rig.until("an event", || !rig.api.created().is_empty());
    let (path, event) = rig.api.created().remove(0);
    assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/shop/events");
    assert_eq!((&event["regarding"]["name"], &event["reason"]), (&json!("db-test"), &json!("NotCompiled")));
    assert!(event["note"].as_str().unwrap().contains("fromTheFuture"), "{event}");

    // Not even the selector can be read: every pod of the namespace is isolated, in both directions.
    let mut worse = db_test();
    worse["spec"]["podSelector"] =
        json!({ "matchExpressions": [{ "key": "app", "operator": "Resembles", "values": ["db"] }] });
    worse["spec"]["policyTypes"] = json!(["Sideways"]);
    rig.api.apply(pod("web", "n1", "10.244.1.8"));
    rig.api.apply(worse);
    rig.loader().wait("every pod of the namespace isolated", |b| {
        !passes(b, BACKEND, "10.244.1.8") && !passes(b, "10.244.1.8", "192.0.2.1")
    });
    // Others are compiled as ever.
    rig.api.apply(db_test());
    rig.loader().wait("the policy as it was", |b| passes(b, BACKEND, DB) && passes(b, BACKEND, "10.244.1.8"));
    rig.until("the metric", || rig.metric("netpolc_agent_uncompilable_policies") == "0");
}

#[test]
fn cluster_policies_count_once_the_cluster_has_them() {
    let mut rig = Rig::new(&[]);
    cluster::fill(&rig.api);
    rig.api.serve_cluster_policies();
    rig.start();
    rig.loader().wait("the first bundle", |b| passes(b, BACKEND, DB));
    let policy = |to: serde_json::Value| {
        json!({ "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": { "name": "guard" },
            "spec": { "tier": "Admin", "priority": 10,
                "subject": { "pods": { "podSelector": { "matchLabels": { "app": "db" } } } },
                "egress": [{ "action": "Deny", "to": to }] } })
    };
    rig.api.apply(policy(json!([{ "networks": ["192.0.2.0/24"] }])));
    rig.loader().wait("one network denied", |b| !passes(b, DB, "192.0.2.1") && passes(b, DB, "198.51.100.1"));
    rig.api.apply(policy(json!([{ "domainNames": ["example.com"] }])));
    rig.loader().wait("its subject isolated", |b| !passes(b, DB, "198.51.100.1") && !passes(b, BACKEND, DB));
    rig.until("an event", || rig.api.created().iter().any(|(p, _)| p.contains("/namespaces/default/events")));
    rig.api.delete(Resource::ClusterNetworkPolicies, "", "guard");
    rig.loader().wait("all as before", |b| passes(b, DB, "198.51.100.1") && passes(b, BACKEND, DB));
}

#[test]
fn a_loader_that_was_away_gets_the_last_bundle() {
    let mut rig = Rig::running(&["--add-timeout", "1"]);
    rig.until_ready();
    rig.stop_loader();
    rig.api.apply(pod("web", "n1", ""));
    let add = rig.ask(&ToAgent::Add(sandbox("c1", "shop/web", &["10.244.1.8"])));
    assert!(
        matches!(&add, FromAgent::Failed { retry: true, message } if message.contains("loader")),
        "{add:?}"
    );
    assert!(matches!(rig.ask(&ToAgent::Status), FromAgent::Failed { retry: true, .. }));
    assert!(rig.http("/readyz").0.contains("503"));
    rig.start_loader();
    rig.loader().wait("the last bundle", |b| binds(b, "10.244.1.8") && binds(b, DB));
    rig.until_ready();
    // Another loader in its place, and nothing else happened.
    rig.stop_loader();
    rig.start_loader();
    rig.loader().wait("the same bundle again", |b| binds(b, "10.244.1.8") && binds(b, DB));
}

#[test]
fn a_loader_that_refuses_is_asked_again() {
    let rig = Rig::running(&["--add-timeout", "1"]);
    rig.until_ready();
    rig.loader().refuse(true);
    rig.api.apply(pod("web", "n1", ""));
    let web = sandbox("c1", "shop/web", &["10.244.1.8"]);
    let add = rig.ask(&ToAgent::Add(web.clone()));
    assert!(matches!(&add, FromAgent::Failed { retry: true, message } if message.contains("told to refuse")));
    // The end does not wait for ever.
    assert_eq!(rig.ask(&ToAgent::Del(web.clone())), FromAgent::Done);
    rig.loader().refuse(false);
    assert_eq!(rig.ask(&ToAgent::Add(web)), FromAgent::Done);
}

#[test]
fn a_network_that_cannot_be_made_keeps_no_policy_back() {
    let mut rig = Rig::new(&["--cni", "ptp"]);
    crate::cluster::fill(&rig.api);
    rig.loader().refuse_network(true);
    rig.start();
    rig.loader().wait("policies in spite of the network", |b| passes(b, BACKEND, DB));
    // New pods start, and policies change.
    rig.api.apply(pod("web", "n1", ""));
    let add = ToAgent::Add(sandbox("c1", "shop/web", &["10.244.1.8"]));
    assert_eq!(rig.ask(&add), FromAgent::Done);
    let mut policy = db_test();
    policy["spec"]["ingress"] = json!([]);
    rig.api.apply(policy);
    rig.loader().wait("a policy that changed", |b| !passes(b, BACKEND, DB));
    let status = rig.ask(&ToAgent::Status);
    assert!(
        matches!(&status, FromAgent::Failed { retry: true, message } if message.contains("no space left")),
        "{status:?}"
    );
    let said = rig.log().lines().filter(|line| line.contains("no space left for the network")).count();
    assert_eq!(said, 1, "{}", rig.log());
    rig.loader().refuse_network(false);
    rig.until_ready();
}

#[test]
fn a_pod_that_cannot_be_remembered_does_not_start() {
    let mut rig = Rig::running(&[]);
    rig.until_ready();
    rig.api.apply(pod("web", "n1", ""));
    // Where the list is written before it gets its name, another thing stands in the way.
    std::fs::create_dir(rig.path("state.json.new")).unwrap();
    let web = sandbox("c1", "shop/web", &["10.244.1.8"]);
    let add = rig.ask(&ToAgent::Add(web.clone()));
    let names_the_file = |message: &str| message.contains(rig.path("state.json").to_str().unwrap());
    assert!(matches!(&add, FromAgent::Failed { retry: true, message } if names_the_file(message)), "{add:?}");
    assert_eq!(rig.ask(&ToAgent::Del(web.clone())), FromAgent::Done);
    std::fs::remove_dir(rig.path("state.json.new")).unwrap();
    rig.until("the list is written", || rig.log().contains("written again"));
    assert_eq!(rig.ask(&ToAgent::Add(web.clone())), FromAgent::Done);
    rig.kill();
    let before = rig.loader().count();
    rig.start();
    rig.until("a bundle of the new agent", || rig.loader().count() > before);
    rig.until_ready();
    assert_eq!(rig.ask(&ToAgent::Check(web)), FromAgent::Done);
}

#[test]
fn an_agent_that_starts_again_knows_the_sandboxes() {
    let mut rig = Rig::running(&[]);
    rig.until_ready();
    for (container, name, address) in
        [("c1", "a", "10.244.1.8"), ("c2", "b", "10.244.1.9"), ("c3", "c", "10.244.1.10")]
    {
        rig.api.apply(pod(name, "n1", ""));
        let add = ToAgent::Add(sandbox(container, &format!("shop/{name}"), &[address]));
        assert_eq!(rig.ask(&add), FromAgent::Done);
    }
    rig.api.apply(pod("b", "n1", "10.244.1.9"));
    assert_eq!(rig.ask(&ToAgent::Del(sandbox("c2", "shop/b", &["10.244.1.9"]))), FromAgent::Done);
    rig.kill();
    rig.api.delete(Resource::Pods, "shop", "c");
    let before = rig.loader().count();
    rig.start();
    rig.until("a bundle of the new agent", || rig.loader().count() > before);
    rig.loader().wait("what the earlier agent knew", |b| {
        binds(b, "10.244.1.8") && !binds(b, "10.244.1.9") && !binds(b, "10.244.1.10") && binds(b, DB)
    });
    rig.until_ready();
    assert_eq!(rig.ask(&ToAgent::Check(sandbox("c1", "shop/a", &["10.244.1.8"]))), FromAgent::Done);
    let gone = rig.ask(&ToAgent::Check(sandbox("c3", "shop/c", &["10.244.1.10"])));
    assert!(matches!(gone, FromAgent::Failed { .. }), "{gone:?}");
}

#[test]
fn a_pod_that_stays_unknown_is_to_be_tried_again() {
    let rig = Rig::running(&["--add-timeout", "1"]);
    rig.until_ready();
    let add = rig.ask(&ToAgent::Add(sandbox("c1", "shop/ghost", &["10.244.1.8"])));
    assert!(
        matches!(&add, FromAgent::Failed { retry: true, message } if message.contains("shop/ghost")),
        "{add:?}"
    );
    let none = rig.ask(&ToAgent::Add(sandbox("c1", "shop/db", &[])));
    assert!(matches!(none, FromAgent::Failed { retry: false, .. }), "{none:?}");
}

#[test]
fn nonsense_on_the_socket_hurts_no_one() {
    let rig = Rig::running(&[]);
    rig.until_ready();
    let frames: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x02\x00\x00\x00{}",
        b"\x10\x00\x00\x00{",
        b"\x00\x00\x00\x00",
    ];
    for frame in frames {
        let mut stream = UnixStream::connect(rig.path("agent.sock")).unwrap();
        let _ = stream.write_all(frame);
    }
    assert_eq!(rig.ask(&ToAgent::Status), FromAgent::Done);
    let status = std::fs::read_to_string(format!("/proc/{}/status", rig.pid())).unwrap();
    let rss = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    let kib: u64 = rss.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 64 << 10, "{rss}");
}

/// Whether a bundle has artifacts for this backend alone.
fn is_for(bundle: &Bundle, backend: Backend) -> bool {
    bundle.manifest.backends().into_iter().eq([backend])
}

#[test]
fn bundles_are_for_what_the_loader_takes() {
    let mut rig = Rig::running(&[]);
    rig.loader().wait("a bundle for a loader that does not say", |b| is_for(b, Backend::Nftables));
    // Another loader in its place, which is asked anew.
    rig.loader().takes(&["ebpf", "nftables"]);
    rig.loader().hang_up();
    rig.loader().wait("a bundle for the best", |b| is_for(b, Backend::Ebpf) && binds(b, DB));
    rig.loader().takes(&["iptables"]);
    rig.loader().hang_up();
    rig.loader().wait("a bundle for the other", |b| is_for(b, Backend::Iptables) && binds(b, DB));
    // What changes while there is none comes when there is one.
    rig.stop_loader();
    rig.api.delete(Resource::NetworkPolicies, "shop", "db-test");
    rig.start_loader();
    rig.loader().takes(&["nftables"]);
    rig.loader().wait("the change", |b| passes(b, FRONTEND, DB));
    // One that takes nothing gets nothing, and is asked until it does.
    rig.loader().takes(&[]);
    rig.loader().hang_up();
    rig.until("the reason", || rig.log().contains("can use no backend: not said"));
    assert_eq!(rig.metric("netpolc_agent_loader_up"), "0");
    rig.loader().takes(&["ebpf"]);
    rig.loader().wait("a bundle once it takes one", |b| is_for(b, Backend::Ebpf));
    rig.until_ready();
}

/// A loader that cannot look at its kernel may mend that with a bundle, so it gets one.
#[test]
fn a_loader_that_cannot_say_what_it_takes_gets_bundles() {
    let mut rig = Rig::running(&[]);
    rig.loader().takes(&["ebpf"]);
    rig.loader().hang_up();
    rig.loader().wait("a bundle for what it takes", |b| is_for(b, Backend::Ebpf));
    rig.stop_loader();
    rig.start_loader();
    rig.loader().blind(true);
    rig.loader().wait("a bundle for what was said last", |b| is_for(b, Backend::Ebpf));
    rig.loader().takes(&["iptables"]);
    rig.loader().blind(false);
    rig.loader().hang_up();
    rig.loader().wait("what it says now", |b| is_for(b, Backend::Iptables));
}

#[test]
fn backends_that_are_listed_stay() {
    let rig = Rig::running(&["--backend=iptables,nftables"]);
    rig.loader().takes(&["ebpf"]);
    let bundle = rig.loader().wait("a bundle", |_| true);
    assert_eq!(bundle.manifest.backends().len(), 2);
    assert!(!is_for(&bundle, Backend::Ebpf));
}

/// A loader that has rules with ipsets in force is not sent those without, until it refuses what it is sent.
#[test]
fn of_two_forms_of_iptables_the_one_in_force_is_sent() {
    let rig = Rig::running(&["--backend=iptables"]);
    let forms = |b: &Bundle| b.manifest.artifacts.keys().copied().collect::<Vec<Artifact>>();
    let both = [Artifact::Iptables, Artifact::IptablesPlain];
    rig.loader().wait("the first bundle", |b| forms(b) == both && !passes(b, FRONTEND, DB));
    rig.until_ready();
    rig.api.delete(Resource::NetworkPolicies, "shop", "db-test");
    rig.loader().wait("the form that is in force", |b| forms(b) == both[..1] && passes(b, FRONTEND, DB));
    rig.until_ready();
    rig.loader().refuse(true);
    rig.loader().hang_up();
    rig.loader().wait("both for a loader that refuses one", |b| forms(b) == both && passes(b, FRONTEND, DB));
    rig.loader().refuse(false);
    rig.until_ready();
}
