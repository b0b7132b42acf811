//! Input that nobody should give: every case ends within ten seconds and 1 GiB with a clear error, and nothing is
//! written.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.0.0.1}
";

/// Runs netpolc with 1 GiB of address space and ten seconds.
fn netpolc(args: &[&str], stdin: &[u8]) -> Output {
    use std::io::Write;
    let started = Instant::now();
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 1048576; exec timeout 10 \"$0\" \"$@\"", env!("CARGO_BIN_EXE_netpolc")])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not want its input closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "{args:?} took too long");
    output
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Builds from a path that must be refused with `status` and a message that has `wanted`; nothing may be written.
fn refused(path: &Path, status: i32, wanted: &str) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let output = netpolc(&["build", path.to_str().unwrap(), "--out", out.to_str().unwrap()], b"");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(text.contains(wanted), "{text:?} lacks {wanted:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was written");
}

fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_path_that_is_not_there() {
    refused(Path::new("/nonexistent/policies"), 2, "No such file");
}

#[test]
fn a_file_that_cannot_be_read() {
    // Root may read any file, but not a directory's bytes and not a dead link.
    let dir = tempfile::tempdir().unwrap();
    symlink("/nonexistent/target", dir.path().join("policy.yaml")).unwrap();
    refused(dir.path(), 2, "policy.yaml: No such file");
}

#[test]
fn a_fifo_without_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe.yaml");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    refused(&path, 2, "not a regular file");
    refused(dir.path(), 2, "not a regular file");
}

#[test]
fn a_device() {
    refused(Path::new("/dev/zero"), 2, "not a regular file");
}

#[test]
fn a_loop_of_links_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "a.yaml", POLICY.as_bytes());
    symlink(dir.path(), dir.path().join("again")).unwrap();
    symlink(dir.path().join("a.yaml"), dir.path().join("b.yaml")).unwrap();
    let output = netpolc(&["check", dir.path().to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    symlink("self.yaml", dir.path().join("self.yaml")).unwrap();
    refused(dir.path(), 2, "self.yaml");
}

#[test]
fn a_huge_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge.yaml");
    fs::File::create(&path).unwrap().set_len(2 << 30).unwrap();
    refused(&path, 2, "larger than 256 MiB");
}

#[test]
fn an_empty_file_is_nothing_to_complain_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "empty.yaml", b"");
    let output = netpolc(&["check", path.to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn binary_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    refused(&file(dir.path(), "binary.yaml", &bytes), 1, "binary.yaml");
}

#[test]
fn deep_nesting() {
    let dir = tempfile::tempdir().unwrap();
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(200_000), close.repeat(200_000));
    refused(&file(dir.path(), "deep.yaml", deep("[", "]").as_bytes()), 1, "deep.yaml:1");
    refused(&file(dir.path(), "maps.yaml", deep("{a: ", "}").as_bytes()), 1, "maps.yaml:1");
    refused(&file(dir.path(), "deep.json", deep("{\"a\":[", "]}").as_bytes()), 1, "deep.json:1");
    let stairs: String = (0..3_000).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    refused(&file(dir.path(), "stairs.yaml", stairs.as_bytes()), 1, "stairs.yaml");
}

#[test]
fn an_error_names_file_line_and_column_and_leaves_the_old_output() {
    let dir = tempfile::tempdir().unwrap();
    let good = file(dir.path(), "good.yaml", POLICY.as_bytes());
    let out = dir.path().join("out");
    let build =
        |path: &Path| netpolc(&["build", path.to_str().unwrap(), "--out", out.to_str().unwrap()], b"");
    assert_eq!(build(&good).status.code(), Some(0));
    let before = fs::read(out.join("default/nftables.nft")).unwrap();
    let bad = file(dir.path(), "bad.yaml", POLICY.replace("podSelector", "podSelecter").as_bytes());
    let output = build(&bad);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("bad.yaml:4:8"), "{}", said(&output));
    assert_eq!(fs::read(out.join("default/nftables.nft")).unwrap(), before);
    let names: Vec<String> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 3, "leftovers: {names:?}");
}

#[test]
fn an_output_directory_with_other_things_in_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = file(dir.path(), "good.yaml", POLICY.as_bytes());
    let precious = file(dir.path(), "precious.txt", b"mine");
    let output = netpolc(&["build", good.to_str().unwrap(), "--out", dir.path().to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(fs::read(precious).unwrap(), b"mine");
}

#[test]
fn standard_input_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let output = netpolc(&["build", "-", "--out", out.to_str().unwrap()], POLICY.as_bytes());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        fs::read_to_string(out.join("default/nftables.nft"))
            .unwrap()
            .contains("comment \"shop/deny <stdin>:1:1\"")
    );
}

#[test]
fn flows_that_make_no_sense_are_named_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let good = file(dir.path(), "good.yaml", POLICY.as_bytes());
    let right = "{\"from\":\"10.9.9.9\",\"to\":\"shop/web\",\"protocol\":\"TCP\",\"port\":80}\n";
    for (line, wanted) in [
        ("nonsense", "expected"),
        ("[]", "not a JSON object"),
        ("{\"to\":\"shop/web\",\"port\":80}", "\"from\" is missing"),
        ("{\"from\":\"shop/nobody\",\"to\":\"shop/web\",\"port\":80}", "no pod shop/nobody"),
        ("{\"from\":\"10.9.9.9\",\"to\":\"shop/web\",\"port\":65536}", "\"port\" is not a number"),
        ("{\"from\":\"10.9.9.9\",\"to\":\"shop/web\"}", "needs a port"),
    ] {
        let flows = file(dir.path(), "flows.jsonl", format!("{right}{line}\n").as_bytes());
        let output = netpolc(&["eval", good.to_str().unwrap(), "--flows", flows.to_str().unwrap()], b"");
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("flows.jsonl:2: ") && text.contains(wanted), "{text}");
    }
}

#[test]
fn a_flow_that_differs_from_what_it_expects_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let good = file(dir.path(), "good.yaml", POLICY.as_bytes());
    let flow = |expect: &str| {
        format!(
            "{{\"from\":\"10.9.9.9\",\"to\":\"shop/web\",\"protocol\":\"TCP\",\"port\":80,\"expect\":\"{expect}\"}}\n"
        )
    };
    for (expect, status) in [("deny", 0), ("allow", 1)] {
        let flows = file(dir.path(), "flows.jsonl", flow(expect).as_bytes());
        for oracle in ["model", "ir", "optimized", "plan"] {
            let args =
                ["eval", good.to_str().unwrap(), "--flows", flows.to_str().unwrap(), "--oracle", oracle];
            let output = netpolc(&args, b"");
            assert_eq!(output.status.code(), Some(status), "{oracle}: {}", said(&output));
        }
    }
}
