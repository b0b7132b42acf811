//! Allowed and denied, replies and errors, ports and protocols.

use super::world::{NOTHING, PATIENCE, World, cluster, policy, trial};
use netpolc_sandbox::{DEFAULT_TIMEOUT, Outcome};
use std::io::{Read as _, Write as _};

fn from_client(ports: &str) -> String {
    format!(
        "  policyTypes: [Ingress]\n  ingress: [{{from: [{{podSelector: {{matchLabels: {{name: client}}}}}}]{ports}}}]\n"
    )
}

fn to_servers(ports: &str) -> String {
    format!(
        "  policyTypes: [Ingress, Egress]\n  egress: [{{to: [{{podSelector: {{matchLabels: {{app: server}}}}}}]{ports}}}]\n"
    )
}

const PORT_80: &str = ", ports: [{port: 80}, {port: 53, protocol: UDP}]";

fn shop() -> String {
    cluster(&[
        ("client", 0, "app: client", ""),
        ("near", 0, "app: server", ""),
        ("far", 1, "app: server", ""),
        ("other", 1, "app: other", ""),
    ])
}

fn both_ends() -> Vec<String> {
    vec![
        policy("client", "app: client", &to_servers(PORT_80)),
        policy("server", "app: server", &from_client(PORT_80)),
    ]
}

#[test]
fn allowed_denied_and_replies() {
    let rows = [
        "client near tcp 80 yes",
        "client far tcp 80 yes",
        "client near udp 53 yes",
        "client far udp 53 yes",
        "client near tcp 81 no",
        "client far tcp 81 no",
        "client far udp 54 no",
        "client near sctp 80 no",
        "client other tcp 80 no",
        "near client tcp 80 no",
        "far client udp 53 no",
        "other near tcp 80 no",
        "other far tcp 80 no",
        "other other tcp 80 yes",
        "203.0.113.7 10.1.1.3 tcp 80 no",
        "2001:db8::7 fd00:1:0::2 tcp 80 no",
        "far 203.0.113.7 tcp 80 yes",
        "client 203.0.113.7 tcp 80 no",
        "203.0.113.7 10.1.1.4 tcp 80 yes",
        "2001:db8::7 fd00:1:1::4 tcp 80 yes",
    ];
    let world = trial(&shop(), &both_ends(), &rows);
    // Much data from the server, which may open nothing to the client.
    for v4 in [true, false] {
        for server in ["near", "far"] {
            let probe = world.probe("client", world.addr(server, v4), "tcp", 80);
            let mut stream = world.sandbox.connect(&probe, PATIENCE).unwrap().into_tcp_stream().unwrap();
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            for round in 0..64u8 {
                stream.write_all(&[round; 1024]).unwrap();
                let mut back = [0; 1024];
                stream.read_exact(&mut back).unwrap();
                assert_eq!(back, [round; 1024]);
            }
        }
    }
}

/// The client accepts nothing, but hears that its datagram met a closed port.
#[test]
fn errors_about_an_allowed_flow_come_back() {
    let world = World::new(&shop());
    let ports = ", ports: [{port: 999, protocol: UDP}]";
    let check = |port, wanted: &Outcome| {
        for (v4, server) in [(true, "near"), (false, "near"), (true, "far"), (false, "far")] {
            let probe = world.probe("client", world.addr(server, v4), "udp", port);
            let patience = if *wanted == Outcome::NotReached { DEFAULT_TIMEOUT } else { PATIENCE };
            assert_eq!(world.outcome(&probe, patience), *wanted, "{probe:?}");
        }
    };
    check(999, &Outcome::Refused);
    check(998, &Outcome::Refused);
    world.apply(&[
        policy("client", "app: client", &to_servers(ports)),
        policy("server", "app: server", &from_client(ports)),
    ]);
    check(999, &Outcome::Refused);
    check(998, &Outcome::NotReached);
}

#[test]
fn a_rule_with_ports_denies_ping() {
    let rows = ["client near icmp 0 no", "client far icmp 0 no", "client near tcp 80 yes"];
    trial(&shop(), &both_ends(), &rows);
}

#[test]
fn a_rule_without_ports_allows_ping() {
    let all =
        [policy("client", "app: client", &to_servers("")), policy("server", "app: server", &from_client(""))];
    let rows = [
        "client near icmp 0 yes",
        "client far icmp 0 yes",
        "client far sctp 7777 yes",
        "client far tcp 81 yes",
        "near client icmp 0 no",
        "far client icmp 0 no",
        "other far icmp 0 no",
    ];
    trial(&shop(), &all, &rows);
}

#[test]
fn named_ports_are_each_pods_own() {
    let pods = cluster(&[
        ("client", 0, "app: client", ""),
        ("a", 0, "app: server", "{name: web, containerPort: 8080}"),
        ("b", 1, "app: server", "{name: web, containerPort: 9090}"),
        ("c", 1, "app: server", "{name: web, containerPort: 53, protocol: UDP}"),
    ]);
    let rows = [
        "client a tcp 8080 yes",
        "client a tcp 9090 no",
        "client b tcp 9090 yes",
        "client b tcp 8080 no",
        "client c tcp 8080 no",
        "client c udp 53 no",
    ];
    let ingress = policy("server", "app: server", &from_client(", ports: [{port: web}]"));
    trial(&pods, &[ingress], &rows);
    let egress = policy("client", "app: client", &to_servers(", ports: [{port: web}]"));
    trial(&pods, &[egress], &rows);
}

#[test]
fn ranges_of_ports_end_where_they_say() {
    let ports = ", ports: [{port: 8000, endPort: 8010}]";
    let rows = [
        "client far tcp 7999 no",
        "client far tcp 8000 yes",
        "client far tcp 8005 yes",
        "client far tcp 8010 yes",
        "client far tcp 8011 no",
        "client near tcp 7999 no",
        "client near tcp 8000 yes",
        "client near tcp 8010 yes",
        "client near tcp 8011 no",
    ];
    trial(&shop(), &[policy("server", "app: server", &from_client(ports))], &rows);
    trial(&shop(), &[policy("client", "app: client", &to_servers(ports))], &rows);
}

#[test]
fn sctp_is_not_tcp() {
    let ports = ", ports: [{port: 7777, protocol: SCTP}, {port: 80}]";
    let rows = [
        "client far sctp 7777 yes",
        "client near sctp 7777 yes",
        "client far tcp 7777 no",
        "client far sctp 80 no",
        "client far tcp 80 yes",
        "other far sctp 7777 no",
    ];
    trial(&shop(), &[policy("server", "app: server", &from_client(ports))], &rows);
}

#[test]
fn default_deny_stops_everything_else() {
    let all = [policy("deny", "app: server", NOTHING)];
    let rows = [
        "client far tcp 80 no",
        "client near udp 53 no",
        "client near sctp 7777 no",
        "client far icmp 0 no",
        "near client tcp 80 no",
        "far client icmp 0 no",
        "near far udp 53 no",
        "client other tcp 80 yes",
        "other client icmp 0 yes",
    ];
    trial(&shop(), &all, &rows);
}
