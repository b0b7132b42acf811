//! Others' rules, and traffic that is none of ours.

use super::world::{NOTHING, OUTSIDE, World, cluster, policy};
use std::process::Command;

fn pods() -> String {
    cluster(&[
        ("client", 0, "app: client", ""),
        ("server", 0, "app: server", ""),
        ("open", 1, "app: other", ""),
        ("other", 0, "app: other", ""),
    ])
}

fn server() -> String {
    let spec = "  policyTypes: [Ingress]\n  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}, {port: 81}]}]\n";
    policy("server", "app: server", spec)
}

/// As kube-proxy and a firewall write them: Services, and a port that nobody may use.
const OTHERS: &str = "
    for t in iptables ip6tables; do
        case $t in iptables) service=10.96.0.1 to=10.1.0.2:8080 ;; *) service=fd96::1 to=[fd00:1:0::2]:8080 ;; esac
        $t -w -t nat -N KUBE-SERVICES &&
        $t -w -t nat -A PREROUTING -m comment --comment services -j KUBE-SERVICES &&
        $t -w -t nat -A KUBE-SERVICES -d $service -p tcp --dport 80 -j DNAT --to-destination $to &&
        $t -w -A FORWARD -p tcp --dport 81 -j DROP &&
        $t -w -A FORWARD -j ACCEPT || exit 1
    done
    nft add table inet other
    nft add chain inet other forward '{ type filter hook forward priority -20; policy accept; }'
    nft add rule inet other forward udp dport 54 drop
";

/// Everybody's rules but ours.
const LIST: &str = "(iptables -w -S; iptables -w -t nat -S; ip6tables -w -S; ip6tables -w -t nat -S; nft list table inet other) | \
                    grep -v NETPOLC";

#[test]
fn others_rules_stay_and_work() {
    let world = World::new(&pods());
    let rows = [
        "client 10.96.0.1 tcp 80 yes",
        "client fd96::1 tcp 80 yes",
        "client server tcp 8080 yes",
        // Allowed by us, not by the firewall.
        "client server tcp 81 no",
        "client open udp 54 no",
        // Allowed by the firewall, not by us.
        "other 10.96.0.1 tcp 80 no",
        "other fd96::1 tcp 80 no",
        "other server tcp 8080 no",
        "client server udp 53 no",
        "client other tcp 80 yes",
    ];
    let plain = |row: &&&str| !row.contains("96");
    world.control(&rows.iter().filter(plain).copied().collect::<Vec<_>>());
    world.sh(0, OTHERS);
    let before = world.sh(0, LIST);
    world.check(
        "without our rules",
        &[
            "other 10.96.0.1 tcp 80 yes",
            "other fd96::1 tcp 80 yes",
            "client server tcp 81 no",
            "client server udp 53 yes",
        ],
    );
    world.apply(&[server()]);
    world.check("with rules", &rows);
    assert_eq!(world.sh(0, LIST), before);
    world.apply(&[server(), policy("deny", "app: none", NOTHING)]);
    world.apply(&[policy("deny", "app: server", NOTHING)]);
    world.check(
        "after a change",
        &["client 10.96.0.1 tcp 80 no", "client server tcp 8080 no", "other open tcp 80 yes"],
    );
    assert_eq!(world.sh(0, LIST), before);
}

#[test]
fn pods_that_nobody_isolates_are_left_alone() {
    let rows = [
        "client open tcp 80 yes",
        "open client udp 53 yes",
        "other open sctp 7777 yes",
        "open other icmp 0 yes",
        "203.0.113.7 10.1.1.3 tcp 80 yes",
        "2001:db8::7 fd00:1:1::3 tcp 80 yes",
        "open 203.0.113.7 udp 53 yes",
        "beta client tcp 80 yes",
        "client beta tcp 80 yes",
        "alpha beta icmp 0 yes",
        "client server tcp 80 no",
    ];
    let world = World::new(&pods());
    world.control(&rows);
    world.apply(&[policy("deny", "app: server", NOTHING)]);
    world.check("with rules", &rows);
}

/// The node as a router between others: the fabric sends what comes from outside hosts through node alpha.
#[test]
fn traffic_that_only_passes_through() {
    let world = World::new(&pods());
    let detour = "
        for i in 0 2; do ip rule add iif x$i lookup 100 && ip -6 rule add iif x$((i + 1)) lookup 100 || exit 1; done
        ip route add 203.0.113.0/24 via 169.254.1.1 dev n0 onlink table 100 &&
        ip -6 route add 2001:db8::/32 via fe80::1 dev n0 onlink table 100
    ";
    let done =
        world.sandbox.in_fabric(|| Command::new("sh").args(["-ec", detour]).output().unwrap()).unwrap();
    assert!(done.status.success(), "{done:?}");
    let rows = [
        format!("{} {} tcp 80 yes", OUTSIDE[0], OUTSIDE[2]),
        format!("{} {} udp 53 yes", OUTSIDE[2], OUTSIDE[0]),
        format!("{} {} icmp 0 yes", OUTSIDE[1], OUTSIDE[3]),
        format!("{} {} sctp 7777 yes", OUTSIDE[3], OUTSIDE[1]),
        "203.0.113.7 10.1.0.2 tcp 80 no".to_owned(),
        "2001:db8::7 fd00:1:0::2 tcp 80 no".to_owned(),
    ];
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    world.control(&rows);
    world.apply(&[policy("deny", "app: server", NOTHING)]);
    world.check("with rules", &rows);
    // They do pass through: a rule at the node stops them.
    world.nft(
        0,
        "table inet stop {\nchain forward {\ntype filter hook forward priority 0; policy drop;\n}\n}\n",
    );
    let stopped: Vec<String> = rows.iter().map(|row| row.replace(" yes", " no")).collect();
    world.check("stopped", &stopped.iter().map(String::as_str).collect::<Vec<_>>());
}
