//! Bundles that the compiler made, for nftables and iptables.

use crate::common::{Dir, unique};
use netpolc_bundle::{Backend, Bundle, store};
use netpolc_node::{Labels, NodeBuilder};
use netpolc_testkit::pipeline::{compile, model};

/// Node alpha with three pods, and node beta with one; both families.
fn world() -> String {
    let mut yaml = String::new();
    for (n, node) in [(1, "alpha"), (2, "beta")] {
        yaml += &format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\nstatus: {{addresses: [{{type: InternalIP, address: \
             192.168.9.{n}}}, {{type: InternalIP, address: \"fd99::{n}\"}}]}}\n---\n"
        );
    }
    for (n, name, node) in
        [(1, "client", "alpha"), (2, "server", "alpha"), (3, "open", "alpha"), (4, "far", "beta")]
    {
        yaml += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: main, image: i}}]}}\n\
             status: {{phase: Running, podIPs: [{{ip: 10.1.0.{n}}}, {{ip: \"fd00:1::{n}\"}}]}}\n---\n"
        );
    }
    yaml
}

/// A policy for the server.
pub(crate) fn server(ingress: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: server, namespace: shop}}\nspec:\n  \
         podSelector: {{matchLabels: {{app: server}}}}\n  policyTypes: [Ingress]\n  ingress: {ingress}\n"
    )
}

/// So many blocks that a set is worth it.
pub(crate) const BLOCKS: &str = "{ipBlock: {cidr: 198.51.100.0/25, except: [198.51.100.7/32]}}, \
    {ipBlock: {cidr: 100.64.0.0/10}}, {ipBlock: {cidr: 198.18.0.0/15}}, {ipBlock: {cidr: 192.0.2.0/24}}, \
    {ipBlock: {cidr: \"2001:db8::/48\"}}, {ipBlock: {cidr: \"2001:db8:1::/48\"}}, {ipBlock: {cidr: \"2001:db8:2::/48\"}}, \
    {ipBlock: {cidr: \"2001:db8:3::/48\"}}, {ipBlock: {cidr: \"2001:db8:4::/48\"}}";

/// Three versions of the policies: with sets, with other sets, without any.
pub(crate) fn a() -> String {
    server(&format!(
        "[{{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}, {BLOCKS}], ports: [{{port: 80}}]}}]"
    ))
}

pub(crate) fn b() -> String {
    let more = format!(
        "{BLOCKS}, {{ipBlock: {{cidr: 203.0.113.0/24}}}}, {{ipBlock: {{cidr: \"2001:db8:5::/48\"}}}}"
    );
    server(&format!(
        "[{{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}, {more}], ports: [{{port: 80}}]}}]"
    ))
}

pub(crate) fn c() -> String {
    server("[]")
}

/// The chain that drops what the server's policy does not allow, in every version: under iptables, and under nftables.
pub(crate) fn denying() -> [String; 2] {
    let bundle = compiled(&c());
    let script = bundle.script().unwrap();
    let hash = script.split("chain deny_").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    [format!("NETPOLC-DENY-{hash}"), format!("deny_{hash}")]
}

/// The bundle of node alpha.
pub(crate) fn compiled(policies: &str) -> Bundle {
    compiled_for(policies, &[Backend::Nftables, Backend::Iptables])
}

/// As [`compiled`], for other backends.
pub(crate) fn compiled_for(policies: &str, backends: &[Backend]) -> Bundle {
    let compiled = compile(model(&[("cluster.yaml", world() + policies)]).unwrap()).unwrap();
    let labels = Labels::of_policies(&compiled.model);
    let backends = backends.iter().copied();
    let mut builder = NodeBuilder::new(&compiled.model, &compiled.matrix, &labels, backends, None);
    let host = compiled.matrix.hosts.iter().find(|(_, data)| data.name == "alpha").unwrap().0;
    builder.build(host).unwrap().bundle
}

/// The same as a directory.
pub(crate) fn bundle(policies: &str) -> Dir {
    let dir = Dir(std::env::temp_dir().join(unique()));
    std::fs::create_dir(&dir.0).unwrap();
    store::write(&dir.0, &compiled(policies)).unwrap();
    dir
}
