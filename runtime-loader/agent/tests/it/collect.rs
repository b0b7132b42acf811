//! The state of a cluster as a file.

use crate::cluster;
use netpolc_frontend::read::read;
use netpolc_frontend::source::Sources;
use netpolc_standin::Standin;
use std::process::Command;

fn collect(api: &Standin, arguments: &[&str]) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = api.kubeconfig(dir.path()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_netpol-agent"))
        .arg("collect")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(arguments)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_front_end_reads_what_was_collected() {
    let api = Standin::start().unwrap();
    cluster::fill(&api);
    for (arguments, policies) in [(&[][..], 0), (&["--policies"][..], 1)] {
        let (good, text) = collect(&api, arguments);
        assert!(good);
        assert!(!text.contains("managedFields"), "no more than what is needed");
        let mut sources = Sources::default();
        sources.add("cluster.json", text.into_bytes());
        let read = read(&sources);
        assert_eq!(read.diagnostics, []);
        let objects = read.objects;
        let counts =
            [objects.namespaces.len(), objects.nodes.len(), objects.pods.len(), objects.policies.len()];
        assert_eq!(counts, [1, 2, 3, policies]);
        assert_eq!(objects.pods[0].ips.len(), 1);
        assert_eq!(objects.nodes[0].pod_cidrs.len(), 1);
    }
}

#[test]
fn a_server_that_refuses_is_an_error() {
    let api = Standin::start().unwrap();
    api.refuse(true);
    assert_eq!(collect(&api, &[]), (false, String::new()));
}
