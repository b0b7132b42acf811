//! Each sample: every oracle gives every flow the verdict that was worked out by hand, and the rules are proven.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use netpolc_frontend::reference::SetReference;
use netpolc_ir::eval::Bindings;
use netpolc_ir::proof::prove;
use netpolc_ir::unit::Verdict;
use netpolc_nftables::decode::Machine;
use netpolc_testkit::each_sample;
use netpolc_testkit::pipeline::{Compiled, Node, compile, decide};
use netpolc_testkit::samples::{Expected, Sample, folders, programs, repository};
use std::path::Path;
use std::process::{Command, Output};

/// Where an oracle differs from what a flow expects.
fn mismatches(compiled: &Compiled, nodes: &[Node], flows: &[Expected]) -> Vec<String> {
    let raw = compiled.unit.bindings();
    let after: Vec<_> = compiled.after.iter().map(|(name, unit)| (*name, unit, unit.bindings())).collect();
    let matrix = Bindings::new(&compiled.matrix.endpoints, &compiled.matrix.hosts);
    let planned: Vec<(&Node, Machine)> =
        nodes.iter().map(|n| (n, Machine::new(n.plan.ruleset.clone()))).collect();
    let mut found = Vec::new();
    for Expected { line, text, flow, expect } in flows {
        let mut check = |oracle: &str, verdict: Verdict| {
            if verdict != *expect {
                found.push(format!("line {line}, {oracle} says {verdict}: {text}"));
            }
        };
        check("the model", compiled.model.decide(flow).verdict);
        check("the unit", compiled.unit.decide(&raw, flow));
        for (i, (pass, unit, bindings)) in after.iter().enumerate() {
            check(&format!("the unit after pass {} {pass}", i + 1), unit.decide(bindings, flow));
        }
        check("the matrix", compiled.matrix.decide(&matrix, flow));
        let plan = planned.iter().all(|(node, machine)| node.decide_with(machine, flow) == Verdict::Allow);
        check("the plan", Verdict::allow_if(plan));
        check("the script", decide(nodes, flow));
    }
    found
}

fn check(test: &str) {
    let sample = Sample::load(&test.replace('_', "-")).unwrap();
    let has = |verdict| sample.flows.iter().any(|f| f.expect == verdict);
    assert!(has(Verdict::Allow) && has(Verdict::Deny), "a sample shows something and its opposite");
    let compiled = compile(sample.model).unwrap();
    let mut nodes = compiled.nodes().unwrap();
    assert!(!nodes.is_empty(), "a sample without a node tests no rules");
    let found = mismatches(&compiled, &nodes, &sample.flows);
    assert!(found.is_empty(), "{}", found.join("\n"));
    let reference = SetReference::new(&compiled.model);
    for node in &mut nodes {
        let proof = prove(&reference, &mut node.machine, &node.name).map_err(|w| w.to_string());
        let proof = proof.unwrap_or_else(|witness| panic!("node {} is not proven: {witness}", node.name));
        assert!(proof.packets > 0, "the proof of node {} compares nothing", node.name);
    }
}

mod oracles {
    macro_rules! tests {
        ($($name:ident)*) => {
            $(#[test]
            fn $name() {
                super::check(stringify!($name));
            })*

            pub(super) const LISTED: &[&str] = &[$(stringify!($name)),*];
        };
    }
    super::each_sample!(tests);
}

#[test]
fn every_folder_is_listed_and_opens_with_what_it_guards() {
    let folders = folders("samples").unwrap();
    assert!(folders.len() >= 24, "samples are missing");
    let listed: Vec<String> = oracles::LISTED.iter().map(|name| name.replace('_', "-")).collect();
    assert_eq!(
        folders, listed,
        "each_sample! in testkit/src/samples.rs lists the folders of samples/, sorted"
    );
    for folder in folders {
        let path = repository().join("samples").join(folder).join("policies.yaml");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(text.starts_with("# "), "{} does not say what it guards", path.display());
    }
}

#[test]
fn a_wrong_expectation_is_reported_by_every_oracle() {
    let mut sample = Sample::load("course").unwrap();
    let compiled = compile(sample.model).unwrap();
    let flow = &mut sample.flows[0];
    flow.expect = match flow.expect {
        Verdict::Allow => Verdict::Deny,
        Verdict::Deny => Verdict::Allow,
    };
    let found = mismatches(&compiled, &compiled.nodes().unwrap(), &sample.flows[..1]);
    // The model, the unit, the matrix, the plan and the script, beside the passes.
    assert_eq!(found.len(), 5 + compiled.after.len(), "{}", found.join("\n"));
}

/// Runs `netpolc` at the top of the repository.
fn netpolc(programs: &Path, args: &[&str]) -> Output {
    Command::new(programs.join("netpolc")).args(args).current_dir(repository()).output().unwrap()
}

/// Runs `netpolc`, which must succeed; its standard output.
fn succeed(programs: &Path, args: &[&str]) -> String {
    let output = netpolc(programs, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "netpolc {}: {}\n{said}", args.join(" "), output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_program_reads_flows_as_the_tests_do() {
    let programs = programs().unwrap();
    for folder in folders("samples").unwrap() {
        let (dir, flows) = (format!("samples/{folder}"), format!("samples/{folder}/flows.jsonl"));
        let answers = succeed(&programs, &["eval", &dir, "--flows", &flows, "--oracle", "plan"]);
        assert_eq!(answers.lines().count(), Sample::load(&folder).unwrap().flows.len(), "{dir}");
    }
}

#[test]
fn the_program_takes_the_course_from_end_to_end() {
    let programs = programs().unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("out").display().to_string();
    let (dir, flows) = ("samples/course", "samples/course/flows.jsonl");
    succeed(&programs, &["build", dir, "--out", &out]);
    // All pods live on one node, so the node's verdict is the whole verdict, and its bundle knows all pods by name.
    let answers = succeed(&programs, &["eval", "--bundle", &format!("{out}/default"), "--flows", flows]);
    assert_eq!(
        answers.matches("\"verdict\":\"deny\"").count(),
        answers.matches("\"expect\":\"deny\"").count()
    );
    succeed(&programs, &["verify", &out, dir]);
    succeed(&programs, &["verify", &format!("{out}/default"), dir]);
    let other = netpolc(&programs, &["verify", &out, "samples/course-default-deny"]);
    assert_eq!(other.status.code(), Some(1), "a bundle of other policies must not pass: {other:?}");
    let why = |from: &str| {
        let ends = ["--from", from, "--to", "default/mysql", "--port", "3306/TCP"];
        succeed(&programs, &[["explain", dir].as_slice(), &ends].concat())
    };
    let (allowed, denied) = (why("default/backend"), why("default/frontend"));
    assert!(allowed.starts_with("allow") && allowed.contains("samples/course/policies.yaml:"), "{allowed}");
    assert!(denied.starts_with("deny") && denied.contains("db-test"), "{denied}");
    let sarif = succeed(&programs, &["check", dir, "--format", "sarif"]);
    let sarif: serde_json::Value = serde_json::from_str(&sarif).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    assert!(sarif["runs"][0]["results"].is_array(), "{sarif}");
}

#[test]
fn snapshots_are_as_accepted_and_none_is_an_orphan() {
    let programs = programs().unwrap();
    let samples = folders("samples").unwrap();
    let mut wrong = String::new();
    for folder in &samples {
        let output = netpolc(
            &programs,
            &[
                "snapshot",
                "--backend",
                "nftables,iptables,ebpf",
                "--check",
                &format!("snapshots/{folder}"),
                &format!("samples/{folder}"),
            ],
        );
        if !output.status.success() {
            // The last line is the command that accepts the change.
            wrong.push_str(&String::from_utf8_lossy(&output.stdout));
            wrong.push_str(&String::from_utf8_lossy(&output.stderr));
        }
    }
    for orphan in folders("snapshots").unwrap().iter().filter(|f| !samples.contains(f)) {
        wrong.push_str(&format!(
            "snapshots/{orphan} is an orphan, there is no such sample: rm -r snapshots/{orphan}\n"
        ));
    }
    assert!(wrong.is_empty(), "{wrong}");
}
