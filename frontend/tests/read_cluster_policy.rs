//! ClusterNetworkPolicy and its forerunners: what is read and what is refused.

use netpolc_frontend::diagnostic::Severity;
use netpolc_frontend::objects::{ClusterPeer, PolicyPort};
use netpolc_frontend::read::{Read, read};
use netpolc_frontend::source::Sources;
use netpolc_ir::ports::Transport;
use netpolc_ir::unit::{Action, Tier};

fn read_text(text: &str) -> Read {
    let mut sources = Sources::default();
    sources.add("a.yaml", text.into());
    read(&sources)
}

fn object(kind: &str, spec: &str) -> String {
    let version = if kind == "ClusterNetworkPolicy" { "v1alpha2" } else { "v1alpha1" };
    let name = if kind.starts_with("Baseline") { "default" } else { "c" };
    format!(
        "apiVersion: policy.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}"
    )
}

/// What is wrong with an object, as `path: message`.
fn wrong(kind: &str, spec: &str) -> String {
    let read = read_text(&object(kind, spec));
    let lines =
        read.diagnostics.iter().map(|d| format!("{}: {}", d.path.as_deref().unwrap_or_default(), d.message));
    let text = lines.collect::<Vec<_>>().join("\n");
    let errors = read.diagnostics.iter().any(|d| d.severity == Severity::Error);
    assert_eq!(read.objects.cluster_policies.is_empty(), errors, "{spec}");
    text
}

const CNP: &str = "tier: Admin, priority: 5, subject: {namespaces: {}}";
const ANP: &str = "priority: 5, subject: {namespaces: {}}";

fn cnp(more: &str, expect: &str) {
    assert_eq!(wrong("ClusterNetworkPolicy", &format!("{CNP}, {more}")), expect, "{more}");
}

fn anp(more: &str, expect: &str) {
    assert_eq!(wrong("AdminNetworkPolicy", &format!("{ANP}, {more}")), expect, "{more}");
}

#[test]
fn everything_of_v1alpha2_is_read() {
    let read = read_text(&object(
        "ClusterNetworkPolicy",
        "tier: Baseline, priority: 0, subject: {pods: {podSelector: {matchLabels: {a: b}}}}, \
         ingress: [{name: one, action: Accept, from: [{namespaces: {}}, {pods: {podSelector: {}}}], protocols: [\
         {tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 2}}}}, \
         {destinationNamedPort: http}]}], \
         egress: [{action: Pass, to: [{nodes: {}}, {networks: ['::/0', 10.0.0.0/8]}]}]",
    ));
    assert_eq!(read.diagnostics, []);
    let policy = &read.objects.cluster_policies[0];
    assert_eq!(
        (policy.tier, policy.priority, policy.kind.as_str()),
        (Tier::Baseline, 0, "ClusterNetworkPolicy")
    );
    assert!(policy.subject.0.is_everything() && !policy.subject.1.is_everything());
    let rule = &policy.ingress[0];
    assert_eq!((rule.action, rule.path.as_str(), rule.peers.len()), (Action::Accept, "spec.ingress[0]", 2));
    let ports = [
        PolicyPort::Range { transport: Transport::Tcp, lo: 80, hi: 80 },
        PolicyPort::Range { transport: Transport::Udp, lo: 1, hi: 2 },
        PolicyPort::Named { transport: None, name: "http".into() },
    ];
    assert_eq!(rule.ports.as_deref(), Some(ports.as_slice()));
    let rule = &policy.egress[0];
    assert_eq!((rule.action, &rule.ports), (Action::Pass, &None));
    assert!(matches!(&rule.peers[..], [ClusterPeer::Nodes(_), ClusterPeer::Networks(n)] if n.len() == 2));
}

#[test]
fn v1alpha1_is_converted() {
    let spec = "ingress: [{action: Allow, from: [{namespaces: {}}], ports: [{portNumber: {protocol: UDP, port: 53}}, \
                {portRange: {protocol: TCP, start: 1, end: 1}}, {namedPort: dns}]}]";
    let admin = read_text(&object("AdminNetworkPolicy", &format!("{ANP}, {spec}")));
    let policy = &admin.objects.cluster_policies[0];
    assert_eq!((policy.tier, policy.priority), (Tier::Admin, 5));
    assert_eq!(policy.ingress[0].action, Action::Accept);
    assert_eq!(policy.ingress[0].ports.as_ref().map(Vec::len), Some(3));
    let base =
        read_text(&object("BaselineAdminNetworkPolicy", &format!("subject: {{namespaces: {{}}}}, {spec}")));
    let policy = &base.objects.cluster_policies[0];
    assert_eq!((policy.tier, policy.priority, policy.name.as_str()), (Tier::Baseline, 0, "default"));
    assert_eq!(
        wrong(
            "BaselineAdminNetworkPolicy",
            "subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {}}]}]"
        ),
        "spec.ingress[0].action: Unsupported value: \"Pass\": supported values: \"Allow\", \"Deny\""
    );
    assert_eq!(
        wrong("BaselineAdminNetworkPolicy", "priority: 1, subject: {namespaces: {}}"),
        "spec.priority: unknown field \"spec.priority\""
    );
    let other = object("BaselineAdminNetworkPolicy", "subject: {namespaces: {}}").replace("default", "other");
    assert_eq!(read_text(&other).diagnostics[0].path.as_deref(), Some("metadata.name"));
    anp(
        "egress: [{action: Deny, to: [{networks: [10.1.2.3/8]}]}]",
        "spec.egress[0].to[0].networks[0]: CIDR value \"10.1.2.3/8\" has bits set beyond the prefix length: it is read as \"10.0.0.0/8\" (or should it be \"10.1.2.3/32\"?)",
    );
    anp(
        "ingress: [{action: Allow, from: [{pods: {podSelector: {}}}]}]",
        "spec.ingress[0].from[0].pods.namespaceSelector: Required value",
    );
}

#[test]
fn heads_are_validated() {
    let head = |spec: &str, expect: &str| assert_eq!(wrong("ClusterNetworkPolicy", spec), expect, "{spec}");
    head("tier: Admin, priority: 1000, subject: {namespaces: {}}", "");
    head(
        "tier: Admin, priority: 1001, subject: {namespaces: {}}",
        "spec.priority: Invalid value: 1001: spec.priority in body should be less than or equal to 1000",
    );
    head(
        "tier: Admin, priority: -1, subject: {namespaces: {}}",
        "spec.priority: Invalid value: -1: spec.priority in body should be greater than or equal to 0",
    );
    head("", "spec.tier: Required value\nspec.priority: Required value\nspec.subject: Required value");
    head(
        "tier: NetworkPolicy, priority: 1, subject: {namespaces: {}}",
        "spec.tier: Unsupported value: \"NetworkPolicy\": supported values: \"Admin\", \"Baseline\"",
    );
    head(
        "tier: Admin, priority: 1, subject: {}",
        "spec.subject: Invalid value: 0: spec.subject in body should have at least 1 properties",
    );
    head(
        "tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}",
        "spec.subject: Too many: 2: must have at most 1 item",
    );
    head("tier: Admin, priority: 1, subject: {pods: {}}", "spec.subject.pods.podSelector: Required value");
    let namespaced = object("ClusterNetworkPolicy", CNP).replace("{name: c}", "{name: c, namespace: x}");
    assert_eq!(read_text(&namespaced).diagnostics[0].message, "Forbidden: not allowed on this type");
}

#[test]
fn rules_are_validated() {
    cnp("ingress: [{from: [{namespaces: {}}]}]", "spec.ingress[0].action: Required value");
    cnp(
        "ingress: [{action: Allow, from: [{namespaces: {}}]}]",
        "spec.ingress[0].action: Unsupported value: \"Allow\": supported values: \"Accept\", \"Deny\", \"Pass\"",
    );
    cnp("ingress: [{action: Deny}]", "spec.ingress[0].from: Required value");
    cnp(
        "ingress: [{action: Deny, from: []}]",
        "spec.ingress[0].from: Invalid value: 0: spec.ingress[0].from in body should have at least 1 items",
    );
    cnp(
        "ingress: [{action: Deny, from: [{}]}]",
        "spec.ingress[0].from[0]: Invalid value: 0: spec.ingress[0].from[0] in body should have at least 1 properties",
    );
    cnp(
        "ingress: [{action: Deny, from: [{nodes: {}}]}]",
        "spec.ingress[0].from[0].nodes: unknown field \"spec.ingress[0].from[0].nodes\"\nspec.ingress[0].from[0]: Invalid value: 0: spec.ingress[0].from[0] in body should have at least 1 properties",
    );
    cnp(
        "egress: [{action: Deny, to: [{domainNames: [a.b]}]}]",
        "spec.egress[0].to[0].domainNames: domainNames peers are not supported: a packet has an address, not a name",
    );
    for bad in ["10.0.0.0/33", "010.0.0.0/8", "::ffff:10.0.0.0/104", "10.0.0.0/08", "x"] {
        cnp(
            &format!("egress: [{{action: Deny, to: [{{networks: ['{bad}']}}]}}]"),
            &format!(
                "spec.egress[0].to[0].networks[0]: Invalid value: \"{bad}\": Invalid CIDR format provided"
            ),
        );
    }
    // `isCIDR` lets host bits pass.
    for (written, read, host) in
        [("10.0.0.1/8", "10.0.0.0/8", "10.0.0.1/32"), ("fd00::1/64", "fd00::/64", "fd00::1/128")]
    {
        cnp(
            &format!("egress: [{{action: Deny, to: [{{networks: ['{written}']}}]}}]"),
            &format!(
                "spec.egress[0].to[0].networks[0]: CIDR value \"{written}\" has bits set beyond the prefix length: it is read as \"{read}\" (or should it be \"{host}\"?)"
            ),
        );
    }
    let rules =
        |n: usize| format!("ingress: [{}]", vec!["{action: Deny, from: [{namespaces: {}}]}"; n].join(","));
    cnp(&rules(25), "");
    cnp(&rules(26), "spec.ingress: Too many: 26: must have at most 25 items");
    anp(&rules(100), "");
    anp(&rules(101), "spec.ingress: Too many: 101: must have at most 100 items");
}

#[test]
fn protocols_are_validated() {
    let at = "spec.egress[0].protocols[0]";
    let protocol = |written: &str, expect: &str| {
        cnp(
            &format!("egress: [{{action: Deny, to: [{{namespaces: {{}}}}], protocols: [{written}]}}]"),
            expect,
        )
    };
    protocol(
        "{tcp: {destinationPort: {range: {start: 5, end: 5}}}}",
        &format!("{at}.tcp.destinationPort.range: Invalid value: Start port must be less than End port"),
    );
    protocol(
        "{tcp: {}}",
        &format!("{at}.tcp: Invalid value: 0: {at}.tcp in body should have at least 1 properties"),
    );
    protocol("{}", &format!("{at}: Invalid value: 0: {at} in body should have at least 1 properties"));
    protocol(
        "{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}",
        &format!("{at}: Too many: 2: must have at most 1 item"),
    );
    protocol(
        "{tcp: {destinationPort: {number: 0}}}",
        &format!("{at}.tcp.destinationPort.number: Invalid value: 0: must be between 1 and 65535, inclusive"),
    );
    protocol(
        "{tcp: {destinationPort: {range: {start: 5}}}}",
        &format!("{at}.tcp.destinationPort.range.end: Required value"),
    );
    // The schema takes any text for a name.
    protocol("{destinationNamedPort: HTTP_PORT}", "");
    protocol(
        "{icmp: {}}",
        &format!(
            "{at}.icmp: unknown field \"{at}.icmp\"\n{at}: Invalid value: 0: {at} in body should have at least 1 properties"
        ),
    );
    protocol(
        "",
        "spec.egress[0].protocols: Invalid value: 0: spec.egress[0].protocols in body should have at least 1 items",
    );
    cnp(
        "egress: [{action: Deny, to: [{nodes: {}}], protocols: [{destinationNamedPort: a}]}]",
        "spec.egress[0]: Invalid value: networks/nodes/domainNames peer cannot be set with namedPorts since there are no namedPorts for networks/nodes/domainNames",
    );
    cnp(
        "egress: [{action: Deny, to: [{namespaces: {}}], ports: []}]",
        "spec.egress[0].ports: unknown field \"spec.egress[0].ports\"",
    );
    anp(
        "ingress: [{action: Allow, from: [{namespaces: {}}], ports: [{portRange: {protocol: TCP, start: 10, end: 1}}]}]",
        "spec.ingress[0].ports[0].portRange.end: Invalid value: 1: must be greater than or equal to `start`",
    );
    anp(
        "ingress: [{action: Allow, from: [{namespaces: {}}], protocols: []}]",
        "spec.ingress[0].protocols: unknown field \"spec.ingress[0].protocols\"",
    );
}
