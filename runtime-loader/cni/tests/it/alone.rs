//! Every command, its results and its errors.

use crate::agent::Agent;
use crate::runtime::{Call, OURS};
use netpolc_bundle::wire::{FromAgent, Sandbox, ToAgent};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

fn call() -> Call {
    Call::new("c1", "/run/netns/x", "shop/db")
}

fn config(socket: &Path, version: &str) -> Value {
    let ip = match version {
        "1.0.0" | "1.1.0" => json!({ "interface": 1, "address": "10.0.0.5/24", "gateway": "10.0.0.1" }),
        _ => json!({ "version": "4", "interface": 1, "address": "10.0.0.5/24", "gateway": "10.0.0.1" }),
    };
    json!({ "cniVersion": version, "name": "pods", "type": "netpol-cni", "agentSocket": socket, "timeoutSeconds": 1,
        "prevResult": { "cniVersion": version,
            "interfaces": [{ "name": "veth0" }, { "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x" }],
            "ips": [ip], "routes": [{ "dst": "0.0.0.0/0", "gw": "10.0.0.1" }], "dns": { "nameservers": ["10.96.0.10"] } } })
}

fn sandbox() -> Sandbox {
    Sandbox {
        container: "c1".into(),
        interface: "eth0".into(),
        pod: "shop/db".into(),
        uid: Some("uid-of-db".into()),
        addresses: vec!["10.0.0.5".parse().unwrap()],
    }
}

fn failed(retry: bool) -> Option<FromAgent> {
    Some(FromAgent::Failed { message: "because".into(), retry })
}

#[test]
fn add_passes_the_result_on_in_every_version() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path());
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let config = config(&agent.path, version);
        let answer = call().plugin(OURS, "ADD", &config.to_string());
        assert!(answer.good, "{answer:?}");
        assert_eq!(answer.json(), config["prevResult"], "unchanged");
        assert_eq!(agent.asked(), [ToAgent::Add(sandbox())]);
    }
}

#[test]
fn add_fails_closed() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path());
    let config = config(&agent.path, "1.0.0");
    let add = || call().plugin(OURS, "ADD", &config.to_string());
    agent.answers(failed(true));
    let answer = add();
    assert_eq!(answer.code(), 11);
    assert_eq!(
        (&answer.json()["cniVersion"], &answer.json()["details"]),
        (&json!("1.0.0"), &json!("because"))
    );
    agent.answers(failed(false));
    assert_eq!(add().code(), 100);
    agent.answers(None);
    let started = Instant::now();
    assert_eq!(add().code(), 11, "silence");
    assert!(started.elapsed() < Duration::from_secs(10));
    drop(agent);
    assert_eq!(add().code(), 11, "no one listens");
    std::fs::remove_file(dir.path().join("agent.sock")).unwrap();
    assert_eq!(add().code(), 11, "no socket");
}

#[test]
fn what_is_wrong_has_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path());
    let good = config(&agent.path, "1.0.0");
    let with = |field: &str, value: Value| {
        let mut config = good.clone();
        config[field] = value;
        config.to_string()
    };
    let add = |config: &str| call().plugin(OURS, "ADD", config).code();
    assert_eq!(add("{"), 6);
    assert_eq!(add(""), 6);
    assert_eq!(add("[]"), 1);
    assert_eq!(add(&with("cniVersion", json!("0.2.0"))), 1);
    assert_eq!(add(&with("prevResult", Value::Null)), 7);
    assert_eq!(add(&with("prevResult", json!({ "cniVersion": "1.0.0", "ips": [] }))), 7);
    assert_eq!(
        add(&with("prevResult", json!({ "cniVersion": "0.4.0", "ips": [{ "address": "10.0.0.5/24" }] }))),
        7
    );
    assert_eq!(add(&with("prevResult", json!({ "ips": [{ "address": "x" }] }))), 7);
    assert_eq!(add(&with("timeoutSeconds", json!(-1))), 7);
    let with_call = |change: fn(&mut Call)| {
        let mut call = call();
        change(&mut call);
        call.plugin(OURS, "ADD", &good.to_string()).code()
    };
    assert_eq!(with_call(|c| c.container = String::new()), 4);
    assert_eq!(with_call(|c| c.container = "../etc".into()), 4);
    assert_eq!(with_call(|c| c.netns = String::new()), 4);
    assert_eq!(with_call(|c| c.args = "IgnoreUnknown=1".into()), 4);
    assert_eq!(call().plugin(OURS, "DANCE", &good.to_string()).code(), 4);
    assert_eq!(agent.asked(), [], "none of them got as far as the agent");
}

#[test]
fn del_always_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path());
    let mut config = config(&agent.path, "0.3.1");
    let del = |call: Call, config: &Value| {
        let answer = call.plugin(OURS, "DEL", &config.to_string());
        assert!(answer.good && answer.text.is_empty(), "{answer:?}");
    };
    del(call(), &config);
    assert_eq!(agent.asked(), [ToAgent::Del(sandbox())]);
    // Without a result, a namespace and a pod: the runtime lost them.
    config.as_object_mut().unwrap().remove("prevResult");
    del(Call { netns: String::new(), args: String::new(), ..call() }, &config);
    let bare = Sandbox { pod: String::new(), uid: None, addresses: Vec::new(), ..sandbox() };
    assert_eq!(agent.asked(), [ToAgent::Del(bare)]);
    agent.answers(failed(true));
    del(call(), &config);
    agent.answers(None);
    del(call(), &config);
    drop(agent);
    del(call(), &config);
}

#[test]
fn later_commands_belong_to_later_versions() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path());
    let run = |command: &str, version: &str| {
        let mut config = config(&agent.path, version);
        config["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }]);
        call().plugin(OURS, command, &config.to_string())
    };
    assert_eq!(run("CHECK", "0.3.1").code(), 1);
    assert_eq!(run("STATUS", "1.0.0").code(), 1);
    assert_eq!(run("GC", "1.0.0").code(), 1);
    assert_eq!(agent.asked(), []);
    for (command, version) in [("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")] {
        let answer = run(command, version);
        assert!(answer.good && answer.text.is_empty(), "{command}: {answer:?}");
    }
    let valid = vec![("c1".to_owned(), "eth0".to_owned())];
    assert_eq!(agent.asked(), [ToAgent::Check(sandbox()), ToAgent::Status, ToAgent::Gc { valid }]);
    agent.answers(failed(false));
    assert_eq!(run("CHECK", "1.1.0").code(), 100);
    assert_eq!(run("STATUS", "1.1.0").code(), 50);
    assert_eq!(run("GC", "1.1.0").code(), 100);
    // A list that is not there is no empty list.
    let config = config(&agent.path, "1.1.0");
    agent.asked();
    assert_eq!(call().plugin(OURS, "GC", &config.to_string()).code(), 7);
    assert_eq!(agent.asked(), []);
}

/// containerd takes the answer for the node's, and Services lose its pods.
#[test]
fn status_waits_for_an_agent_that_is_exchanged() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_owned();
    let mut config = config(&folder.join("agent.sock"), "1.1.0");
    let starting = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        Agent::start(&folder)
    });
    let answer = call().plugin(OURS, "STATUS", &config.to_string());
    assert!(answer.good, "{answer:?}");
    let agent = starting.join().unwrap();
    config["timeoutSeconds"] = json!(1);
    agent.answers(failed(true));
    assert_eq!(call().plugin(OURS, "STATUS", &config.to_string()).code(), 50);
    drop(agent);
    assert_eq!(call().plugin(OURS, "STATUS", &config.to_string()).code(), 50);
}

#[test]
fn version_names_all_versions() {
    let answer = call().plugin(OURS, "VERSION", r#"{"cniVersion":"0.4.0"}"#);
    assert!(answer.good);
    let versions = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    assert_eq!(answer.json(), json!({ "cniVersion": "0.4.0", "supportedVersions": versions }));
}
