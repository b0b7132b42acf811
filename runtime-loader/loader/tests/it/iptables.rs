//! The backend iptables where nobody interferes: apply, status, remove, both variants, other backends.

use crate::cluster::{a, b, bundle, c};
use crate::common::{Dir, Netns};
use netpolc_bundle::ipt::{self, Family, Hook, Listing, Table, Texts};

/// A variant of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    pub(crate) const ALL: [Variant; 2] = [Variant::Nft, Variant::Legacy];

    pub(crate) fn word(self) -> &'static str {
        if self == Variant::Nft { "nft" } else { "legacy" }
    }
}

/// A namespace where the kubelet uses a variant.
pub(crate) fn netns(variant: Variant) -> Netns {
    let netns = Netns::new();
    netns.sh(&format!("iptables-{} -w -t mangle -N KUBE-IPTABLES-HINT", variant.word()));
    netns
}

impl Netns {
    pub(crate) fn ipt(&self, bundle: &Dir, starts: &str) -> String {
        let text = self.load(&["apply", "--backend", "iptables", bundle.path()], 0);
        assert!(text.starts_with(starts), "wanted {starts:?}: {text}");
        text
    }

    /// What of ours is in the kernel.
    pub(crate) fn listing(&self, variant: Variant) -> Listing {
        let word = variant.word();
        let sets = self.sh("ipset save");
        let (v4, v6) =
            (self.sh(&format!("iptables-{word}-save")), self.sh(&format!("ip6tables-{word}-save")));
        ipt::listing(&Texts { sets: &sets, v4: &v4, v6: &v6 })
            .unwrap_or_else(|e| panic!("{e}\n{sets}{v4}{v6}"))
    }
}

/// What a fresh namespace has after this bundle.
pub(crate) fn fresh(variant: Variant, bundle: &Dir) -> Listing {
    let netns = netns(variant);
    netns.ipt(bundle, "applied");
    netns.listing(variant)
}

#[test]
fn a_bundle_comes_into_force_once() {
    for variant in Variant::ALL {
        let netns = netns(variant);
        let dir = bundle(&a());
        assert!(netns.load(&["status"], 1).contains("nothing in force"));
        let text = netns.ipt(&dir, "applied: version ");
        assert!(text.contains("the kubelet uses it; with ipsets"), "{text}");
        let first = netns.listing(variant);
        assert!(!first.ruleset.sets.is_empty());
        let read = netpolc_bundle::Bundle::open(&dir.0).unwrap().read_back().unwrap();
        assert_eq!(ipt::digest(&first.ruleset), ipt::digest(read.iptables.as_ref().unwrap()));
        for family in Family::ALL {
            for table in Table::ALL {
                assert_eq!(first.hooks[&(family, table)], Hook { first: true, count: 1 });
            }
        }
        netns.ipt(&dir, "unchanged: version ");
        assert_eq!(netns.listing(variant), first);
        let other = if variant == Variant::Nft { "legacy" } else { "nft" };
        assert_eq!(netns.sh(&format!("iptables-{other}-save; ip6tables-{other}-save")), "", "{variant:?}");
        let human = netns.load(&["status", "--bundle", dir.path()], 0);
        assert!(human.contains("backend iptables") && human.contains("0 packets dropped by deny"), "{human}");
        let json = netns.load(&["status", "--format", "json"], 0);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["in_force"], true);
        assert_eq!(json["version"], ipt::digest(&first.ruleset).to_string());
        let elements: usize =
            first.ruleset.sets.values().filter(|s| s.family == Family::V4).map(|s| s.elements.len()).sum();
        assert_eq!(json["dataplanes"][0]["counts"]["ip.elements"], elements);
    }
}

#[test]
fn every_way_ends_where_a_fresh_start_ends() {
    for variant in Variant::ALL {
        let bundles = [a(), b(), c()].map(|policies| bundle(&policies));
        let wanted = [0, 1, 2].map(|i| fresh(variant, &bundles[i]));
        let netns = netns(variant);
        for i in [0, 1, 2, 0, 2, 1, 0] {
            netns.ipt(&bundles[i], "applied");
            assert_eq!(netns.listing(variant), wanted[i], "{variant:?}");
            netns.load(&["status", "--bundle", bundles[i].path()], 0);
            let other = bundles[(i + 1) % 3].path();
            assert!(netns.load(&["status", "--bundle", other], 1).contains(": marker NETPOLC-V-"));
        }
    }
}

#[test]
fn remove_leaves_nothing_but_others() {
    for variant in Variant::ALL {
        let netns = netns(variant);
        let word = variant.word();
        assert!(netns.load(&["remove"], 0).starts_with("unchanged"));
        netns.sh(&format!(
            "iptables-{word} -w -N FOREIGN && iptables-{word} -w -A FORWARD -s 10.9.0.0/16 -j FOREIGN && \
             ip6tables-{word} -w -t mangle -A PREROUTING -s fd09::/16 -j ACCEPT && ip6tables-{word} -w -N FOREIGN && \
             ipset create FOREIGN hash:ip && ipset add FOREIGN 10.0.0.1"
        ));
        let listed = || {
            let text = netns.sh(&format!("ipset save; iptables-{word}-save; ip6tables-{word}-save"));
            let lines = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with(':'));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let before = listed();
        netns.ipt(&bundle(&a()), "applied");
        // The control: something is there to be removed.
        assert!(netns.sh("ipset list -name").contains("NETPOLC-"));
        let text = netns.load(&["remove"], 0);
        assert!(text.starts_with(&format!("removed: chains of iptables-{word}, ")), "{text}");
        // The tables that had nothing before stay, empty.
        let after = listed();
        let rest: Vec<&String> =
            after.iter().filter(|line| !line.starts_with('*') && *line != "COMMIT").collect();
        let wanted: Vec<&String> =
            before.iter().filter(|line| !line.starts_with('*') && *line != "COMMIT").collect();
        assert_eq!(rest, wanted);
        assert!(!netns.sh(&format!("iptables-{word}-save; ip6tables-{word}-save")).contains("NETPOLC"));
        assert!(netns.load(&["remove"], 0).starts_with("unchanged"));
        netns.load(&["status"], 1);
    }
}

#[test]
fn nothing_of_the_legacy_variant_is_made_by_looking() {
    let netns = Netns::new();
    netns.load(&["status"], 1);
    netns.load(&["remove"], 0);
    let dir = bundle(&a());
    let text = netns.ipt(&dir, "applied");
    assert!(
        text.contains("iptables-nft: the system's own choice") || text.contains("iptables-legacy:"),
        "{text}"
    );
    netns.load(&["status"], 0);
    netns.load(&["apply", "--backend", "nftables", dir.path()], 0);
    netns.load(&["remove"], 0);
    if text.contains("iptables-nft:") {
        assert_eq!(netns.sh("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names"), "");
    }
}

#[test]
fn the_variant_of_the_other_tools_is_used_and_chains_in_both_are_mended() {
    let netns = Netns::new();
    netns.sh("iptables-legacy -w -A INPUT -s 10.9.0.0/16 -j ACCEPT");
    let dir = bundle(&a());
    let text = netns.ipt(&dir, "applied");
    assert!(text.contains("iptables-legacy: most rules of others are there"), "{text}");
    // Another loader that saw it otherwise.
    let copy = netns.sh("iptables-legacy-save | grep -v '^-A INPUT'");
    std::fs::write(dir.file("copy"), &copy).unwrap();
    netns.sh(&format!("iptables-nft-restore < {}", dir.file("copy").display()));
    netns.sh("iptables-nft -t mangle -N KUBE-KUBELET-CANARY");
    let text = netns.load(&["status"], 1);
    assert!(text.contains("iptables-legacy has chains of ours, too"), "{text}");
    std::fs::remove_file(dir.file("copy")).unwrap();
    let text = netns.ipt(&dir, "");
    assert!(text.contains("iptables-nft: the kubelet uses it"), "{text}");
    assert!(text.contains("removed our chains of iptables-legacy"), "{text}");
    assert!(!netns.sh("iptables-legacy-save; ip6tables-legacy-save").contains("NETPOLC"));
    netns.load(&["status", "--bundle", dir.path()], 0);
    netns.ipt(&dir, "unchanged");
}

#[test]
fn backends_take_turns() {
    for variant in Variant::ALL {
        let netns = netns(variant);
        let dir = bundle(&a());
        let apply = |backend: &str| netns.load(&["apply", "--backend", backend, dir.path()], 0);
        for _ in 0..2 {
            let text = apply("nftables");
            assert!(text.starts_with("applied: version"), "{text}");
            assert!(!netns.sh(&format!("ipset save; iptables-{}-save", variant.word())).contains("NETPOLC"));
            assert!(netns.load(&["status"], 0).contains("backend nftables"));
            let text = apply("iptables");
            assert!(text.contains("removed what nftables enforced"), "{text}");
            assert!(!netns.sh("nft list tables").contains("netpolc\n"));
            assert!(netns.load(&["status"], 0).contains("backend iptables"));
        }
    }
}

#[test]
fn interfaces_follow_the_routes_of_local_pods() {
    for variant in Variant::ALL {
        let netns = netns(variant);
        let dir = bundle(&a());
        let known = || {
            let rules =
                netns.listing(variant).ruleset.tables[&(Family::V6, Table::Mangle)][ipt::PODIF].clone();
            rules.iter().map(|rule| format!("{:?}", rule.matches)).collect::<Vec<_>>()
        };
        netns.ipt(&dir, "applied");
        assert!(known().is_empty());
        netns.sh("ip link add veth-a type veth peer name p-a && ip link set veth-a up && ip link set p-a up");
        netns.sh("sleep 0.1 && ip route add 10.1.0.2/32 dev veth-a");
        netns.ipt(&dir, "interfaces of pods updated");
        assert_eq!(known(), ["[Interface(\"veth-a\")]"]);
        netns.ipt(&dir, "unchanged");
        netns.sh(&format!("iptables-{} -w -t mangle -A NETPOLC-PODIF -i eth9 -j DROP", variant.word()));
        let text = netns.load(&["status", "--bundle", dir.path()], 1);
        assert!(text.contains("other interfaces of pods"), "{text}");
        netns.ipt(&dir, "interfaces of pods updated");
        // A rule that lets pass what comes from there is none of ours.
        netns.sh(&format!("iptables-{} -w -t mangle -R NETPOLC-PODIF 1 -i veth-a -j RETURN", variant.word()));
        netns.ipt(&dir, "interfaces of pods updated");
        netns.ipt(&dir, "unchanged");
        assert!(netns.sh(&format!("iptables-{}-save", variant.word())).contains("-i veth-a -j DROP"));
        // A change of version keeps them.
        netns.ipt(&bundle(&b()), "applied");
        assert_eq!(known(), ["[Interface(\"veth-a\")]"]);
        netns.sh("ip link del veth-a");
        netns.ipt(&bundle(&b()), "interfaces of pods updated");
        assert!(known().is_empty());
    }
}
