//! Apply, status and remove where nobody interferes.

use crate::common::{Netns, SHAPE, a, b, bundle, bundle_with, c, fresh, marked, unnamed_b};
use netpolc_bundle::nft::{self, Elements, Family, Key};

#[test]
fn a_bundle_comes_into_force_once() {
    let netns = Netns::new();
    let bundle = bundle(&a());
    assert!(netns.load(&["status"], 1).contains("nothing in force"));
    netns.apply(&bundle, "applied: version ");
    let first = netns.sh("nft -a list ruleset");
    netns.apply(&bundle, "unchanged: version ");
    assert_eq!(netns.sh("nft -a list ruleset"), first);
    // The kernel has what the script says, and nothing else.
    let script = nft::parse(&marked(&a())).unwrap();
    for (family, table) in netns.tables() {
        assert_eq!(
            (&table.sets, &table.chains),
            (&script.tables[&family].sets, &script.tables[&family].chains)
        );
    }
    let version = nft::digest(&script).to_string();
    let human = netns.load(&["status"], 0);
    assert!(human.starts_with(&format!("in force: version {version}")), "{human}");
    assert!(human.contains("0 packets dropped by deny"), "{human}");
    let json = netns.load(&["status", "--format", "json"], 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["version"], version.as_str());
    assert_eq!(json["in_force"], true);
    assert_eq!(json["backend"], "nftables");
    assert_eq!(json["dataplanes"][0]["counts"]["ip.elements"], 16);
}

#[test]
fn a_moved_policy_changes_the_comments() {
    let netns = Netns::new();
    let at = |line: u32| {
        bundle(
            &a().replace("\" goto deny_c0c0", "")
                .replace("policies.yaml:12:3", &format!("policies.yaml:{line}:3")),
        )
    };
    netns.apply(&at(12), "applied");
    assert!(!netns.lock_file().exists());
    netns.apply(&at(12), "unchanged");
    netns.apply(&at(14), "comments updated");
    let listing = netns.sh("nft list ruleset");
    assert!(listing.contains("policies.yaml:14:3"), "{listing}");
    netns.apply(&at(14), "unchanged");
    netns.load(&["status"], 0);
}

#[test]
fn every_way_ends_where_a_fresh_start_ends() {
    let netns = Netns::new();
    for script in [a(), b(), c(), a(), unnamed_b(), a(), c(), b(), b()] {
        netns.load(&["apply", bundle(&script).path()], 0);
        assert_eq!(netns.tables(), fresh(&script));
        netns.load(&["status"], 0);
    }
}

#[test]
fn remove_leaves_nothing() {
    let netns = Netns::new();
    assert!(netns.load(&["remove"], 0).starts_with("unchanged"));
    netns.apply(&bundle(&a()), "applied");
    assert_eq!(netns.load(&["remove"], 0), "removed: table ip netpolc, table ip6 netpolc\n");
    assert_eq!(netns.sh("nft list ruleset"), "");
    netns.load(&["remove"], 0);
    netns.apply(&bundle(&c()), "applied");
    netns.load(&["remove"], 0);
    assert_eq!(netns.sh("nft list ruleset"), "");
}

/// Runs apply, which must fail, and change nothing.
fn check_failure(netns: &Netns, dir: &crate::common::Dir, status: i32, part: &str) {
    let before = netns.sh("nft -a list ruleset");
    let text = netns.load(&["apply", dir.path()], status);
    assert!(text.contains(part), "wanted {part:?}: {text}");
    assert_eq!(netns.sh("nft -a list ruleset"), before);
}

#[test]
fn failures_leave_the_old_rules() {
    let netns = Netns::new();
    for _ in 0..2 {
        let broken = bundle(&b());
        std::fs::write(broken.file("nftables.nft"), marked(&b()).replace("10.0.0.8", "10.0.0.6")).unwrap();
        check_failure(&netns, &broken, 2, "nftables.nft: its SHA-256");
        std::fs::remove_file(broken.file("manifest.json")).unwrap();
        check_failure(&netns, &broken, 2, "manifest.json: No such file");
        // A name that is a keyword of nft, which our parser does not mind.
        check_failure(&netns, &bundle(&b().replace("pods_6b6b", "drop")), 3, "syntax error");
        check_failure(&netns, &bundle(&c().replace("flush table ip netpolc\n", "")), 2, "does not flush");
        check_failure(&netns, &bundle("# nothing\n"), 2, "no table");
        // Then the same with rules in force.
        netns.apply(&bundle(&a()), "");
    }
    let text = netns.load(&["apply", "/nonexistent"], 2);
    assert!(text.contains("/nonexistent: No such file"), "{text}");
    netns.load(&["apply"], 2);
    netns.load(&["apply", "--backend", "ebpf", "x"], 2);
}

#[test]
fn without_the_capability_nothing_happens() {
    let netns = Netns::new();
    let dir = bundle(&a());
    let loader = env!("CARGO_BIN_EXE_netpol-loader");
    let drop = "setpriv --inh-caps -net_admin --bounding-set -net_admin";
    let output = netns.output(&format!("{drop} {loader} apply {}", dir.path()));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    assert_eq!(netns.sh("nft list ruleset"), "");
}

fn interfaces(netns: &Netns, family: Family) -> Vec<String> {
    let tables = netns.tables();
    let Elements::General(elements) = &tables[&family].sets["podif"].elements else { panic!() };
    let name = |key: &Vec<Key>| match &key[0] {
        Key::Ifname(name) => name.clone(),
        other => panic!("{other:?}"),
    };
    elements.keys().map(name).collect()
}

#[test]
fn interfaces_follow_the_routes_of_local_pods() {
    let netns = Netns::new();
    let dir = bundle_with(&a(), &[("shop/db", &["10.0.0.1", "fd00::1"]), ("shop/web", &["10.0.0.2"])]);
    let text = netns.apply(&dir, "applied");
    assert!(text.contains("2 of 2 local pods have no host route"), "{text}");
    assert_eq!(interfaces(&netns, Family::Ip).len(), 0);
    for name in ["veth-db", "veth-web", "veth-other"] {
        netns.sh(&format!("ip link add {name} type veth peer name p-{name} && ip link set {name} up"));
    }
    netns.sh("ip link set p-veth-db up && sleep 0.1 && ip route add 10.0.0.1/32 dev veth-db");
    netns.sh("ip -6 route add fd00::1/128 dev veth-db");
    netns.sh("ip link set p-veth-other up && ip route add 10.0.0.77/32 dev veth-other");
    let text = netns.apply(&dir, "interfaces of pods updated");
    assert!(text.contains("1 of 2 local pods have no host route"), "{text}");
    assert_eq!(interfaces(&netns, Family::Ip), ["veth-db"]);
    assert_eq!(interfaces(&netns, Family::Ip6), ["veth-db"]);
    netns.apply(&dir, "unchanged");
    // A pod more and a pod less; a foreign name in the set.
    netns.sh("ip link set p-veth-web up && ip route add 10.0.0.2/32 dev veth-web && ip link del veth-db");
    netns.sh("nft add element ip netpolc podif '{ \"eth9\" }'");
    let text = netns.load(&["status", "--bundle", dir.path()], 1);
    assert!(text.contains("other interfaces"), "{text}");
    netns.apply(&dir, "interfaces of pods updated");
    assert_eq!(interfaces(&netns, Family::Ip), ["veth-web"]);
    assert_eq!(interfaces(&netns, Family::Ip6), ["veth-web"]);
    netns.load(&["status", "--bundle", dir.path()], 0);
    // An upgrade keeps them right as well.
    netns.apply(&bundle_with(&b(), &[("shop/web", &["10.0.0.2"])]), "applied");
    assert_eq!(interfaces(&netns, Family::Ip), ["veth-web"]);
    netns.apply(&bundle_with(&c(), &[]), "applied");
    assert_eq!(interfaces(&netns, Family::Ip).len(), 0);
}

#[test]
fn addresses_behind_interfaces_follow_the_routes_of_local_pods() {
    let netns = Netns::new();
    let rule = "iifname . ip saddr != @podaddr jump spoof_aaab";
    let set = "\tset podaddr {\n\t\ttype ifname . ipv4_addr\n\t}\n\tset podif";
    let bound = |script: String| {
        script.replacen("\tset podif", set, 1).replacen(
            "fib saddr . iif oif missing jump spoof_aaab",
            rule,
            1,
        )
    };
    let pods: &[(&str, &[&str])] = &[("shop/db", &["10.0.0.1", "fd00::1"]), ("shop/web", &["10.0.0.2"])];
    let there =
        |netns: &Netns| netns.sh("nft list set ip netpolc podaddr").split_whitespace().collect::<String>();
    let dir = bundle_with(&bound(a()), pods);
    netns.apply(&dir, "applied");
    assert!(!there(&netns).contains("elements"));
    for (name, addr) in [("veth-db", "10.0.0.1"), ("veth-web", "10.0.0.2")] {
        netns.sh(&format!("ip link add {name} type veth peer name p-{name} && ip link set {name} up"));
        netns.sh(&format!("ip link set p-{name} up && ip route add {addr}/32 dev {name}"));
    }
    netns.apply(&dir, "interfaces of pods updated");
    let both = there(&netns);
    assert!(both.contains("\"veth-db\".10.0.0.1") && both.contains("\"veth-web\".10.0.0.2"), "{both}");
    assert_eq!(both.matches("veth").count(), 2, "{both}");
    netns.apply(&dir, "unchanged");
    // An address more behind an interface is drift, and is mended.
    netns.sh("nft add element ip netpolc podaddr '{ \"veth-db\" . 10.0.0.2 }'");
    let text = netns.load(&["status", "--bundle", dir.path()], 1);
    assert!(text.contains("other interfaces"), "{text}");
    netns.apply(&dir, "interfaces of pods updated");
    assert_eq!(there(&netns), both);
    // A bridge is shared by the pods that are behind it, and by no other.
    netns.sh("ip link del veth-web; ip link add cni0 type bridge && ip link set cni0 up");
    netns.sh("ip addr add 10.0.0.254/24 dev cni0");
    netns.apply(&bundle_with(&bound(b()), pods), "applied");
    let bridge = there(&netns);
    assert!(bridge.contains("\"veth-db\".10.0.0.1") && bridge.contains("\"cni0\".10.0.0.2"), "{bridge}");
    assert!(!bridge.contains("\"cni0\".10.0.0.1") && !bridge.contains("veth-web"), "{bridge}");
}

#[test]
fn large_sets() {
    let netns = Netns::new();
    let list: Vec<String> =
        (0..20_000u32).map(|n| std::net::Ipv4Addr::from(0x0a80_0000 + n * 3).to_string()).collect();
    let large = SHAPE.replace("10.0.0.7, 10.0.0.9", &list.join(", "));
    netns.apply(&bundle(&large), "applied");
    netns.apply(&bundle(&large), "unchanged");
    assert_eq!(netns.tables()[&Family::Ip].sets["pods_5a5a"].elements.len(), 20_000);
}
