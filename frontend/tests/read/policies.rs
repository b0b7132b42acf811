//! NetworkPolicies: their fields, scalars, ports, blocks and names.

use crate::summary::{check, np, port, read_named, spec, summary};
use netpolc_frontend::diagnostic::render;

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
        "policy default/p-bts7g of * in [] out -",
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
