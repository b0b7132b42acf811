//! One small cluster, watched closely: packets made by hand, connections across a reload, rules of others.

use crate::as_root;
use crate::common::{Node, cluster, compiled, nodes};
use crate::load::{Variant, listing, load, lock, run};
use netpolc_bundle::ipt::{self, Family, Table};
use netpolc_sandbox::{
    Content, DEFAULT_TIMEOUT, HostId, NodeSpec, Outcome, OutsideSpec, PodSpec, Probe, Protocol, RawPacket,
    Sandbox, Spec, tcp_flags,
};
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);
const PODS: [&str; 3] = ["client", "server", "open"];

fn addr(pod: usize, v4: bool) -> IpAddr {
    let text = if v4 { format!("10.1.0.{}", pod + 1) } else { format!("fd00:1::{}", pod + 1) };
    text.parse().unwrap()
}

fn outside(v4: bool) -> IpAddr {
    if v4 { "203.0.113.7" } else { "2001:db8::7" }.parse().unwrap()
}

fn sandbox() -> Sandbox {
    let listen = vec![(Protocol::Tcp, 80), (Protocol::Udp, 80)];
    let pods = PODS.iter().enumerate().map(|(i, name)| PodSpec {
        name: (*name).to_owned(),
        node: 0,
        addrs: vec![addr(i, true), addr(i, false)],
        listen: listen.clone(),
    });
    let addrs = vec!["192.168.9.1".parse().unwrap(), "fd99::1".parse().unwrap()];
    let nodes = vec![NodeSpec { name: "alpha".into(), addrs, listen: listen.clone() }];
    let outside = [true, false].map(|v4| OutsideSpec { addr: outside(v4), listen: listen.clone() });
    Sandbox::build(&Spec { nodes, pods: pods.collect(), outside: outside.to_vec() }).unwrap()
}

/// The rules of the node; the server takes what `from` says.
fn rules(sets: bool, from: &str) -> Node {
    let mut yaml =
        "apiVersion: v1\nkind: Node\nmetadata: {name: alpha}\nstatus: {addresses: [{type: InternalIP, \
                    address: 192.168.9.1}, {type: InternalIP, address: \"fd99::1\"}]}\n---\n"
            .to_owned();
    for (i, name) in PODS.iter().enumerate() {
        yaml += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: alpha, containers: [{{name: main, image: i}}]}}\n\
             status: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]}}\n---\n",
            addr(i, true),
            addr(i, false)
        );
    }
    yaml += &format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: server, namespace: shop}}\nspec:\n  \
         podSelector: {{matchLabels: {{app: server}}}}\n  policyTypes: [Ingress, Egress]\n  ingress: {from}\n"
    );
    nodes(&compiled(&yaml), sets).remove(0)
}

/// The client, and so many others that a set is worth it.
const CLIENT: &str = "[{from: [{podSelector: {matchLabels: {app: client}}}, {ipBlock: {cidr: 198.51.100.0/25, except: \
                      [198.51.100.7/32]}}, {ipBlock: {cidr: 100.64.0.0/10}}, {ipBlock: {cidr: 198.18.0.0/15}}, {ipBlock: \
                      {cidr: 192.0.2.0/24}}]}]";

fn probe(from: usize, to: IpAddr, protocol: Protocol) -> Probe {
    Probe { from: HostId::Pod(from), from_addr: None, to, protocol, port: 80 }
}

/// Whether a packet made by hand arrives.
fn arrives(
    sandbox: &Sandbox,
    from: HostId,
    source: IpAddr,
    to: usize,
    content: Content,
    wanted: bool,
    when: &str,
) {
    let packet =
        RawPacket { from, source, to: addr(to, source.is_ipv4()), port: 80, content, at: HostId::Pod(to) };
    let seen = sandbox.observe(&packet, if wanted { PATIENCE } else { DEFAULT_TIMEOUT }).unwrap();
    assert_eq!(seen.is_some(), wanted, "{when}: {packet:?}");
}

fn by_hand(variant: Variant, sets: bool) {
    let sandbox = sandbox();
    let node = rules(sets, CLIENT);
    for (when, ruled) in [("without rules", false), ("with rules", true)] {
        if ruled {
            load(&sandbox, 0, variant, &node);
        }
        for v4 in [true, false] {
            let see = |from, source, to, content, wanted| {
                arrives(&sandbox, from, source, to, content, wanted, when);
            };
            let (client, open) = (HostId::Pod(0), HostId::Pod(2));
            let ack = Content::Tcp(tcp_flags::ACK);
            // The middle of no connection, to an isolated pod and to another.
            see(client, addr(0, v4), 1, ack, !ruled);
            see(client, addr(0, v4), 2, ack, true);
            // conntrack calls it invalid.
            see(client, addr(0, v4), 1, Content::Tcp(tcp_flags::SYN | tcp_flags::ACK), !ruled);
            see(client, addr(0, v4), 1, Content::Tcp(tcp_flags::SYN), true);
            see(client, addr(0, v4), 1, Content::Udp, true);
            see(open, addr(2, v4), 1, Content::Udp, !ruled);
            // False sources: that of another pod of the node, from a pod and from outside, and one of nobody.
            see(open, addr(0, v4), 1, Content::Udp, !ruled);
            see(HostId::Outside(usize::from(!v4)), addr(0, v4), 2, Content::Udp, !ruled);
            see(client, outside(v4), 2, Content::Udp, !ruled);
            see(HostId::Outside(usize::from(!v4)), outside(v4), 2, Content::Udp, true);
        }
    }
}

#[test]
fn packets_made_by_hand() {
    as_root("world::packets_made_by_hand", || {
        for variant in Variant::ALL {
            [true, false].into_iter().for_each(|sets| by_hand(variant, sets));
        }
    });
}

fn across(variant: Variant) {
    let sandbox = sandbox();
    let mine = |what: &str| {
        let tool = if variant == Variant::Nft { "iptables-nft" } else { "iptables-legacy" };
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{tool} {what}")]).env("XTABLES_LOCKFILE", lock());
        run(&sandbox, 0, command, "")
    };
    mine("-N FOREIGN");
    mine("-A FORWARD -p udp --dport 9 -j FOREIGN");
    load(&sandbox, 0, variant, &rules(true, CLIENT));
    assert!(!listing(&sandbox, 0, variant).ruleset.sets.is_empty());
    let to = addr(1, true);
    let mut held = sandbox.connect(&probe(0, to, Protocol::Tcp), PATIENCE).unwrap();
    assert!(held.exchange(PATIENCE) == Outcome::Reached, "{variant:?}: a connection of before");
    // Nobody may open one now; the one that there is lives on, and replies come back.
    load(&sandbox, 0, variant, &rules(false, "[]"));
    let listed = listing(&sandbox, 0, variant);
    assert!(listed.ruleset.sets.is_empty());
    assert!(held.exchange(PATIENCE) == Outcome::Reached, "{variant:?}: a connection across a reload");
    let closed = sandbox.connect(&probe(0, to, Protocol::Tcp), DEFAULT_TIMEOUT);
    assert!(closed.is_err(), "{variant:?}: a new connection");
    // The same again changes nothing, and a jump that somebody moved is seen.
    load(&sandbox, 0, variant, &rules(false, "[]"));
    mine("-I FORWARD 1 -j FOREIGN");
    let hook = listing(&sandbox, 0, variant).hooks[&(Family::V4, Table::Filter)];
    assert_eq!(hook, ipt::Hook { first: false, count: 1 });
    assert!(mine("-S").contains("-A FORWARD -p udp -m udp --dport 9 -j FOREIGN"));
    // Back to rules that let the client in.
    mine("-D FORWARD -j FOREIGN");
    load(&sandbox, 0, variant, &rules(true, CLIENT));
    assert!(sandbox.connect(&probe(0, to, Protocol::Tcp), PATIENCE).is_ok(), "{variant:?}: open again");
}

#[test]
fn connections_and_foreign_rules_live_through_reloads() {
    as_root("world::connections_and_foreign_rules_live_through_reloads", || {
        Variant::ALL.into_iter().for_each(across);
    });
}

/// As deep and as wide as rules get: both variants take them, and take them again over the old ones.
#[test]
fn a_large_node_is_taken_by_both_variants() {
    as_root("world::a_large_node_is_taken_by_both_variants", || {
        let compiled = compiled(&cluster(400, 100, 30));
        for sets in [true, false] {
            let node = nodes(&compiled, sets).remove(0);
            for variant in Variant::ALL {
                let spec = Spec { nodes: vec![NodeSpec::default()], ..Spec::default() };
                let sandbox = Sandbox::build(&spec).unwrap();
                load(&sandbox, 0, variant, &node);
                load(&sandbox, 0, variant, &node);
            }
        }
    });
}
