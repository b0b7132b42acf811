//! What was read, as text.

use netpolc_frontend::diagnostic::CODES;
use netpolc_frontend::objects::{
    ClusterPeer, PeerKind, Policy, PolicyPort, PolicyRule, Requirement, Selector,
};
use netpolc_frontend::read::{Read, read};
use netpolc_frontend::source::Sources;

pub(crate) fn read_named(name: &str, text: impl Into<Vec<u8>>) -> (Read, Sources) {
    let mut sources = Sources::default();
    sources.add(name, text.into());
    (read(&sources), sources)
}

/// One line for each object and each diagnostic.
pub(crate) fn summary(name: &str, text: impl Into<Vec<u8>>) -> String {
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

pub(crate) fn selector(s: &Selector) -> String {
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

pub(crate) fn peers(peers: &[ClusterPeer]) -> String {
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

pub(crate) fn policy(p: &Policy) -> String {
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

pub(crate) fn rule(r: &PolicyRule) -> String {
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

pub(crate) fn check(text: &str, expect: &str) {
    assert_eq!(summary("a.yaml", text), expect, "{text}");
}

/// A NetworkPolicy `x/p` with this after its `spec:`, on line 4.
pub(crate) fn np(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec: {spec}\n"
    )
}

pub(crate) fn spec(text: &str, expect: &str) {
    check(&np(text), expect);
}

pub(crate) fn port(written: &str, expect: &str) {
    let text = np(&format!("{{ingress: [{{ports: [{{port: {written}}}]}}]}}"));
    check(&text, &format!("policy x/p of * in [everyone {expect}] out -"));
}
