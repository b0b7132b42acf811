//! Packets made by hand: segments without a connection, false sources, fragments, neighbour discovery.

use super::world::{NOTHING, PATIENCE, World, cluster, ip, policy};
use netpolc_sandbox::{Content, DEFAULT_TIMEOUT, RawPacket, sctp_chunk, tcp_flags};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

fn world() -> World {
    World::new(&cluster(&[
        ("client", 0, "app: client", ""),
        ("near", 0, "app: server", ""),
        ("far", 1, "app: server", ""),
        ("open", 0, "app: other", ""),
        ("open-far", 1, "app: other", ""),
    ]))
}

/// Servers take everything from the client.
fn servers() -> String {
    let spec =
        "  policyTypes: [Ingress]\n  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]\n";
    policy("server", "app: server", spec)
}

/// Whether a packet of `from` with this source arrives at `to`.
fn arrives(world: &World, from: &str, source: IpAddr, to: &str, content: Content, wanted: bool) {
    let (host, at) = (world.host(from), world.host(to));
    let packet =
        RawPacket { from: host, source, to: world.addr(to, source.is_ipv4()), port: 80, content, at };
    let patience = if wanted { PATIENCE } else { DEFAULT_TIMEOUT };
    let seen = world.sandbox.observe(&packet, patience).unwrap();
    assert_eq!(
        seen.is_some(),
        wanted,
        "{from} as {source} to {to}: {packet:?}\n{}",
        world.sh(0, "nft list ruleset")
    );
}

#[test]
fn segments_from_the_middle_of_a_connection() {
    let world = world();
    let check = |isolated: bool| {
        for v4 in [true, false] {
            for content in [
                Content::Tcp(tcp_flags::ACK),
                Content::Tcp(tcp_flags::SYN | tcp_flags::ACK),
                Content::Tcp(tcp_flags::FIN | tcp_flags::ACK),
                Content::Tcp(tcp_flags::RST),
                Content::Sctp(sctp_chunk::HEARTBEAT),
                Content::Sctp(sctp_chunk::HEARTBEAT_ACK),
                Content::Sctp(sctp_chunk::SHUTDOWN_ACK),
                Content::Sctp(sctp_chunk::COOKIE_ECHO),
            ] {
                let pairs = [
                    ("client", "near", !isolated),
                    ("client", "far", !isolated),
                    ("near", "open", !isolated),
                    ("far", "client", !isolated),
                    ("client", "open", true),
                    ("open", "open-far", true),
                ];
                for (from, to, wanted) in pairs {
                    arrives(&world, from, world.addr(from, v4), to, content, wanted);
                }
            }
            // What opens a connection.
            for content in [Content::Tcp(tcp_flags::SYN), Content::Sctp(sctp_chunk::INIT)] {
                for to in ["near", "far"] {
                    arrives(&world, "client", world.addr("client", v4), to, content, true);
                }
            }
        }
    };
    check(false);
    world.apply(&[servers()]);
    check(true);
}

#[test]
fn false_sources() {
    let world = world();
    let check = |ruled: bool| {
        for v4 in [true, false] {
            let others = [
                world.addr("near", v4),
                world.addr("open", v4),
                world.addr("open-far", v4),
                ip(if v4 { "198.51.100.9" } else { "2001:db8:bad::9" }),
            ];
            // What opens no connection, and what is invalid to conntrack, between addresses that nobody isolates.
            for content in [
                Content::Tcp(tcp_flags::ACK),
                Content::Tcp(tcp_flags::SYN | tcp_flags::ACK),
                Content::Sctp(sctp_chunk::HEARTBEAT),
            ] {
                arrives(&world, "client", world.addr("open", v4), "open-far", content, !ruled);
                arrives(&world, "client", world.addr("client", v4), "open-far", content, true);
            }
            for content in [Content::Udp, Content::Tcp(tcp_flags::SYN)] {
                for source in others {
                    // Also to and from pods that nobody isolates.
                    arrives(&world, "client", source, "far", content, !ruled);
                    if source != world.addr("open-far", v4) {
                        arrives(&world, "client", source, "open-far", content, !ruled);
                    }
                }
                arrives(&world, "client", world.addr("beta", v4), "near", content, !ruled);
                arrives(&world, "client", world.addr("client", v4), "far", content, true);
                arrives(&world, "client", world.addr("client", v4), "open-far", content, true);
            }
        }
    };
    check(false);
    world.apply(&[servers()]);
    check(true);
}

/// What another hand has told conntrack to leave alone opens no connection either, so no rule about connections is about it.
#[test]
fn packets_that_are_not_tracked() {
    let world = world();
    let check = |isolated: bool| {
        for v4 in [true, false] {
            for content in [Content::Udp, Content::Tcp(tcp_flags::SYN)] {
                // Allowed, if it were tracked, and from a pod that may send to everybody.
                for (from, to) in [("client", "near"), ("client", "far"), ("near", "open"), ("far", "client")]
                {
                    arrives(&world, from, world.addr(from, v4), to, content, !isolated);
                }
                arrives(&world, "client", world.addr("client", v4), "open", content, true);
                arrives(&world, "open", world.addr("open", v4), "open-far", content, true);
            }
        }
    };
    check(false);
    world.apply(&[servers()]);
    arrives(&world, "client", world.addr("client", true), "near", Content::Udp, true);
    for node in [0, 1] {
        world.nft(
            node,
            "table inet other {\n\tchain raw {\n\t\ttype filter hook prerouting priority raw; policy accept;\n\
             \t\tnotrack\n\t}\n}\n",
        );
    }
    check(true);
}

/// Whether a datagram that needs two fragments comes back.
fn large_datagram(world: &World, from: &str, to: IpAddr, wanted: bool) {
    let probe = world.probe(from, to, "udp", 53);
    let socket = world.sandbox.connect(&probe, PATIENCE).unwrap().into_udp_socket().unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(if wanted { PATIENCE } else { DEFAULT_TIMEOUT })).unwrap();
    let sent = [7; 1_900];
    socket.send(&sent).unwrap();
    let mut back = [0; 2_048];
    let len = socket.recv(&mut back).unwrap_or(0);
    assert_eq!(back[..len] == sent, wanted, "{from} to {to}: {len} bytes");
}

#[test]
fn fragments() {
    let world = world();
    let check = |ruled: bool| {
        for v4 in [true, false] {
            for to in ["near", "far"] {
                large_datagram(&world, "client", world.addr(to, v4), true);
                large_datagram(&world, "open", world.addr(to, v4), !ruled);
            }
            large_datagram(&world, "open", world.addr("open-far", v4), true);
        }
    };
    check(false);
    let spec = "  policyTypes: [Ingress]\n  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 53, protocol: UDP}]}]\n";
    world.apply(&[policy("server", "app: server", spec)]);
    check(true);
}

/// Whether a neighbour solicitation, which a router does not usually forward, arrives.
fn solicitation_arrives(world: &World, from: &str, to: &str) -> bool {
    let to_addr = world.addr(to, false);
    let raw = || Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
    let watch: std::net::UdpSocket = world.sandbox.in_namespace(world.host(to), || raw().into()).unwrap();
    watch.set_read_timeout(Some(DEFAULT_TIMEOUT)).unwrap();
    // With the hop limit that a host gives it. Type 135, code 0; the kernel fills in the checksum. The target tells it from the kernel's own.
    let IpAddr::V6(target) = ip("2001:db8::1357") else { panic!() };
    let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
    let send = || {
        let socket = raw();
        socket.set_unicast_hops_v6(255).unwrap();
        socket.send_to(&message, &SockAddr::from(SocketAddr::new(to_addr, 0))).unwrap()
    };
    world.sandbox.in_namespace(world.host(from), send).unwrap();
    let start = Instant::now();
    let mut buffer = [0; 256];
    while start.elapsed() < PATIENCE {
        match watch.recv(&mut buffer) {
            Ok(len) if buffer[0] == 135 && buffer[8..len] == message[8..] => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}

/// What a router has forwarded is no neighbour discovery, whatever it says: it would be a way out for a pod that may send
/// nothing, and a way in. (What crosses a bridge is one; the loader's tests `bridged` have it.)
#[test]
fn neighbour_discovery_that_was_routed() {
    let world = world();
    let rows = ["client near icmp 0 no", "client far icmp 0 no"];
    world.control(&rows);
    let check = |isolated: bool| {
        for (from, to, wanted) in [
            ("client", "near", !isolated),
            ("far", "client", !isolated),
            ("near", "open-far", !isolated),
            ("client", "open-far", true),
        ] {
            assert_eq!(solicitation_arrives(&world, from, to), wanted, "{from} to {to}");
        }
    };
    check(false);
    world.apply(&[policy("deny", "app: server", NOTHING)]);
    world.check("with rules", &rows);
    check(true);
}
