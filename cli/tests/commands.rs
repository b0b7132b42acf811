//! What commands print and how they end.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Output, Stdio};

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: shop}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 'ADDRESS'}
";

fn pod(name: &str, address: &str) -> String {
    POD.replace("NAME", name).replace("ADDRESS", address)
}

/// A ClusterNetworkPolicy that is on line 1 of its file.
fn cluster_policy(tier: &str, rules: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {{name: {}}}
spec:
  tier: {tier}
  priority: 1
  subject: {{namespaces: {{}}}}
  ingress:
  - {{action: {rules}}}
",
        tier.to_lowercase()
    )
}

/// A directory with these files, all YAML.
fn input(files: &[(&str, String)]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(format!("{name}.yaml")), text).unwrap();
    }
    let path = dir.path().to_str().unwrap().to_owned();
    (dir, path)
}

fn netpolc(args: &[&str], stdin: &str, stdout: Stdio) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_netpolc"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not want its input closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn explain(path: &str, to: &str, more: &[&str]) -> String {
    let args = ["explain", path, "--from", "shop/client", "--to", to, "--port", "80/TCP"];
    let output = netpolc(&[&args[..], more].concat(), "", Stdio::piped());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn explain_names_the_rule_that_passed_a_flow_on() {
    let pass = cluster_policy("Admin", "Pass, from: [{namespaces: {}}]");
    let pods = ("pods", pod("client", "10.0.0.1") + "---\n" + &pod("web", "10.0.0.2"));
    let (_dir, path) = input(&[pods.clone(), ("policy", pass.clone())]);
    let text = explain(&path, "shop/web", &[]);
    assert!(
        text.contains("allowed, a rule of the Admin tier passes it on and nothing below decides"),
        "{text}"
    );
    let place = "passed on by ClusterNetworkPolicy/admin spec.ingress[0] at";
    assert!(text.contains(place) && text.contains("policy.yaml:9:5"), "{text}");
    let json: Value = serde_json::from_str(&explain(&path, "shop/web", &["--format", "json"])).unwrap();
    let side = &json["because"]["ingress"];
    assert_eq!(side["passedBy"][0]["line"], 9);
    assert_eq!(side["selectedBy"][0]["policy"], "ClusterNetworkPolicy/admin");
    assert_eq!(side["tier"], Value::Null);
    // A rule that passes on is part of the verdict of the tier below.
    let deny = cluster_policy("Baseline", "Deny, from: [{namespaces: {}}]");
    let (_dir, path) = input(&[pods.clone(), ("policy", pass), ("baseline", deny)]);
    let text = explain(&path, "shop/web", &[]);
    assert!(text.contains(place) && text.contains("denied by ClusterNetworkPolicy/baseline"), "{text}");
    // Policies that select the pod and have nothing to say about the flow are named as well.
    let other = cluster_policy("Admin", "Deny, from: [{namespaces: {matchLabels: {a: nobody}}}]");
    let (_dir, path) = input(&[pods, ("policy", other)]);
    let text = explain(&path, "shop/web", &[]);
    assert!(text.contains("allowed, no rule of the policies that select it matches"), "{text}");
    assert!(text.contains("selected by ClusterNetworkPolicy/admin at"), "{text}");
    assert!(
        text.contains("egress of shop/client: allowed, no policy selects it in this direction"),
        "{text}"
    );
}

#[test]
fn explain_prints_json_where_no_packet_can_pass() {
    let (_dir, path) = input(&[("pods", pod("client", "10.0.0.1") + "---\n" + &pod("web", "fd00::2"))]);
    let json: Value = serde_json::from_str(&explain(&path, "shop/web", &["--format", "json"])).unwrap();
    assert_eq!(
        (&json["verdict"], &json["because"]),
        (&Value::from("deny"), &Value::from("no common family"))
    );
    assert!(explain(&path, "shop/web", &[]).starts_with("deny: the ends have no address family"));
}

#[test]
fn a_node_that_is_named_twice_is_built_once() {
    let (dir, path) = input(&[("pods", pod("web", "10.0.0.1"))]);
    let out = dir.path().join("out");
    let args = ["build", &path, "--node", "n1", "--node", "n1", "--out", out.to_str().unwrap()];
    let output = netpolc(&args, "", Stdio::piped());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(out).unwrap().count(), 1);
}

#[test]
fn pipes_of_the_shell_are_read() {
    let output = netpolc(&["check", "/dev/stdin"], &pod("web", "10.0.0.1"), Stdio::piped());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let (_dir, path) = input(&[("bad", pod("a_b", "10.0.0.1"))]);
    let script = format!("\"$0\" check <(cat '{path}/bad.yaml')");
    let output = Command::new("bash").args(["-c", &script, env!("CARGO_BIN_EXE_netpolc")]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("E0021"), "{text}");
}

/// Whoever keeps the output must not take a part of it, or nothing, for the whole.
#[test]
fn an_output_that_cannot_be_written_is_a_failure() {
    let (dir, path) = input(&[("pods", pod("web", "10.0.0.1"))]);
    let flows = dir.path().join("flows.jsonl");
    fs::write(&flows, "{\"from\":\"10.9.9.9\",\"to\":\"shop/web\",\"port\":80}\n").unwrap();
    let args = ["eval", &path, "--flows", flows.to_str().unwrap()];
    let output = netpolc(&args, "", File::options().write(true).open("/dev/full").unwrap().into());
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output"));
}

/// More than 200 problems on one line of some megabytes: the line is not read again for each.
#[test]
fn problems_on_one_long_line() {
    let bad = "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"A_B\"}}";
    let big = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"data\":{{\"a\":\"{}\"}}}}",
        "é".repeat(3 << 20)
    );
    let list =
        format!("{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{big},{}]}}", [bad; 250].join(","));
    let started = std::time::Instant::now();
    let output = netpolc(&["check", "-"], &list, Stdio::piped());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("<stdin>:1:3145") && text.contains("\"name\":\"A_B\""), "{text}");
    // Without the window it takes a minute.
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn what_the_compiler_lets_pass_fits_into_a_bundle() {
    assert_eq!(netpolc_frontend::objects::MAX_ADDRESSES, netpolc_bundle::limits::ADDRESSES);
}
