//! Behind `ptp` and `host-local`, in network namespaces of the test's own. Needs the right to make them (root).

use crate::agent::Agent;
use crate::runtime::{Call, conflist};
use netpolc_bundle::wire::{FromAgent, ToAgent};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;

/// Runs something in a new network namespace.
fn in_new_namespace<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run()
        });
        thread.join().unwrap()
    })
}

/// A network namespace for a pod: anonymous, and gone when the file is closed.
struct Pod(File);

impl Pod {
    fn new() -> Pod {
        Pod(in_new_namespace(|| File::open("/proc/thread-self/ns/net").unwrap()))
    }

    /// A path that leads to it for other processes.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// The source address that the pod would use towards another one.
    fn source_towards(&self, to: &str) -> Option<IpAddr> {
        std::thread::scope(|scope| {
            let look = || {
                nix::sched::setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
                socket.connect((to, 9)).ok()?;
                socket.local_addr().ok().map(|a| a.ip())
            };
            scope.spawn(look).join().unwrap()
        })
    }
}

fn ips(dir: &Path) -> usize {
    let list = std::fs::read_dir(dir.join("ipam/pods")).unwrap();
    list.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("10.")).count()
}

#[test]
fn a_pod_comes_and_goes() {
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::start(dir.path());
        let list = conflist(version, dir.path(), &agent.path);
        in_new_namespace(|| {
            let pod = Pod::new();
            let call = Call::new("c1", &pod.path(), "shop/db");
            let added = call.list("ADD", &list, None);
            assert!(added.good, "{added:?}");
            let result = added.json();
            assert_eq!(result["cniVersion"], json!(version));
            let shown: Vec<&str> =
                result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect();
            let asked = agent.asked();
            let [ToAgent::Add(sandbox)] = asked.as_slice() else { panic!("{asked:?}") };
            assert_eq!((sandbox.pod.as_str(), sandbox.container.as_str()), ("shop/db", "c1"));
            let told: Vec<String> = sandbox.addresses.iter().map(ToString::to_string).collect();
            assert_eq!(told, shown.iter().map(|a| a.split('/').next().unwrap()).collect::<Vec<_>>());
            assert_eq!(told.len(), 2, "both families");
            assert_eq!(pod.source_towards("192.0.2.1").unwrap().to_string(), told[0], "the pod has it");

            if version != "0.3.1" {
                let checked = call.list("CHECK", &list, Some(&result));
                assert!(checked.good, "{checked:?}");
                assert!(matches!(agent.asked().as_slice(), [ToAgent::Check(c)] if c == sandbox));
            }
            let deleted = call.list("DEL", &list, Some(&result));
            assert!(deleted.good, "{deleted:?}");
            assert_eq!(agent.asked(), [ToAgent::Del(sandbox.clone())]);
            assert_eq!(ips(dir.path()), 0, "the address is free again");
            assert_eq!(pod.source_towards("192.0.2.1"), None);
            // Again, and without a result: runtimes do that.
            assert!(call.list("DEL", &list, None).good);
        });
    }
}

#[test]
fn an_agent_that_refuses_keeps_the_pod_out() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path());
    let list = conflist("1.0.0", dir.path(), &agent.path);
    in_new_namespace(|| {
        agent.answers(Some(FromAgent::Failed { message: "not yet".into(), retry: true }));
        let pod = Pod::new();
        let call = Call::new("c1", &pod.path(), "shop/db");
        let added = call.list("ADD", &list, None);
        assert_eq!(added.code(), 11);
        // The runtime clears up after a failure, whatever the agent says, and tries again.
        assert!(call.list("DEL", &list, None).good);
        assert_eq!(ips(dir.path()), 0);
        agent.answers(Some(FromAgent::Done));
        let pod = Pod::new();
        let added = Call::new("c2", &pod.path(), "shop/db").list("ADD", &list, None);
        assert!(added.good, "{added:?}");
    });
}

#[test]
fn addresses_are_never_those_of_another_pod() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path());
    let list = conflist("1.0.0", dir.path(), &agent.path);
    in_new_namespace(|| {
        let pods: Vec<Pod> = (0..5).map(|_| Pod::new()).collect();
        let results: Vec<Value> = (0..5)
            .map(|i| {
                Call::new(&format!("c{i}"), &pods[i].path(), &format!("shop/p{i}"))
                    .list("ADD", &list, None)
                    .json()
            })
            .collect();
        let mut told: Vec<IpAddr> = Vec::new();
        for request in agent.asked() {
            let ToAgent::Add(sandbox) = request else { panic!("{request:?}") };
            told.extend(sandbox.addresses);
        }
        let all = told.len();
        told.sort();
        told.dedup();
        assert_eq!((all, told.len()), (10, 10));
        for (i, result) in results.iter().enumerate() {
            let call = Call::new(&format!("c{i}"), &pods[i].path(), &format!("shop/p{i}"));
            assert!(call.list("DEL", &list, Some(result)).good);
        }
    });
}
