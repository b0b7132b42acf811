//! Documents, lists, encodings, and the other kinds.

use crate::summary::{check, np, read_named, spec, summary};
use netpolc_frontend::diagnostic::Severity;
use netpolc_frontend::objects::Phase;

#[test]
fn documents_and_lists() {
    check("", "");
    check("---\n# nothing\n---\nnull\n---\n~\n", "");
    check("just text", "1:1 E0010 : the document is the string \"just text\", not a Kubernetes object");
    check("- a", "1:1 E0010 : the document is a list, not a Kubernetes object");
    check(
        "a: b",
        "1:1 E0011 apiVersion: Required value: the object has no `apiVersion`\n1:1 E0011 kind: Required value: the object has no `kind`",
    );
    check(
        "apiVersion: 1\nkind: Pod",
        "1:13 E0013 apiVersion: cannot use the number 1 here: a string is wanted",
    );
    let good = np("{}");
    check(
        &format!("{good}---\nspec: [\n---\n{}", good.replace("name: p", "name: q")),
        "policy x/p of * in [] out -\npolicy x/q of * in [] out -\n7:1 E0003 : yaml: while parsing a node, did not find expected node content",
    );
    check(&format!("\u{feff}{good}"), "policy x/p of * in [] out -");
    check(&good.replace('\n', "\r\n"), "policy x/p of * in [] out -");
    check(&format!("%YAML 1.1\n---\n{good}...\n"), "policy x/p of * in [] out -");
    // Without a `---` after it kubectl reads no more.
    let other = good.replace("name: p", "name: q");
    check(
        &format!("{good}...\n# end\n---\n{other}"),
        "policy x/p of * in [] out -\npolicy x/q of * in [] out -",
    );
    check(
        &format!("{good}...\n{other}"),
        "policy x/p of * in [] out -\n6:1 E0003 : yaml: kubectl does not read what follows `...`",
    );
    check(&format!("# kommentar ä\n{good}"), "policy x/p of * in [] out -");
    check(
        &np("{podSelector: {matchLabels: {a: 'é'}}}").replace("é'", "b'} , é: {"),
        "4:46 E0012 spec.podSelector.é: unknown field \"spec.podSelector.é\"",
    );
    // What YAML 1.1 takes for a line break ends a comment.
    check(
        &good.replace("spec: {}", "spec: #\u{2028}  ingress: [{}]"),
        "policy x/p of * in [everyone any] out -",
    );
    check("apiVersion: v1\nkind: List\nitems: null", "");
    check(
        "apiVersion: v1\nkind: List\nitems: x",
        "3:8 E0013 : items: cannot use the string \"x\" here: a list is wanted",
    );
    let list = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n- metadata: {name: p, namespace: x}\n- metadata: {name: q_}\n- 1\n- kind: Service\n  apiVersion: v1";
    let got = summary("a.yaml", list);
    assert!(got.starts_with("policy x/p of * in [] out -\nskipped v1 Service 1\n5:20 E0021 metadata.name: Invalid value: \"q_\""), "{got}");
    assert!(got.ends_with("6:3 E0010 : items[2] is the number 1, not a Kubernetes object"), "{got}");
    check(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List, items: [{metadata: {name: p}}]}",
        "4:40 E0011 items[0].items[0].apiVersion: Required value: the object has no `apiVersion`\n4:40 E0011 items[0].items[0].kind: Required value: the object has no `kind`",
    );
}

#[test]
fn other_kinds_are_passed_over() {
    check(
        "apiVersion: v1\nkind: Service\n---\napiVersion: v1\nkind: Service\n---\napiVersion: apps.example/v1\nkind: AccessList",
        "skipped apps.example/v1 AccessList 1\nskipped v1 Service 2",
    );
    for (version, kind, path, at) in [
        ("crd.projectcalico.org/v1", "NetworkPolicy", "apiVersion", "1:13"),
        ("extensions/v1beta1", "NetworkPolicy", "apiVersion", "1:13"),
        ("networking.k8s.io/v1", "networkpolicy", "kind", "2:7"),
    ] {
        check(
            &format!("apiVersion: {version}\nkind: {kind}\nspec: {{x: y}}"),
            &format!(
                "skipped {version} {kind} 1\n{at} N0201 {path}: passed over: apiVersion \"{version}\", kind \"{kind}\" is not the NetworkPolicy of networking.k8s.io/v1"
            ),
        );
    }
    let (read, _) = read_named("a.yaml", "apiVersion: v1\nkind: pod");
    assert!(read.diagnostics.iter().all(|d| d.severity == Severity::Note));
}

#[test]
fn json() {
    let object = r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p","namespace":"x"},"spec":{}}"#;
    let other = object.replace("\"p\"", "\"q\"");
    let both = "policy x/p of * in [] out -\npolicy x/q of * in [] out -";
    check(&format!("{object}\n{other}"), both);
    check(&format!("{object}\n---\n{other}"), "policy x/p of * in [] out -\n2:2 E0004 : invalid number");
    assert_eq!(summary("a.json", format!(" {object} {other}")), both);
    assert_eq!(summary("a.json", "[]"), "1:1 E0010 : the document is a list, not a Kubernetes object");
    assert_eq!(summary("a.json", &object[..90]), "1:91 E0004 : unexpected end of JSON input");
    assert_eq!(
        summary("a.json", object.replace("{}}", "{},\"spec\":{}}")),
        "policy x/p of * in [] out -\n1:111 E0005 : key \"spec\" already set in map"
    );
    // A flow mapping is not JSON, but YAML.
    check(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: x}}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: q, namespace: x}",
        both,
    );
    let got = summary("a.yaml", "{{- if .Values.enabled }}\napiVersion: v1\n{{- end }}");
    assert!(got.contains("E0003") || got.contains("E0008"), "{got}");
}

#[test]
fn encodings() {
    let utf16: Vec<u8> = np("{}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(
        summary("a.yaml", [vec![0xff, 0xfe], utf16].concat()),
        "1:1 E0001 : the text is UTF-16, not UTF-8"
    );
    assert_eq!(
        summary("a.yaml", b"a: \xe9".to_vec()),
        "1:4 E0001 : the text is not UTF-8: byte 0xe9 at offset 3"
    );
    check("a: \"\u{7}\"", "1:5 E0002 : control characters are not allowed: U+0007");
    check("\u{7f}ELF\0\0", "1:1 E0002 : control characters are not allowed: U+007F");
}

#[test]
fn indentation_inside_of_brackets_does_not_matter() {
    let expect = "policy x/p of a in {\"b\"} in [] out []";
    spec("\n  policyTypes: [Ingress,\n  Egress]\n  podSelector: {\n  matchLabels: {a: b}\n}", expect);
    spec(
        "{\n\"podSelector\": { # ü ]\nmatchLabels: {\na: 'b'\n}}, policyTypes: [\nIngress, Egress\n]}",
        expect,
    );
    spec(
        "\n  policyTypes: [\n  ]\n  ingress: [\n{}\n]\n  podSelecter: {}",
        "10:3 E0012 spec.podSelecter: unknown field \"spec.podSelecter\"",
    );
    spec(
        "\n podSelector:\n  matchLabels: {}\n policyTypes: [\n\"Ingress\", Egres]",
        "8:12 E0022 spec.policyTypes[1]: Unsupported value: \"Egres\": supported values: \"Ingress\", \"Egress\"",
    );
}

#[test]
fn same_object_twice() {
    let one = np("{ingress: [{from: [{podSelector: {}}]}]}");
    let expect = "policy x/p of * in [pods(*) any] out -";
    check(&format!("{one}---\n# again\n{one}"), expect);
    check(
        &format!("{one}---\n{}", np("{}")),
        &format!(
            "{expect}\n6:1 E0030 metadata.name: NetworkPolicy x/p is given twice with different content; the first is at a.yaml:1:1"
        ),
    );
    let pod =
        |ip: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nstatus: {{podIP: {ip}}}\n");
    check(
        &format!("{}---\n{}", pod("10.0.0.1"), pod("10.0.0.2")),
        "pod default/a None Live [10.0.0.1] host=false []\n6:1 E0030 metadata.name: Pod default/a is given twice with different content; the first is at a.yaml:1:1",
    );
}

#[test]
fn pods_nodes_namespaces() {
    let pod = |rest: &str, expect: &str| {
        check(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: x}}\n{rest}"), expect)
    };
    pod("", "pod x/a None Planned [] host=false []");
    pod("status: {}", "pod x/a None Planned [] host=false []");
    pod("status: {phase: Pending}", "pod x/a None Live [] host=false []");
    pod("status: {phase: Succeeded, podIP: 10.0.0.1}", "pod x/a None Finished [10.0.0.1] host=false []");
    pod(
        "spec: {nodeName: n1, hostNetwork: true, new: field}\nstatus: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}",
        "pod x/a Some(\"n1\") Live [10.0.0.1, fd00::1] host=true []",
    );
    pod(
        "spec: {containers: [{ports: [{name: http, containerPort: 80}, {containerPort: 53, protocol: UDP}]}], initContainers: [{ports: [{containerPort: 1}]}, {restartPolicy: Always, ports: [{name: side, containerPort: 2}]}]}",
        "pod x/a None Planned [] host=false [\"http:80/tcp\", \":53/udp\", \"side:2/tcp\"]",
    );
    pod(
        "status: {podIP: 10.0.0.300}",
        "4:17 E0021 status.podIP: Invalid value: \"10.0.0.300\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
    );
    pod(
        "status: {phase: running}",
        "4:17 E0022 status.phase: Unsupported value: \"running\": supported values: \"Pending\", \"Running\", \"Succeeded\", \"Failed\", \"Unknown\"",
    );
    pod(
        "spec: {containers: [{ports: [{containerPort: 0}]}]}",
        "4:46 E0021 spec.containers[0].ports[0].containerPort: Invalid value: 0: must be between 1 and 65535, inclusive",
    );
    check(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {b: c}}",
        "namespace a {\"b\": \"c\", \"kubernetes.io/metadata.name\": \"a\"}",
    );
    check(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {kubernetes.io/metadata.name: c}}",
        "namespace a {\"kubernetes.io/metadata.name\": \"a\"}\n3:59 W0104 metadata.labels.kubernetes.io/metadata.name: the API server sets this label to the name \"a\", not \"c\"",
    );
    check(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.0.0.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 1.2.3.4}, {type: Hostname, address: n1}]}",
        "node n1 [1.2.3.4] [\"10.0.0.0/24\"]",
    );
    let many = |field: &str, of: fn(usize) -> String| {
        let list: Vec<String> = (0..257).map(of).collect();
        format!("status: {{{field}: [{}]}}", list.join(", "))
    };
    pod(
        &many("podIPs", |i| format!("{{ip: 10.0.{}.{}}}", i / 256, i % 256)),
        "4:18 E0024 status.podIPs: Too many: 257: must have at most 256 items",
    );
    let addresses =
        many("addresses", |i| format!("{{type: InternalIP, address: 10.0.{}.{}}}", i / 256, i % 256));
    check(
        &format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n1}}\n{addresses}"),
        "4:21 E0024 status.addresses: Too many: 257: must have at most 256 items",
    );
    let (read, _) = read_named(
        "a.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, ownerReferences: [{kind: ReplicaSet, name: r, controller: true}, {kind: X, name: z, controller: false}]}",
    );
    assert_eq!(read.objects.pods[0].owners, [("ReplicaSet".to_string(), "r".to_string())]);
    assert_eq!(read.objects.pods[0].phase, Phase::Planned);
}

#[test]
fn workloads() {
    for (version, kind, more) in [
        ("apps/v1", "Deployment", ""),
        (
            "apps/v1",
            "StatefulSet",
            ", \"apps.kubernetes.io/pod-index\": \"0\", \"statefulset.kubernetes.io/pod-name\": \"a-0\"",
        ),
        ("apps/v1", "DaemonSet", ""),
        ("apps/v1", "ReplicaSet", ""),
        ("batch/v1", "Job", ", \"batch.kubernetes.io/job-name\": \"a\", \"job-name\": \"a\""),
    ] {
        check(
            &format!(
                "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{replicas: 2, selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{containers: [{{ports: [{{containerPort: 1}}]}}]}}}}}}"
            ),
            &format!("{kind} default/a {{\"a\": \"b\"{more}}} 1 ports"),
        );
    }
    check(
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: a, namespace: x}\nspec: {jobTemplate: {spec: {template: {metadata: {labels: {a: b}}}}}}",
        "CronJob x/a {\"a\": \"b\"} 0 ports",
    );
    check(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: a}\nspec: {manualSelector: true, template: {}}",
        "Job default/a {} 0 ports",
    );
    check(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: a}\nspec: {ordinals: {start: 3}, template: {}}",
        "StatefulSet default/a {\"apps.kubernetes.io/pod-index\": \"3\", \"statefulset.kubernetes.io/pod-name\": \"a-3\"} 0 ports",
    );
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {template: {metadata: {labels: {a: 1}}}}",
        "4:42 E0013 spec.template.metadata.labels.a: cannot use the number 1 here: a string is wanted",
    );
}

/// A list whose items are misspelt would be an empty one.
#[test]
fn lists_have_no_other_fields() {
    for (kind, version) in [("List", "v1"), ("PodList", "v1"), ("NetworkPolicyList", "networking.k8s.io/v1")]
    {
        check(
            &format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{}}\nitem: []\n"),
            "4:1 E0012 item: unknown field \"item\"",
        );
    }
    check(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List, itms: []}\n",
        "4:32 E0012 items[0].itms: unknown field \"items[0].itms\"",
    );
    // Kinds of others may be called so and have fields of their own.
    check("apiVersion: a.b/v1\nkind: AllowList\nitem: []\n", "skipped a.b/v1 AllowList 1");
    check("apiVersion: a.b/v1\nkind: AllowList\nitems: [x, y]\n", "skipped a.b/v1 AllowList 1");
    check("apiVersion: a.b/v1\nkind: AllowList\nitems: 3\n", "skipped a.b/v1 AllowList 1");
}

/// The name of a node is that of a folder: nothing that leads out of the output may pass.
#[test]
fn node_names_are_checked() {
    for name in ["../EVIL", "/tmp/x", "a/b", "..", ".", "a_b", "\\x1b[31m", "-a"] {
        let pod =
            format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{nodeName: \"{name}\"}}\n");
        let got = summary("a.yaml", pod);
        assert!(got.starts_with("4:18 E0021 spec.nodeName: Invalid value"), "{got}");
        let template = format!("template: {{spec: {{nodeName: \"{name}\"}}}}");
        let got = summary(
            "a.yaml",
            format!("apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: a}}\nspec: {{{template}}}\n"),
        );
        assert!(got.starts_with("4:36 E0021 spec.template.spec.nodeName: Invalid value"), "{got}");
        let got = summary("a.yaml", format!("apiVersion: v1\nkind: Node\nmetadata: {{name: \"{name}\"}}\n"));
        assert!(got.starts_with("3:18 E0021 metadata.name: Invalid value"), "{got}");
    }
    let fine = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {nodeName: ip-10-0-0-1.example.com}\n";
    check(fine, "pod default/a Some(\"ip-10-0-0-1.example.com\") Planned [] host=false []");
}

/// The server gives every object of a `generateName` a name of its own.
#[test]
fn generated_names_differ_where_objects_do() {
    let pod = |label: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{generateName: web-, labels: {{a: {label}}}}}\n---\n")
    };
    let names = |text: String| -> Vec<String> {
        let (read, _) = read_named("a.yaml", text);
        assert_eq!(read.diagnostics, []);
        read.objects.pods.into_iter().map(|p| p.name).collect()
    };
    let two = names(pod("x") + &pod("z"));
    assert!(two.len() == 2 && two[0] != two[1], "{two:?}");
    assert!(two.iter().all(|name| name.starts_with("web-") && name.len() == 9), "{two:?}");
    assert_eq!(names(pod("x") + &pod("x")), [two[0].clone()]);
}

/// An address says whose it is only if it is one node's.
#[test]
fn addresses_that_nodes_share() {
    let node = |name: &str, addresses: &[(&str, &str)]| {
        let list: Vec<String> =
            addresses.iter().map(|(kind, a)| format!("{{type: {kind}, address: {a}}}")).collect();
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{}]}}\n---\n",
            list.join(", ")
        )
    };
    check(
        &(node("n1", &[("InternalIP", "10.0.0.1")]) + &node("n2", &[("InternalIP", "10.0.0.1")])),
        "node n1 [10.0.0.1] []\nnode n2 [10.0.0.1] []\n6:1 E0202 status.addresses: the address 10.0.0.1 of node n2 is also that of node n1, at a.yaml:1:1",
    );
    let behind = |name: &str, own: &str| node(name, &[("InternalIP", own), ("ExternalIP", "203.0.113.1")]);
    check(
        &(behind("n1", "10.0.0.1") + &behind("n2", "10.0.0.2")),
        "node n1 [10.0.0.1] []\nnode n2 [10.0.0.2] []\n6:1 W0207 status.addresses: the address 203.0.113.1 is that of several nodes (n1, n2): it is taken for that of none of them",
    );
    check(
        &(behind("n1", "10.0.0.1") + &node("n2", &[("InternalIP", "203.0.113.1")])),
        "node n1 [10.0.0.1] []\nnode n2 [203.0.113.1] []\n1:1 W0207 status.addresses: the address 203.0.113.1 is that of several nodes (n1, n2): it is taken for that of n2 only",
    );
    check(
        &(node("n1", &[("ExternalIP", "10.0.0.1"), ("InternalIP", "10.0.0.1")]) + &behind("n2", "10.0.0.2")),
        "node n1 [10.0.0.1, 10.0.0.1] []\nnode n2 [10.0.0.2, 203.0.113.1] []",
    );
}

#[test]
fn objects_know_where_they_stand() {
    let text = "---\n# first\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  ingress:\n  - from:\n    - podSelector: {}\n    - ipBlock:\n        cidr: 1.0.0.0/8\n  - {}\n";
    let (read, sources) = read_named("a.yaml", text);
    let policy = &read.objects.policies[0];
    let rules = policy.ingress.as_ref().unwrap();
    let peers = rules[0].peers.as_ref().unwrap();
    let places: Vec<String> = [policy.at, rules[0].at, peers[0].at, peers[1].at, rules[1].at]
        .map(|s| sources.place(s).to_string())
        .into();
    assert_eq!(places, ["a.yaml:3:1", "a.yaml:8:5", "a.yaml:9:7", "a.yaml:10:7", "a.yaml:12:5"]);
    assert_eq!((rules[0].path.as_str(), rules[1].path.as_str()), ("spec.ingress[0]", "spec.ingress[1]"));
}
