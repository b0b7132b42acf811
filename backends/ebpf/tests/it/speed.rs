//! How long the proof of one node takes, beside that of the nftables backend on the same node.
//!
//! `NETPOLC_CLUSTER=DIR cargo test -p netpolc-ebpf --release --test it -- speed --ignored --nocapture` measures, with a
//! directory of YAML files that `bench-sets` has written ([docs/performance.md](../../../../docs/performance.md)).

use super::common::Names;
use netpolc_ebpf::contents::Established;
use netpolc_ebpf::emit::emit;
use netpolc_ebpf::machine::load;
use netpolc_ebpf::select::plan;
use netpolc_frontend::reference::SetReference;
use netpolc_ir::proof::{Artifact, prove};
use netpolc_testkit::pipeline::{Compiled, compile, model};
use std::time::Instant;

const RUNS: usize = 7;

fn cluster() -> Compiled {
    let dir = std::env::var("NETPOLC_CLUSTER").unwrap();
    let mut texts: Vec<(String, String)> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    texts.sort();
    let texts: Vec<(&str, String)> = texts.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    compile(model(&texts).unwrap()).unwrap()
}

/// Milliseconds of each run in turn.
fn times(mut run: impl FnMut()) -> String {
    let once = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e3
    };
    let mut all: Vec<f64> = (0..RUNS).map(once).collect();
    all.sort_by(f64::total_cmp);
    format!("{:.1} ms (median of {RUNS}; {:.1} to {:.1})", all[RUNS / 2], all[0], all[RUNS - 1])
}

#[test]
#[ignore = "measures"]
fn speed_of_the_proof_of_a_node() {
    let compiled = cluster();
    let reference = SetReference::new(&compiled.model);
    let host = compiled.matrix.hosts.keys().next().unwrap();
    let name = compiled.matrix.hosts[host].name.clone();
    let proof = |what: &str, artifact: &mut dyn Artifact| {
        let proof = prove(&reference, artifact, &name).unwrap();
        println!(
            "{what}: prove {}",
            times(|| assert_eq!(prove(&reference, artifact, &name).unwrap(), proof))
        );
        println!("{what}: {proof:?}");
    };
    proof("nftables", &mut compiled.nodes().unwrap().remove(0).machine);
    for established in Established::ALL {
        let contents = plan(&compiled.matrix, host, &Names(&compiled)).unwrap().contents;
        let (object, text) = (emit(&contents, established).unwrap(), contents.text());
        let word = established.word();
        println!("{word}: load {}", times(|| drop(load(&object, &text).unwrap())));
        proof(word, &mut load(&object, &text).unwrap());
    }
}
