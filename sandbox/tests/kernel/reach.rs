//! What probes find without rules and with rules, against a real kernel.

use std::time::{Duration, Instant};

use crate::common::{LISTEN, PATIENCE, all_probes, as_root, forward, ip, nft, probe, probe_patiently, usual};
use netpolc_sandbox::{DEFAULT_TIMEOUT, HostId, NodeSpec, Outcome, PodSpec, Probe, Protocol, Sandbox, Spec};

#[test]
fn without_rules_everything_is_reached() {
    as_root("reach::without_rules_everything_is_reached", || {
        let spec = usual();
        let sandbox = Sandbox::build(&spec).unwrap();
        let probes = all_probes(&spec);
        // Seven hosts; the dual-stack ones reach 12 addresses each, the single-stack ones 6.
        assert_eq!(probes.len(), 5 * (5 * 12 + 2 * 6));
        for (probe, outcome) in probes.iter().zip(probe_patiently(&sandbox, &probes)) {
            assert_eq!(outcome, Outcome::Reached, "{probe:?}");
        }
    });
}

#[test]
fn closed_ports_refuse_and_unowned_addresses_do_not_answer() {
    as_root("reach::closed_ports_refuse_and_unowned_addresses_do_not_answer", || {
        let sandbox = Sandbox::build(&usual()).unwrap();
        let a = HostId::Pod(0);
        for to in ["10.1.0.1", "10.1.0.2", "10.1.1.1", "fd00:1:1::1", "192.168.9.1", "203.0.113.7"] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let outcome = sandbox.probe_all(&[probe(a, to, protocol, 999)], PATIENCE).remove(0);
                assert_eq!(outcome, Outcome::Refused, "{to} {protocol}");
            }
        }
        for to in ["10.1.0.77", "fd00:1:1::77"] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp] {
                let outcome = sandbox.probe_all(&[probe(a, to, protocol, 80)], DEFAULT_TIMEOUT).remove(0);
                assert_eq!(outcome.arrived(), Some(false), "{to} {protocol}: {outcome:?}");
            }
        }
        let lost = probe(HostId::Pod(9), "10.1.0.1", Protocol::Tcp, 80);
        assert_eq!(sandbox.probe_all(&[lost], DEFAULT_TIMEOUT)[0].arrived(), None);
        let mixed = Probe { from_addr: Some(ip("10.1.0.1")), ..probe(a, "fd00:1:1::1", Protocol::Tcp, 80) };
        assert_eq!(sandbox.probe_all(&[mixed], DEFAULT_TIMEOUT)[0].arrived(), None);
    });
}

/// The kernel limits the rate of ICMP errors by default, to one a second for each destination.
#[test]
fn no_icmp_error_is_held_back() {
    as_root("reach::no_icmp_error_is_held_back", || {
        let sandbox = Sandbox::build(&usual()).unwrap();
        let probes: Vec<Probe> = (0..300)
            .flat_map(|_| ["10.1.1.1", "fd00:1:1::1", "192.168.9.1"])
            .map(|to| probe(HostId::Pod(0), to, Protocol::Udp, 999))
            .collect();
        for (probe, outcome) in probes.iter().zip(sandbox.probe_all(&probes, PATIENCE)) {
            assert_eq!(outcome, Outcome::Refused, "{probe:?}");
        }
    });
}

/// Drops on the way to pod b, on its node: TCP 80, UDP 53 and SCTP 7777 from pod a, echo requests of IPv6 from anywhere.
const DROPS: &str = "
    ip saddr 10.1.0.1 ip daddr 10.1.0.2 tcp dport 80 drop
    ip saddr 10.1.0.1 ip daddr 10.1.0.2 udp dport 53 drop
    ip saddr 10.1.0.1 ip daddr 10.1.0.2 sctp dport 7777 drop
    ip6 daddr fd00:1::2 icmpv6 type echo-request drop";

/// The same, as a function of the probe.
fn dropped(probe: &Probe) -> bool {
    // A packet from the pod to itself, or from its node, is not forwarded.
    let forwarded = !matches!(probe.from, HostId::Pod(1) | HostId::Node(0));
    match probe.protocol {
        Protocol::Icmp => forwarded && probe.to == ip("fd00:1::2"),
        _ => probe.from == HostId::Pod(0) && probe.to == ip("10.1.0.2") && probe.port != 81,
    }
}

#[test]
fn exactly_the_dropped_probes_fail() {
    as_root("reach::exactly_the_dropped_probes_fail", || {
        // Pods of node 0 are fd00:1:0::n, which is written fd00:1::n.
        let spec = usual();
        let sandbox = Sandbox::build(&spec).unwrap();
        nft(&sandbox, 0, &forward(DROPS));
        let probes = all_probes(&spec);
        let expected: Vec<_> = probes.iter().map(|probe| !dropped(probe)).collect();
        assert_eq!(expected.iter().filter(|reached| !**reached).count(), 3 + 4);
        for ((probe, outcome), reached) in probes.iter().zip(probe_patiently(&sandbox, &probes)).zip(expected)
        {
            let expected = if reached { Outcome::Reached } else { Outcome::NotReached };
            assert_eq!(outcome, expected, "{probe:?}");
        }
        // Node 1 has no such rules; and once node 0 has none, everything passes again.
        nft(&sandbox, 0, "delete table inet test");
        for (probe, outcome) in probes.iter().zip(probe_patiently(&sandbox, &probes)) {
            assert_eq!(outcome, Outcome::Reached, "{probe:?}");
        }
    });
}

/// With conntrack and a rule for invalid packets, wrong checksums of our own making would be dropped.
#[test]
fn conntrack_finds_nothing_invalid() {
    as_root("reach::conntrack_finds_nothing_invalid", || {
        let spec = usual();
        let sandbox = Sandbox::build(&spec).unwrap();
        for node in 0..2 {
            nft(
                &sandbox,
                node,
                &forward(
                    "ct state established,related accept
                    ct state invalid drop
                    ct state new accept
                    drop",
                ),
            );
        }
        let probes = all_probes(&spec);
        for (probe, outcome) in probes.iter().zip(probe_patiently(&sandbox, &probes)) {
            assert_eq!(outcome, Outcome::Reached, "{probe:?}");
        }
        // The ICMP error of a closed port is related to the flow and passes back.
        for to in ["10.1.1.1", "fd00:1:1::1"] {
            let closed = probe(HostId::Pod(0), to, Protocol::Udp, 999);
            assert_eq!(sandbox.probe_all(&[closed], PATIENCE), [Outcome::Refused], "{to}");
        }
    });
}

#[test]
fn reject_and_output_drops_are_told_from_silence() {
    as_root("reach::reject_and_output_drops_are_told_from_silence", || {
        let sandbox = Sandbox::build(&usual()).unwrap();
        nft(
            &sandbox,
            0,
            "table inet test {
                chain forward {
                    type filter hook forward priority 0; policy accept;
                    udp dport 53 reject with icmpx type admin-prohibited
                    tcp dport 80 reject with tcp reset
                }
                chain output {
                    type filter hook output priority 0; policy accept;
                    meta l4proto { tcp, udp } drop
                }
            }",
        );
        let outcome = |from, protocol, port, to: &str| {
            sandbox.probe_all(&[probe(from, to, protocol, port)], DEFAULT_TIMEOUT).remove(0)
        };
        let (a, node) = (HostId::Pod(0), HostId::Node(0));
        for to in ["10.1.1.1", "fd00:1:1::1"] {
            let udp = outcome(a, Protocol::Udp, 53, to);
            assert!(matches!(udp, Outcome::Unreachable(_)), "{udp:?}");
            assert_eq!(outcome(node, Protocol::Udp, 53, to), Outcome::NotReached);
            assert_eq!(outcome(node, Protocol::Tcp, 81, to), Outcome::NotReached);
            assert_eq!(outcome(node, Protocol::Icmp, 0, to), Outcome::Reached);
        }
        assert_eq!(outcome(a, Protocol::Tcp, 81, "10.1.1.1"), Outcome::Reached);
    });
}

/// A service address that belongs to no host, translated on the node.
#[test]
fn probes_follow_translated_addresses() {
    as_root("reach::probes_follow_translated_addresses", || {
        let sandbox = Sandbox::build(&usual()).unwrap();
        nft(
            &sandbox,
            0,
            "table ip test {
                chain pre {
                    type nat hook prerouting priority -100;
                    ip daddr 10.96.0.1 tcp dport 8080 dnat to 10.1.1.1:80
                    ip daddr 10.96.0.1 udp dport 8080 dnat to 10.1.1.1:53
                    ip daddr 10.96.0.1 sctp dport 8080 dnat to 10.1.1.1:7777
                }
            }",
        );
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let service = probe(HostId::Pod(0), "10.96.0.1", protocol, 8080);
            assert_eq!(sandbox.probe_all(&[service], PATIENCE), [Outcome::Reached], "{protocol}");
            let other = probe(HostId::Pod(2), "10.96.0.1", protocol, 8080);
            assert_ne!(sandbox.probe_all(&[other], DEFAULT_TIMEOUT), [Outcome::Reached], "{protocol}");
        }
    });
}

#[test]
fn two_sandboxes_do_not_disturb_each_other() {
    as_root("reach::two_sandboxes_do_not_disturb_each_other", || {
        let spec = usual();
        let (one, two) = (Sandbox::build(&spec).unwrap(), Sandbox::build(&spec).unwrap());
        nft(&one, 0, &forward("drop"));
        let probes: Vec<_> = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp]
            .into_iter()
            .flat_map(|protocol| {
                let port = LISTEN.iter().find(|(p, _)| *p == protocol).map_or(0, |&(_, port)| port);
                ["10.1.0.2", "fd00:1:1::1"].map(|to| probe(HostId::Pod(0), to, protocol, port))
            })
            .collect();
        std::thread::scope(|scope| {
            let blocked = scope.spawn(|| one.probe_all(&probes, DEFAULT_TIMEOUT));
            let open = scope.spawn(|| probe_patiently(&two, &probes));
            assert!(blocked.join().unwrap().iter().all(|outcome| *outcome == Outcome::NotReached));
            assert!(open.join().unwrap().iter().all(|outcome| *outcome == Outcome::Reached));
        });
        drop(one);
        assert!(probe_patiently(&two, &probes).iter().all(|outcome| *outcome == Outcome::Reached));
    });
}

/// 120 pods and 5,000 probes, half of which (those over IPv6) meet silence. The bounds are many times what an idle
/// machine needs.
#[test]
fn many_pods_and_probes_take_little_time() {
    as_root("reach::many_pods_and_probes_take_little_time", || {
        let spec = many_pods();
        let start = Instant::now();
        let sandbox = Sandbox::build(&spec).unwrap();
        let built = start.elapsed();
        for node in 0..spec.nodes.len() {
            nft(&sandbox, node, &forward("ip6 daddr fd00:1::/64 drop"));
        }
        let probes = many_probes(&spec);
        assert!(probes.len() > 4_900);
        let start = Instant::now();
        let outcomes = sandbox.probe_all(&probes, DEFAULT_TIMEOUT);
        let probed = start.elapsed();
        let retries: Vec<Probe> = probes
            .iter()
            .zip(&outcomes)
            .filter(|(probe, outcome)| probe.to.is_ipv4() && **outcome != Outcome::Reached)
            .map(|(probe, _)| *probe)
            .collect();
        let count = probes.len();
        assert!(retries.len() < 250, "{} of {count} probes were too slow", retries.len());
        for (probe, outcome) in retries.iter().zip(sandbox.probe_all(&retries, PATIENCE)) {
            assert_eq!(outcome, Outcome::Reached, "{probe:?}");
        }
        for (probe, outcome) in probes.iter().zip(&outcomes).filter(|(probe, _)| probe.to.is_ipv6()) {
            assert_eq!(*outcome, Outcome::NotReached, "{probe:?}");
        }
        assert!(built < Duration::from_secs(20), "120 pods took {built:?}");
        assert!(probed < Duration::from_secs(40), "{count} probes took {probed:?}");
    });
}

fn many_pods() -> Spec {
    let nodes = (1..=3).map(|n| NodeSpec {
        addrs: vec![ip(&format!("192.168.9.{n}")), ip(&format!("fd99::{n}"))],
        ..NodeSpec::default()
    });
    let pods = (0..120).map(|n| PodSpec {
        node: n % 3,
        addrs: vec![ip(&format!("10.1.0.{}", n + 1)), ip(&format!("fd00:1::{:x}", n + 1))],
        listen: LISTEN.to_vec(),
        ..PodSpec::default()
    });
    Spec { nodes: nodes.collect(), pods: pods.collect(), outside: vec![] }
}

/// Probes of all protocols in both families, none of them from a pod to itself.
fn many_probes(spec: &Spec) -> Vec<Probe> {
    let kinds: Vec<_> = LISTEN.into_iter().chain([(Protocol::Icmp, 0)]).collect();
    (0..5_000usize)
        .map(|n| (n, n % 120, (n * 7 + n / 120 + 1) % 120))
        .filter(|(_, from, to)| from != to)
        .map(|(n, from, to)| {
            let (protocol, port) = kinds[n % kinds.len()];
            let to = spec.pods[to].addrs[n / 2 % 2];
            Probe { from: HostId::Pod(from), from_addr: None, to, protocol, port }
        })
        .collect()
}
