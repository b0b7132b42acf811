//! The own node, the pod itself, Services.

use super::world::{NOTHING, World, cluster, policy, trial};

pub(crate) fn pods() -> String {
    cluster(&[
        ("client", 0, "app: client", ""),
        ("server", 0, "app: server", ""),
        ("far", 1, "app: server", ""),
        ("other", 1, "app: other", ""),
    ])
}

#[test]
fn the_own_node_passes_and_no_other() {
    let rows = [
        "alpha server tcp 80 yes",
        "alpha server udp 53 yes",
        "alpha server icmp 0 yes",
        "alpha server sctp 7777 yes",
        "server alpha tcp 80 yes",
        "server alpha udp 53 yes",
        "server alpha icmp 0 yes",
        "beta far tcp 80 yes",
        "far beta tcp 80 yes",
        "beta server tcp 80 no",
        "beta server icmp 0 no",
        "server beta udp 53 no",
        "alpha far tcp 80 no",
        "far alpha tcp 80 no",
    ];
    trial(&pods(), &[policy("deny", "app: server", NOTHING)], &rows);
}

/// Services as kube-proxy writes them: each has an address, a port, and one pod behind it.
pub(crate) fn services(world: &World, node: usize) {
    let mut script = String::new();
    for (family, v4) in [("ip", true), ("ip6", false)] {
        let (server, far) = (world.addr("server", v4), world.addr("far", v4));
        let [web, admin, remote] = match v4 {
            true => ["10.96.0.1", "10.96.0.2", "10.96.0.3"],
            false => ["fd96::1", "fd96::2", "fd96::3"],
        };
        let to = |addr: std::net::IpAddr, port: u16| match v4 {
            true => format!("{addr}:{port}"),
            false => format!("[{addr}]:{port}"),
        };
        script += &format!(
            "table {family} services {{
                chain mark-for-masquerade {{
                    {family} saddr . {family} daddr {{ {server} . {server}, {far} . {far} }} masquerade
                }}
                chain prerouting {{
                    type nat hook prerouting priority dstnat; policy accept;
                    {family} daddr {web} tcp dport 80 dnat to {}
                    {family} daddr {admin} tcp dport 80 dnat to {}
                    {family} daddr {remote} tcp dport 80 dnat to {}
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat; policy accept;
                    jump mark-for-masquerade
                }}
            }}\n",
            to(server, 8080),
            to(server, 81),
            to(far, 8080),
        );
    }
    world.nft(node, &script);
}

#[test]
fn a_pod_reaches_itself() {
    let world = World::new(&pods());
    services(&world, 0);
    services(&world, 1);
    let rows = [
        "server server tcp 80 yes",
        "server server udp 53 yes",
        "server server icmp 0 yes",
        // Through a Service: the node turns the packet round.
        "server 10.96.0.1 tcp 80 yes",
        "server fd96::1 tcp 80 yes",
        "far 10.96.0.3 tcp 80 yes",
        "far fd96::3 tcp 80 yes",
        "client 10.96.0.1 tcp 80 no",
        "client fd96::1 tcp 80 no",
        "server 10.96.0.3 tcp 80 no",
        "server fd96::3 tcp 80 no",
    ];
    world.control(&rows);
    world.apply(&[policy("deny", "app: server", NOTHING)]);
    world.check("with rules", &rows);
}

const SERVICE_ROWS: [&str; 12] = [
    "client 10.96.0.1 tcp 80 yes",
    "client fd96::1 tcp 80 yes",
    "client 10.96.0.3 tcp 80 yes",
    "client fd96::3 tcp 80 yes",
    "client 10.96.0.2 tcp 80 no",
    "client fd96::2 tcp 80 no",
    "client server tcp 8080 yes",
    "client server tcp 80 no",
    "client far tcp 8080 yes",
    "client far tcp 80 no",
    "client far tcp 81 no",
    "other other tcp 80 yes",
];

/// A rule for the address of a Service allows nothing; one for the pod behind it does, on the pod's port.
#[test]
fn egress_is_judged_behind_the_service() {
    let world = World::new(&pods());
    services(&world, 0);
    world.control(&SERVICE_ROWS);
    let rule = "  policyTypes: [Egress]\n  egress:\n\
        \x20 - {to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 8080}]}\n\
        \x20 - {to: [{ipBlock: {cidr: 10.96.0.0/16}}, {ipBlock: {cidr: \"fd96::/16\"}}]}\n";
    world.apply(&[policy("client", "app: client", rule)]);
    world.check("with rules", &SERVICE_ROWS);
}

#[test]
fn ingress_is_judged_behind_the_service() {
    let world = World::new(&pods());
    services(&world, 0);
    services(&world, 1);
    let rows: Vec<&str> = SERVICE_ROWS
        .into_iter()
        .chain(["other 10.96.0.1 tcp 80 no", "other fd96::1 tcp 80 no", "other 10.96.0.3 tcp 80 no"])
        .collect();
    world.control(&rows);
    let rule = "  policyTypes: [Ingress]\n  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}]\n";
    world.apply(&[policy("server", "app: server", rule)]);
    world.check("with rules", &rows);
}
