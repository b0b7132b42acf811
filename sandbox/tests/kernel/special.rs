//! Connections held open, packets made by hand, and errors a caller can meet.

use std::process::Command;

use crate::common::{PATIENCE, as_root, forward, ip, nft, probe, usual};
use netpolc_sandbox::{
    Content, DEFAULT_TIMEOUT, Error, HostId, Outcome, Protocol, RawPacket, Sandbox, sctp_chunk, tcp_flags,
};

const CONTENTS: [Content; 6] = [
    Content::Udp,
    Content::Tcp(tcp_flags::SYN),
    Content::Tcp(tcp_flags::ACK),
    Content::Tcp(tcp_flags::SYN | tcp_flags::ACK),
    Content::Sctp(sctp_chunk::INIT),
    Content::Sctp(sctp_chunk::HEARTBEAT),
];

/// A packet from pod a to pod c, with a forged source.
fn forged(v4: bool, content: Content) -> RawPacket {
    let (source, to) = if v4 { ("198.51.100.9", "10.1.1.1") } else { ("2001:db8:bad::9", "fd00:1:1::1") };
    let (from, at) = (HostId::Pod(0), HostId::Pod(2));
    RawPacket { from, source: ip(source), to: ip(to), port: 4444, content, at }
}

#[test]
fn forged_packets_are_seen_where_they_arrive() {
    as_root("special::forged_packets_are_seen_where_they_arrive", || {
        let sandbox = Sandbox::build(&usual()).unwrap();
        for v4 in [true, false] {
            for content in CONTENTS {
                let packet = forged(v4, content);
                assert_eq!(sandbox.observe(&packet, PATIENCE).unwrap(), Some(packet.source), "{packet:?}");
                let elsewhere = RawPacket { at: HostId::Pod(1), ..packet };
                assert_eq!(sandbox.observe(&elsewhere, DEFAULT_TIMEOUT).unwrap(), None, "{elsewhere:?}");
            }
        }
        nft(
            &sandbox,
            1,
            &forward(
                "ip saddr 198.51.100.9 drop
                ip6 saddr 2001:db8:bad::9 drop",
            ),
        );
        for v4 in [true, false] {
            for content in CONTENTS {
                let packet = forged(v4, content);
                assert_eq!(sandbox.observe(&packet, DEFAULT_TIMEOUT).unwrap(), None, "{packet:?}");
            }
        }
    });
}

#[test]
fn a_translated_source_is_reported() {
    as_root("special::a_translated_source_is_reported", || {
        let sandbox = Sandbox::build(&usual()).unwrap();
        nft(
            &sandbox,
            0,
            "table ip test {
                chain post { type nat hook postrouting priority 100; oifname uplink masquerade; }
            }",
        );
        for content in [Content::Udp, Content::Tcp(tcp_flags::SYN)] {
            let packet = RawPacket { source: ip("10.1.0.1"), ..forged(true, content) };
            let seen = sandbox.observe(&packet, PATIENCE).unwrap();
            assert_eq!(seen, Some(ip("192.168.9.1")), "{packet:?}");
        }
    });
}

/// conntrack counts a bare ACK as new and a SYN/ACK as invalid; three chunks of SCTP beside INIT as new, and others as
/// invalid. Only packets with right checksums show it.
#[test]
fn conntrack_states_of_segments_without_a_connection() {
    as_root("special::conntrack_states_of_segments_without_a_connection", || {
        let sandbox = Sandbox::build(&usual()).unwrap();
        nft(&sandbox, 1, &forward("ct state invalid drop"));
        for v4 in [true, false] {
            for (content, wanted) in [
                (Content::Tcp(tcp_flags::SYN), true),
                (Content::Tcp(tcp_flags::ACK), true),
                (Content::Tcp(tcp_flags::SYN | tcp_flags::ACK), false),
                (Content::Sctp(sctp_chunk::INIT), true),
                (Content::Sctp(sctp_chunk::HEARTBEAT), true),
                (Content::Sctp(sctp_chunk::HEARTBEAT_ACK), true),
                (Content::Sctp(sctp_chunk::SHUTDOWN_ACK), true),
                (Content::Sctp(sctp_chunk::COOKIE_ECHO), false),
                (Content::Sctp(sctp_chunk::DATA), false),
            ] {
                let seen = sandbox.observe(&forged(v4, content), DEFAULT_TIMEOUT).unwrap();
                assert_eq!(seen.is_some(), wanted, "{content:?}");
            }
        }
    });
}

#[test]
fn an_open_connection_works_sticks_and_works_again() {
    as_root("special::an_open_connection_works_sticks_and_works_again", || {
        let sandbox = Sandbox::build(&usual()).unwrap();
        // A rule that asks for the state makes conntrack see the connections from their start.
        nft(&sandbox, 0, &forward("ct state new accept").replace("test", "watch"));
        for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53)] {
            for to in ["10.1.1.1", "fd00:1:1::1"] {
                let flow = probe(HostId::Pod(0), to, protocol, port);
                let mut connection = sandbox.connect(&flow, PATIENCE).unwrap();
                assert_eq!(connection.exchange(PATIENCE), Outcome::Reached);
                nft(&sandbox, 0, &forward("ct state != { established, related } drop"));
                assert_eq!(connection.exchange(PATIENCE), Outcome::Reached, "established");
                assert_eq!(sandbox.probe_all(&[flow], DEFAULT_TIMEOUT), [Outcome::NotReached], "new");
                nft(&sandbox, 0, "delete table inet test");
                nft(&sandbox, 0, &forward("drop"));
                assert_eq!(connection.exchange(DEFAULT_TIMEOUT), Outcome::NotReached, "stuck");
                if protocol == Protocol::Tcp {
                    assert_eq!(sandbox.connect(&flow, DEFAULT_TIMEOUT).unwrap_err(), Outcome::NotReached);
                }
                nft(&sandbox, 0, "delete table inet test");
                assert_eq!(connection.exchange(PATIENCE), Outcome::Reached, "open again");
            }
        }
        let closed = probe(HostId::Pod(0), "10.1.1.1", Protocol::Tcp, 999);
        assert_eq!(sandbox.connect(&closed, PATIENCE).unwrap_err(), Outcome::Refused);
    });
}

#[test]
fn programs_run_in_the_node_and_closures_in_any_host() {
    as_root("special::programs_run_in_the_node_and_closures_in_any_host", || {
        let sandbox = Sandbox::build(&usual()).unwrap();
        let output = sandbox.run_in_node(1, Command::new("cat"), b"some input").unwrap();
        assert_eq!(output.stdout, b"some input");
        let devices = |host| {
            let read = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            sandbox.in_namespace(host, read).unwrap()
        };
        assert!(devices(HostId::Node(0)).contains("p1:") && !devices(HostId::Node(0)).contains("p2:"));
        assert!(devices(HostId::Pod(2)).contains("eth0:"));
        let missing = sandbox.run_in_node(2, Command::new("cat"), b"");
        assert!(matches!(missing, Err(Error::Spec(_))), "{missing:?}");
        let panicked = sandbox.in_namespace(HostId::Pod(0), || assert_eq!(1, 2));
        assert!(matches!(panicked, Err(Error::Panicked)), "{panicked:?}");
    });
}
