//! What is written and what it means, or why it is refused: text in, text out.

use netpolc_frontend::diagnostic::{CODES, Severity, render};
use netpolc_frontend::objects::{
    ClusterPeer, PeerKind, Phase, Policy, PolicyPort, PolicyRule, Requirement, Selector,
};
use netpolc_frontend::read::{Read, read};
use netpolc_frontend::source::Sources;

fn read_named(name: &str, text: impl Into<Vec<u8>>) -> (Read, Sources) {
    let mut sources = Sources::default();
    sources.add(name, text.into());
    (read(&sources), sources)
}

/// One line for each object and each diagnostic.
fn summary(name: &str, text: impl Into<Vec<u8>>) -> String {
    let (read, sources) = read_named(name, text);
    let mut out: Vec<String> = Vec::new();
    for n in &read.objects.namespaces {
        out.push(format!("namespace {} {:?}", n.name, n.labels));
    }
    for n in &read.objects.nodes {
        out.push(format!(
            "node {} {:?} {:?}",
            n.name,
            n.addrs,
            n.pod_cidrs.iter().map(|c| c.to_string()).collect::<Vec<_>>()
        ));
    }
    out.extend(read.objects.policies.iter().map(policy));
    for p in &read.objects.cluster_policies {
        out.push(format!(
            "{} {} {:?} {} {:?} in {:?} out {:?}",
            p.kind,
            p.name,
            p.tier,
            p.priority,
            (selector(&p.subject.0), selector(&p.subject.1)),
            p.ingress
                .iter()
                .map(|r| format!("{:?} {} {:?}", r.action, peers(&r.peers), r.ports))
                .collect::<Vec<_>>(),
            p.egress
                .iter()
                .map(|r| format!("{:?} {} {:?}", r.action, peers(&r.peers), r.ports))
                .collect::<Vec<_>>()
        ));
    }
    for p in &read.objects.pods {
        let ports: Vec<String> = p
            .ports
            .iter()
            .map(|p| format!("{}:{}/{}", p.name.as_deref().unwrap_or(""), p.port, p.transport))
            .collect();
        out.push(format!(
            "pod {}/{} {:?} {:?} {:?} host={} {:?}",
            p.namespace, p.name, p.node, p.phase, p.ips, p.host_network, ports
        ));
    }
    for w in &read.objects.workloads {
        out.push(format!(
            "{} {}/{} {:?} {} ports",
            w.kind,
            w.template.namespace,
            w.template.name,
            w.template.labels,
            w.template.ports.len()
        ));
    }
    out.extend(read.skipped.iter().map(|(k, n)| format!("skipped {k} {n}")));
    for d in &read.diagnostics {
        let place =
            d.span.map(|s| sources.place(s)).map_or(String::new(), |p| format!("{}:{} ", p.line, p.column));
        let path = d.path.clone().unwrap_or_default();
        assert!(CODES.iter().any(|c| c.code == d.code), "{} is not registered", d.code);
        out.push(format!("{place}{} {path}: {}", d.code, d.message));
    }
    out.join("\n")
}

fn selector(s: &Selector) -> String {
    let parts: Vec<String> = s
        .requirements()
        .map(|r| match r {
            Requirement::In(k, v) => format!("{k} in {v:?}"),
            Requirement::NotIn(k, v) => format!("{k} notin {v:?}"),
            Requirement::Exists(k) => k.clone(),
            Requirement::DoesNotExist(k) => format!("!{k}"),
        })
        .collect();
    if parts.is_empty() { "*".into() } else { parts.join(",") }
}

fn peers(peers: &[ClusterPeer]) -> String {
    let parts: Vec<String> = peers
        .iter()
        .map(|p| match p {
            ClusterPeer::Pods(n, p) => format!("pods({};{})", selector(n), selector(p)),
            ClusterPeer::Nodes(n) => format!("nodes({})", selector(n)),
            ClusterPeer::Networks(n) => n.iter().map(|c| c.to_string()).collect::<Vec<_>>().join("+"),
            ClusterPeer::Unknown => "unknown".into(),
        })
        .collect();
    parts.join(" ")
}

fn policy(p: &Policy) -> String {
    let side = |rules: &Option<Vec<PolicyRule>>| {
        rules
            .as_ref()
            .map_or("-".into(), |r| format!("[{}]", r.iter().map(rule).collect::<Vec<_>>().join("; ")))
    };
    format!(
        "policy {}/{} of {} in {} out {}",
        p.namespace,
        p.name,
        selector(&p.subject),
        side(&p.ingress),
        side(&p.egress)
    )
}

fn rule(r: &PolicyRule) -> String {
    let peers = r.peers.as_ref().map_or("everyone".into(), |peers| {
        let parts: Vec<String> = peers
            .iter()
            .map(|p| match &p.kind {
                PeerKind::Pods { namespaces: None, pods } => format!("pods({})", selector(pods)),
                PeerKind::Pods { namespaces: Some(n), pods } => {
                    format!("pods({};{})", selector(n), selector(pods))
                }
                PeerKind::Block(b) => b.except.iter().fold(b.cidr.to_string(), |s, e| format!("{s}-{e}")),
            })
            .collect();
        parts.join(" ")
    });
    let ports = r.ports.as_ref().map_or("any".into(), |ports| {
        let parts: Vec<String> = ports
            .iter()
            .map(|p| match p {
                PolicyPort::Range { transport, lo, hi } if lo == hi => format!("{transport}/{lo}"),
                PolicyPort::Range { transport, lo, hi } => format!("{transport}/{lo}-{hi}"),
                PolicyPort::Named { transport, name } => {
                    format!("{}/{name}", transport.map_or("?".into(), |t| t.to_string()))
                }
            })
            .collect();
        parts.join(" ")
    });
    format!("{peers} {ports}")
}

fn check(text: &str, expect: &str) {
    assert_eq!(summary("a.yaml", text), expect, "{text}");
}

/// A NetworkPolicy `x/p` with this after its `spec:`, on line 4.
fn np(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec: {spec}\n"
    )
}

fn spec(text: &str, expect: &str) {
    check(&np(text), expect);
}

fn port(written: &str, expect: &str) {
    let text = np(&format!("{{ingress: [{{ports: [{{port: {written}}}]}}]}}"));
    check(&text, &format!("policy x/p of * in [everyone {expect}] out -"));
}

#[test]
fn empty_and_missing() {
    spec("{}", "policy x/p of * in [] out -");
    spec("", "policy x/p of * in [] out -");
    spec("{podSelector: null, ingress: null}", "policy x/p of * in [] out -");
    spec("{ingress: []}", "policy x/p of * in [] out -");
    spec("{ingress: [{}]}", "policy x/p of * in [everyone any] out -");
    spec("{ingress: [null]}", "policy x/p of * in [everyone any] out -");
    spec("{ingress: [{from: [], ports: []}]}", "policy x/p of * in [everyone any] out -");
    spec("{ingress: [{from: null, ports: null}]}", "policy x/p of * in [everyone any] out -");
    spec("{ingress: [{ports: [{}]}]}", "policy x/p of * in [everyone tcp/0-65535] out -");
    spec("{ingress: [{ports: [{protocol: SCTP}]}]}", "policy x/p of * in [everyone sctp/0-65535] out -");
    spec("{egress: [{}]}", "policy x/p of * in [] out [everyone any]");
    spec("{policyTypes: []}", "policy x/p of * in [] out -");
    spec("{policyTypes: [Egress]}", "policy x/p of * in - out []");
    spec("{policyTypes: [Egress, Ingress]}", "policy x/p of * in [] out []");
    spec("{policyTypes: [Ingress, Ingress]}", "policy x/p of * in [] out -");
    spec(
        "{egress: []}",
        "policy x/p of * in [] out -\n4:16 W0105 spec.egress: an empty `egress` isolates nothing, since `policyTypes` does not list Egress",
    );
    spec(
        "{policyTypes: [Egress], ingress: [{}]}",
        "policy x/p of * in - out []\n4:40 W0103 spec.ingress: these rules have no effect: `policyTypes` does not list Ingress",
    );
    check(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: ''}\n",
        "policy default/p of * in [] out -",
    );
    check(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {generateName: p-}\n",
        "policy default/p of * in [] out -",
    );
}

#[test]
fn peers_and_selectors() {
    let from = |peer: &str, expect: &str| spec(&format!("{{ingress: [{{from: [{peer}]}}]}}"), expect);
    from("{podSelector: {}}", "policy x/p of * in [pods(*) any] out -");
    from("{namespaceSelector: {}}", "policy x/p of * in [pods(*;*) any] out -");
    from("{namespaceSelector: null, podSelector: {}}", "policy x/p of * in [pods(*) any] out -");
    from(
        "{podSelector: {matchLabels: {a: b}}, namespaceSelector: {matchLabels: {c: ''}}}",
        "policy x/p of * in [pods(c in {\"\"};a in {\"b\"}) any] out -",
    );
    from(
        "{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}",
        "policy x/p of * in [10.0.0.0/8-10.1.0.0/16 any] out -",
    );
    let missing = "4:26 E0020 spec.ingress[0].from[0]: Required value: must specify a peer";
    from("{}", missing);
    from("null", missing);
    from(
        "{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}",
        "4:26 E0023 spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
    );
    from(
        "10.0.0.0/8",
        "4:26 E0013 spec.ingress[0].from[0]: cannot use the string \"10.0.0.0/8\" here: a mapping is wanted",
    );
    spec("{podSelector: {matchLabels: {a: null}}}", "policy x/p of a in {\"\"} in [] out -");
    spec(
        "{podSelector: {matchLabels: {a: '1'}, matchExpressions: [{key: b, operator: NotIn, values: [y1, '']}, {key: c, operator: Exists, values: null}, {key: d, operator: DoesNotExist, values: []}]}}",
        "policy x/p of a in {\"1\"},b notin {\"\", \"y1\"},c,!d in [] out -",
    );
    let e = |expression: &str, expect: &str| {
        spec(&format!("{{podSelector: {{matchExpressions: [{expression}]}}}}"), expect)
    };
    e(
        "{key: a, operator: In, values: []}",
        "4:72 E0020 spec.podSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
    );
    e(
        "{key: a, operator: NotIn}",
        "4:41 E0020 spec.podSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
    );
    e(
        "{key: a, operator: Exists, values: [b]}",
        "4:76 E0023 spec.podSelector.matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
    );
    e(
        "{key: a, operator: in, values: [b]}",
        "4:60 E0021 spec.podSelector.matchExpressions[0].operator: Invalid value: \"in\": not a valid selector operator",
    );
    e(
        "{key: a/b/c, operator: Exists}",
        "4:47 E0021 spec.podSelector.matchExpressions[0].key: Invalid value: \"a/b/c\": a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
    );
}

#[test]
fn scalars_of_yaml_1_1() {
    for written in
        ["80", "0120", "0o120", "0x50", "0b1010000", "8e1", "80.0", "+80", "8_0", "!!int 80", "!!int '80'"]
    {
        port(written, "tcp/80");
    }
    port("8_080", "tcp/8080");
    port("http", "tcp/http");
    port("'a80'", "tcp/a80");
    port("null", "tcp/0-65535");
    let wrong = |written: &str, expect: &str| {
        let text = np(&format!("{{ingress: [{{ports: [{{port: {written}}}]}}]}}"));
        check(&text, &format!("4:34 {expect}"));
    };
    wrong(
        "1:20",
        "E0021 spec.ingress[0].ports[0].port: Invalid value: \"1:20\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)\n4:34 E0021 spec.ingress[0].ports[0].port: Invalid value: \"1:20\": must contain at least one letter (a-z)",
    );
    wrong(
        "'80'",
        "E0021 spec.ingress[0].ports[0].port: Invalid value: \"80\": must contain at least one letter (a-z)",
    );
    wrong("yes", "E0013 spec.ingress[0].ports[0].port: invalid type: boolean `true`, expected IntOrString");
    wrong(
        "80.5",
        "E0013 spec.ingress[0].ports[0].port: invalid type: floating point `80.5`, expected IntOrString",
    );
    wrong(
        "0",
        "E0021 spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
    );
    wrong(
        "65536",
        "E0021 spec.ingress[0].ports[0].port: Invalid value: 65536: must be between 1 and 65535, inclusive",
    );
    wrong(
        "99999999999",
        "E0013 spec.ingress[0].ports[0].port: invalid value: integer `99999999999`, expected a 32-bit integer",
    );
    for word in ["y", "yes", "No", "on", "OFF", "true"] {
        let value = if matches!(word, "y" | "yes" | "on" | "true") { "true" } else { "false" };
        let why = format!("cannot use the boolean {value} here: a string is wanted");
        check(
            &format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {word}}}"),
            &format!("3:18 E0013 metadata.name: {why}"),
        );
        check(
            &format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: {word}}}"
            ),
            &format!("3:32 E0013 metadata.namespace: {why}"),
        );
        spec(
            &format!("{{podSelector: {{matchLabels: {{a: {word}}}}}}}"),
            &format!("4:39 E0013 spec.podSelector.matchLabels.a: {why}"),
        );
    }
    spec("{podSelector: {matchLabels: {on: x}}}", "policy x/p of true in {\"x\"} in [] out -");
    spec(
        "{podSelector: {matchLabels: {a: 1.5}}}",
        "4:39 E0013 spec.podSelector.matchLabels.a: cannot use the number 1.5 here: a string is wanted",
    );
    spec(
        "{podSelector: {matchLabels: {a: !!str 1, b: \"yes\", c: 'no'}}}",
        "policy x/p of a in {\"1\"},b in {\"yes\"},c in {\"no\"} in [] out -",
    );
}

#[test]
fn ports() {
    let ports = |written: &str, expect: &str| spec(&format!("{{ingress: [{{ports: [{written}]}}]}}"), expect);
    ports(
        "{port: 80, endPort: 80}, {port: 1, endPort: 65535, protocol: UDP}",
        "policy x/p of * in [everyone tcp/80 udp/1-65535] out -",
    );
    ports("{protocol: null, port: 80}", "policy x/p of * in [everyone tcp/80] out -");
    ports(
        "{port: 80, endPort: 79}",
        "4:47 E0021 spec.ingress[0].ports[0].endPort: Invalid value: 79: must be greater than or equal to `port`",
    );
    ports(
        "{endPort: 79}",
        "4:37 E0021 spec.ingress[0].ports[0].endPort: Invalid value: 79: may not be specified when `port` is not specified",
    );
    ports(
        "{port: a, endPort: 79}",
        "4:46 E0021 spec.ingress[0].ports[0].endPort: Invalid value: \"79\": may not be specified when `port` is non-numeric",
    );
    ports(
        "{port: 80, endPort: '90'}",
        "4:47 E0013 spec.ingress[0].ports[0].endPort: cannot use the string \"90\" here: a 32-bit integer is wanted",
    );
    ports(
        "{port: 80, protocol: tcp}",
        "4:48 E0022 spec.ingress[0].ports[0].protocol: Unsupported value: \"tcp\": supported values: \"TCP\", \"UDP\", \"SCTP\"",
    );
    ports("80", "4:27 E0013 spec.ingress[0].ports[0]: cannot use the number 80 here: a mapping is wanted");
    // Each error is reported, not the first alone.
    ports(
        "{port: 0, protocol: ICMP}, {port: A}",
        "4:47 E0022 spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\"\n4:34 E0021 spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive\n4:61 E0021 spec.ingress[0].ports[1].port: Invalid value: \"A\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)\n4:61 E0021 spec.ingress[0].ports[1].port: Invalid value: \"A\": must contain at least one letter (a-z)",
    );
}

#[test]
fn cidrs() {
    let block = |written: &str, expect: &str| {
        spec(&format!("{{egress: [{{to: [{{ipBlock: {written}}}]}}]}}"), expect)
    };
    let ok = |cidr: &str, warning: &str| format!("policy x/p of * in [] out [{cidr} any]\n4:40 {warning}");
    block("{cidr: '::/0'}", "policy x/p of * in [] out [::/0 any]");
    block(
        "{cidr: 10.1.2.3/8}",
        &ok(
            "10.0.0.0/8",
            "W0101 spec.egress[0].to[0].ipBlock.cidr: CIDR value \"10.1.2.3/8\" has bits set beyond the prefix length: it is read as \"10.0.0.0/8\" (or should it be \"10.1.2.3/32\"?)",
        ),
    );
    block(
        "{cidr: 010.0.0.0/8}",
        &ok(
            "10.0.0.0/8",
            "W0102 spec.egress[0].to[0].ipBlock.cidr: non-standard CIDR value \"010.0.0.0/8\": use \"10.0.0.0/8\"",
        ),
    );
    block(
        "{cidr: '::ffff:10.0.0.0/104'}",
        &ok(
            "10.0.0.0/8",
            "W0102 spec.egress[0].to[0].ipBlock.cidr: non-standard CIDR value \"::ffff:10.0.0.0/104\": use \"10.0.0.0/8\"",
        ),
    );
    block(
        "{cidr: FD00::/8}",
        &ok(
            "fd00::/8",
            "W0102 spec.egress[0].to[0].ipBlock.cidr: non-standard CIDR value \"FD00::/8\": use \"fd00::/8\"",
        ),
    );
    block(
        "{cidr: 10.0.0.0}",
        "4:40 E0021 spec.egress[0].to[0].ipBlock.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
    );
    block("{}", "4:33 E0020 spec.egress[0].to[0].ipBlock.cidr: Required value");
    let subset = |except: &str, column: u32| {
        format!(
            "4:{column} E0021 spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"{except}\": must be a strict subset of `cidr`"
        )
    };
    block("{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}", &subset("10.0.0.0/8", 61));
    block("{cidr: 10.0.0.0/8, except: [10.0.0.0/7]}", &subset("10.0.0.0/7", 61));
    block("{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}", &subset("11.0.0.0/16", 61));
    block("{cidr: 10.0.0.0/8, except: ['fd00::/16']}", &subset("fd00::/16", 61));
}

#[test]
fn unknown_fields_and_duplicates() {
    spec("{podSelecter: {}}", "4:8 E0012 spec.podSelecter: unknown field \"spec.podSelecter\"");
    spec(
        "{ingress: [{port: 80}]}",
        "4:19 E0012 spec.ingress[0].port: unknown field \"spec.ingress[0].port\"",
    );
    spec("{ingress: [{to: []}]}", "4:19 E0012 spec.ingress[0].to: unknown field \"spec.ingress[0].to\"");
    spec(
        "{podSelector: {app: web}}",
        "4:22 E0012 spec.podSelector.app: unknown field \"spec.podSelector.app\"",
    );
    spec("{}\nstatus: {}", "5:1 E0012 status: unknown field \"status\"");
    check(
        &np("{}").replace("{name: p,", "{name: p, label: {},"),
        "3:21 E0012 metadata.label: unknown field \"metadata.label\"",
    );
    spec(
        "{podSelector: {a: b}, podSelector: {}}",
        "4:22 E0012 spec.podSelector.a: unknown field \"spec.podSelector.a\"\n4:29 E0005 : key \"podSelector\" already set in map",
    );
    spec(
        "{podSelector: {}}\nspec: {}",
        "policy x/p of * in [] out -\n5:1 E0005 : key \"spec\" already set in map",
    );
    spec(
        "{podSelector: {matchLabels: {<<: {a: b}, a: c}}}",
        "policy x/p of a in {\"b\"} in [] out -\n4:48 E0005 : key \"a\" already set in map",
    );
    spec(
        "{podSelector: &s {matchLabels: {a: b}}, ingress: [{from: [{podSelector: {<<: *s}}, {podSelector: *s}]}]}",
        "policy x/p of a in {\"b\"} in [pods(a in {\"b\"}) pods(a in {\"b\"}) any] out -",
    );
    // Other objects may have fields that we do not know, and their duplicates are not ours to refuse.
    check(
        "apiVersion: v1\nkind: Secret\ndata: {a: b, a: c}",
        "skipped v1 Secret 1\n3:14 E0005 : key \"a\" already set in map",
    );
    let mut unknown = np("{podSelecter: {}}");
    unknown.push_str("---\n");
    let (read, sources) = read_named("a.yaml", unknown);
    let text = render(&read.diagnostics, &sources, false);
    assert!(
        text.contains("error[E0012]")
            && text.contains("a.yaml:4:8")
            && text.contains("did you mean `podSelector`?"),
        "{text}"
    );
}

#[test]
fn names() {
    let named = |meta: &str, expect: &str| {
        check(&format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {meta}"), expect)
    };
    let bad = |meta: &str, expect: &str| {
        let got = summary(
            "a.yaml",
            format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {meta}"),
        );
        assert!(got.starts_with(expect) && !got.contains("policy "), "{meta}: {got}");
    };
    named("{name: '123', namespace: '0'}", "policy 0/123 of * in [] out -");
    named("{name: a.b}", "policy default/a.b of * in [] out -");
    bad("{}", "3:11 E0020 metadata.name: Required value: name or generateName is required");
    bad("null", "3:11 E0020 metadata.name: Required value");
    bad(
        "{name: a_b}",
        "3:18 E0021 metadata.name: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain must",
    );
    bad("{name: ../x}", "3:18 E0021 metadata.name");
    bad("{name: \"a\\nb\"}", "3:18 E0021 metadata.name: Invalid value: \"a\\nb\"");
    bad(
        "{name: p, namespace: a.b}",
        "3:32 E0021 metadata.namespace: Invalid value: \"a.b\": a lowercase RFC 1123 label must",
    );
    bad(
        "{name: p, labels: {'a!': b}}",
        "3:29 E0021 metadata.labels: Invalid value: \"a!\": name part must consist",
    );
    bad(
        "{name: p, labels: {a: 'b c'}}",
        "3:33 E0021 metadata.labels.a: Invalid value: \"b c\": a valid label must be an empty string",
    );
    bad(
        "{name: p, annotations: {'a b': c}}",
        "3:34 E0021 metadata.annotations: Invalid value: \"a b\": name part",
    );
    bad(&format!("{{name: {}}}", "n".repeat(254)), "3:18 E0021 metadata.name: Invalid value: \"nnn");
    named(
        &format!("{{name: {}}}", "n".repeat(253)),
        &format!("policy default/{} of * in [] out -", "n".repeat(253)),
    );
}

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
    let (read, _) = read_named(
        "a.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, ownerReferences: [{kind: ReplicaSet, name: r, controller: true}, {kind: X, name: z, controller: false}]}",
    );
    assert_eq!(read.objects.pods[0].owners, [("ReplicaSet".to_string(), "r".to_string())]);
    assert_eq!(read.objects.pods[0].phase, Phase::Planned);
}

#[test]
fn workloads() {
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "ReplicaSet"),
        ("batch/v1", "Job"),
    ] {
        check(
            &format!(
                "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{replicas: 2, selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{containers: [{{ports: [{{containerPort: 1}}]}}]}}}}}}"
            ),
            &format!("{kind} default/a {{\"a\": \"b\"}} 1 ports"),
        );
    }
    check(
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: a, namespace: x}\nspec: {jobTemplate: {spec: {template: {metadata: {labels: {a: b}}}}}}",
        "CronJob x/a {\"a\": \"b\"} 0 ports",
    );
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {template: {metadata: {labels: {a: 1}}}}",
        "4:42 E0013 spec.template.metadata.labels.a: cannot use the number 1 here: a string is wanted",
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
