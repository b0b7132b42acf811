//! Policies that are handed on say what those say that were read.
#![expect(clippy::expect_used, reason = "tests fail by panicking")]

use netpolc_frontend::lower::lower;
use netpolc_frontend::model::resolve;
use netpolc_frontend::read::{Read, read};
use netpolc_frontend::source::Sources;
use netpolc_ir::text;
use std::fs;
use std::path::{Path, PathBuf};

/// The IR of the objects, without the numbers of the policies behind each rule.
fn ir(read: Read) -> String {
    let (model, _) = resolve(read.objects);
    let text = text::write(&lower(&model));
    text.lines().map(|line| line.split(" @").next().unwrap_or(line).to_owned() + "\n").collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    entries
}

/// All objects of a sample, with its policies as they are, or as they are handed on.
fn with_written(dir: &Path) -> (Read, Read) {
    let mut sources = Sources::default();
    for file in entries(dir) {
        if file.extension().is_some_and(|end| end == "yaml" || end == "json") {
            sources.add(file.display().to_string(), fs::read(&file).expect("a file"));
        }
    }
    let first = read(&sources);
    let mut sources = Sources::default();
    sources.add("policies.json", first.written.list().into_bytes());
    let handed_on = read(&sources);
    assert_eq!(handed_on.written, first.written, "{}", dir.display());
    assert_eq!(handed_on.objects.policies.len(), first.objects.policies.len(), "{}", dir.display());
    let mut second = first.clone();
    second.objects.policies = handed_on.objects.policies;
    second.objects.cluster_policies = handed_on.objects.cluster_policies;
    (first, second)
}

#[test]
fn samples_mean_the_same() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../samples");
    let mut compared = 0;
    for dir in entries(&samples).into_iter().filter(|entry| entry.is_dir()) {
        let (first, second) = with_written(&dir);
        compared += first.objects.policies.len() + first.objects.cluster_policies.len();
        assert_eq!(ir(second), ir(first), "{}", dir.display());
    }
    assert!(compared > 60, "{compared} policies");
}

#[test]
fn list() {
    let mut sources = Sources::default();
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n\
                - metadata: {name: b, uid: x, annotations: {a: b}}\n  spec: {ingress: [{ports: [{port: 080}]}], podSelector: {}}\n\
                - metadata: {name: a}\n  spec: {podSelector: {}}\n\
                ---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\n";
    sources.add("in.yaml", text.as_bytes().to_vec());
    let read = read(&sources);
    let wanted = r#"{"apiVersion":"v1","kind":"List","items":[
{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a","namespace":"default"},"spec":{"podSelector":{}}},
{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"b","namespace":"default"},"spec":{"ingress":[{"ports":[{"port":80}]}],"podSelector":{}}}
]}
"#;
    assert_eq!(read.written.list(), wanted);
    assert_eq!(
        netpolc_frontend::read::Written::default().list(),
        "{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[]}\n"
    );
}
