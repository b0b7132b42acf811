//! Each artifact is changed where it drops and nowhere else, or refused.

use super::*;
use netpolc_bundle::ipt::run::{Packet, Script};
use netpolc_bundle::ipt::{Rule, Ruleset, Table, Target};
use netpolc_bundle::nft;
use netpolc_bundle::{
    Backend, IP6TABLES, IP6TABLES_PLAIN, IPSET, IPTABLES, IPTABLES_PLAIN, ReadBack, SCRIPT,
};
use netpolc_node::{Labels, NodeBuilder};
use netpolc_testkit::pipeline::{compile, model};
use std::collections::BTreeMap;

const CLUSTER: &str = "apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {app: server}}
spec: {nodeName: alpha, containers: [{name: main, image: i}]}
status: {phase: Running, podIPs: [{ip: 10.1.0.2}, {ip: 'fd00:1::2'}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{ipBlock: {cidr: 192.0.2.0/25}}, {ipBlock: {cidr: 198.18.0.0/15}}, {ipBlock: {cidr: 100.64.0.0/10}},
      {ipBlock: {cidr: 198.51.100.0/25, except: [198.51.100.7/32]}}, {ipBlock: {cidr: 203.0.113.0/25}},
      {ipBlock: {cidr: 198.51.100.192/26}}, {ipBlock: {cidr: 192.0.2.192/26}}]
    ports: [{port: 80}]
";

fn compiled() -> Bundle {
    let compiled = compile(model(&[("cluster.yaml", CLUSTER.to_owned())]).unwrap()).unwrap();
    let labels = Labels::of_policies(&compiled.model);
    let mut builder = NodeBuilder::new(&compiled.model, &compiled.matrix, &labels, Backend::ALL, None);
    let host = compiled.matrix.hosts.iter().next().unwrap().0;
    builder.build(host).unwrap().bundle
}

fn read(bundle: &Bundle) -> ReadBack {
    bundle.read_back().unwrap()
}

fn text<'b>(bundle: &'b Bundle, name: &str) -> &'b str {
    str::from_utf8(&bundle.files[name]).unwrap()
}

/// The lines of a file that differ, as they were.
fn changed<'b>(before: &'b Bundle, after: &Bundle, name: &str) -> Vec<&'b str> {
    let (old, new) = (text(before, name), text(after, name));
    assert_eq!(old.lines().count(), new.lines().count(), "{name}");
    old.lines().zip(new.lines()).filter(|(a, b)| a != b).map(|(a, _)| a).collect()
}

/// What audit mode makes of our programs may be loaded, too.
#[test]
fn the_loader_knows_the_programs() {
    let pair = read(&audited(&compiled()).unwrap()).ebpf.unwrap();
    let unknown: Vec<String> =
        [pair.cut, pair.keep].iter().filter(|a| !a.program.is_ours()).map(|a| a.program.identity()).collect();
    assert_eq!(unknown, Vec::<String>::new());
}

#[test]
fn all_artifacts_stay_with_versions_of_their_own() {
    let before = compiled();
    let after = audited(&before).unwrap();
    let (old, new) = (&before.manifest.artifacts, &after.manifest.artifacts);
    assert_eq!(old.len(), Artifact::ALL.len());
    assert!(old.keys().eq(new.keys()));
    assert!(old.values().all(|version| !new.values().any(|other| other == version)), "{old:?} {new:?}");
    assert_eq!(after.bindings().unwrap(), before.bindings().unwrap());
    assert_eq!(audited(&before).unwrap(), after, "the same each time");
}

// nftables.

fn script(script: &str) -> Bundle {
    let version = nft::digest(&nft::parse(script).unwrap());
    let script = script.replace("version_0123456789abcdef", &nft::marker(version));
    let artifacts = Artifacts { nftables: Some(script), ..Artifacts::default() };
    Bundle::new(Parts { compiler: "0".into(), node: "n".into(), artifacts, ..Parts::default() }).unwrap()
}

const SAMPLE: &str = include_str!("../../../tests/it/data/shape.nft");

#[test]
fn a_script_drops_nothing_and_all_else_is_as_it_was() {
    for before in [script(SAMPLE), compiled()] {
        let after = audited(&before).unwrap();
        let other = changed(&before, &after, SCRIPT);
        assert!(other.iter().all(|l| l.contains("counter drop") || l.contains("version_")), "{other:?}");
        let drops = |bundle: &Bundle| nftables::drops(&read(bundle).nftables.unwrap());
        assert!(drops(&before) && !drops(&after));
    }
}

#[test]
fn a_script_that_drops_otherwise_is_refused() {
    let uncounted = SAMPLE.replace("iifname @podif counter drop", "iifname @podif drop");
    assert!(audited(&script(&uncounted)).is_err());
    let in_map = SAMPLE.replace("17 . 53 : return", "17 . 53 : drop");
    assert!(audited(&script(&in_map)).is_err());
    let comment = SAMPLE.replace(
        "goto deny_c0c0\n\t}\n\tchain in",
        "goto deny_c0c0 comment \"counter drop\"\n\t}\n\tchain in",
    );
    let after = audited(&script(&comment)).unwrap();
    assert!(after.script().unwrap().contains("comment \"counter drop\""));
}

// iptables.

/// The rules of a ruleset with their places; markers have none.
fn rules(ruleset: &Ruleset) -> BTreeMap<(String, String, usize), Rule> {
    let chains = ruleset.tables.iter().flat_map(|((family, table), chains)| {
        chains.iter().map(move |(name, rules)| (format!("{family} {table}"), name, rules))
    });
    chains
        .flat_map(|(table, name, rules)| {
            rules.iter().enumerate().map(move |(i, rule)| ((table.clone(), name.clone(), i), rule.clone()))
        })
        .collect()
}

#[test]
fn rules_return_where_they_dropped_and_all_else_is_as_it_was() {
    let before = compiled();
    let after = audited(&before).unwrap();
    let (old, new) = (read(&before), read(&after));
    for (old, new) in [(old.iptables, new.iptables), (old.iptables_plain, new.iptables_plain)] {
        let (old, new) = (old.unwrap(), new.unwrap());
        assert_eq!(old.sets, new.sets);
        let (before, after) = (rules(&old), rules(&new));
        assert!(before.keys().eq(after.keys()));
        let mut dropping = 0;
        for (place, rule) in &before {
            let now = &after[place];
            if rule.target != Target::Drop {
                assert_eq!(rule, now, "{place:?}");
                continue;
            }
            dropping += 1;
            assert_eq!((&now.matches, &now.target), (&rule.matches, &Target::Return), "{place:?}");
            let comment = now.comment.clone().unwrap();
            assert!(comment.starts_with("audit mode: would drop"), "{comment}");
            assert!(comment.ends_with(rule.comment.as_deref().unwrap_or_default()), "{comment}");
        }
        // Of each family at least: nothing allows it, opens no connection from and to a pod, false source.
        assert!(dropping >= 8, "{dropping}");
        let packet = Packet::opening("10.1.0.2".parse().unwrap(), "203.0.113.1".parse().unwrap(), 6, 80);
        assert!(
            !Script::new(&old).passes(&old.sets, &packet) && Script::new(&new).passes(&new.sets, &packet)
        );
    }
    assert!(!old_sets(&before).is_empty(), "the sample has sets");
    assert_eq!(text(&before, IPSET), text(&after, IPSET));
    for name in [IPTABLES, IP6TABLES, IPTABLES_PLAIN, IP6TABLES_PLAIN] {
        let other = changed(&before, &after, name);
        assert!(other.iter().all(|l| l.ends_with(" -j DROP") || l.contains("NETPOLC-V-")), "{other:?}");
        assert_eq!(text(&after, name).matches("NETPOLC-V-").count(), 1);
    }
}

fn old_sets(bundle: &Bundle) -> BTreeMap<String, netpolc_bundle::ipt::Set> {
    read(bundle).iptables.unwrap().sets
}

/// The plain rules alone, with another IPv4 text, under the marker of their version.
fn plain(change: &dyn Fn(&str) -> String) -> Bundle {
    let bundle = compiled();
    let v6 = text(&bundle, IP6TABLES_PLAIN).to_owned();
    let v4 = change(text(&bundle, IPTABLES_PLAIN));
    let old = bundle.manifest.artifacts[&Artifact::IptablesPlain];
    let ruleset = netpolc_bundle::ipt::parse(&Texts { sets: "", v4: &v4, v6: &v6 }).unwrap();
    let marker = netpolc_bundle::ipt::marker;
    let (old, new) = (marker(old), marker(netpolc_bundle::ipt::digest(&ruleset)));
    let files = IptablesFiles { sets: String::new(), v4: v4.replace(&old, &new), v6: v6.replace(&old, &new) };
    let artifacts = Artifacts { iptables_plain: Some(files), ..Artifacts::default() };
    Bundle::new(Parts { compiler: "0".into(), node: "n".into(), artifacts, ..Parts::default() }).unwrap()
}

#[test]
fn rules_that_drop_on_other_lines_are_refused() {
    const DENY: &str = "-A NETPOLC-DENY -m comment --comment \"no policy allows it\" -j DROP\n";
    let replaced = |with: &str| {
        audited(&plain(&|v4| {
            assert_eq!(v4.matches(DENY).count(), 1, "{v4}");
            v4.replace(DENY, with)
        }))
    };
    // The control: as it is, it can be done, and so can it without a comment, or with a long one.
    assert!(replaced(DENY).is_ok());
    assert!(replaced("-A NETPOLC-DENY -j DROP\n").is_ok());
    let long = "x".repeat(255);
    let after = replaced(&format!("-A NETPOLC-DENY -m comment --comment \"{long}\" -j DROP\n")).unwrap();
    assert!(
        text(&after, IPTABLES_PLAIN).contains("-A NETPOLC-DENY -m comment --comment \"audit mode: would")
    );
    // What only says so does not drop.
    let harmless = "-A NETPOLC-DENY -m comment --comment \"-j DROP\" -j RETURN\n";
    assert!(text(&replaced(harmless).unwrap(), IPTABLES_PLAIN).contains(harmless));
    for unknown in [
        "-A NETPOLC-DENY -j DROP \n",
        "-A NETPOLC-DENY -j  DROP\n",
        "-A NETPOLC-DENY -m comment --comment word -j DROP\n",
        "-A NETPOLC-DENY -m comment --comment \"before\" -p 6 -j DROP\n",
    ] {
        let error = replaced(unknown).unwrap_err().to_string();
        assert!(error.contains("audit mode does not know how rules for iptables drop"), "{unknown}: {error}");
    }
}

#[test]
fn the_loader_knows_rules_of_audit_mode_from_others() {
    use crate::iptables::passed;
    let before = compiled();
    let after = audited(&before).unwrap();
    let (old, mut new) = (read(&before).iptables.unwrap(), read(&after).iptables.unwrap());
    assert!(!passed::audits(&old) && passed::audits(&new));
    // One that drops among them: whoever made it, the loader's own rules drop as well.
    let chains = new.tables.get_mut(&(netpolc_bundle::ipt::Family::V4, Table::Filter)).unwrap();
    let drop = Rule { matches: Vec::new(), target: Target::Drop, comment: None };
    let deny = chains.iter_mut().find(|(name, _)| name.starts_with("NETPOLC-DENY-"));
    deny.unwrap().1.push(drop);
    assert!(!passed::audits(&new));
}

// eBPF.

/// The eBPF artifact alone, with each object changed.
fn objects(change: &dyn Fn(&mut Vec<u8>)) -> Bundle {
    let bundle = compiled();
    let file = |name: &str| {
        let mut bytes = bundle.files[name].clone();
        change(&mut bytes);
        bytes
    };
    let maps = text(&bundle, EBPF_MAPS).to_owned();
    let ebpf = Some(EbpfFiles { cut: file(EBPF_CUT), keep: file(EBPF_KEEP), maps });
    let artifacts = Artifacts { ebpf, ..Artifacts::default() };
    Bundle::new(Parts { compiler: "0".into(), node: "n".into(), artifacts, ..Parts::default() }).unwrap()
}

#[test]
fn programs_differ_in_one_verdict_and_drop_nothing() {
    let before = compiled();
    let after = audited(&before).unwrap();
    for name in [EBPF_CUT, EBPF_KEEP] {
        let (old, new) = (&before.files[name], &after.files[name]);
        assert_eq!(old.len(), new.len());
        let apart: Vec<(u8, u8)> =
            old.iter().copied().zip(new.iter().copied()).filter(|(a, b)| a != b).collect();
        assert_eq!(apart, [(0, 1)], "{name}");
    }
    assert_eq!(before.files[EBPF_MAPS], after.files[EBPF_MAPS]);
    let (old, new) = (read(&before).ebpf.unwrap(), read(&after).ebpf.unwrap());
    for (old, new) in [(old.cut, new.cut), (old.keep, new.keep)] {
        assert!(ebpf::may_drop(&old.program) && !ebpf::may_drop(&new.program));
        assert_eq!(old.established, new.established);
    }
}

#[test]
fn programs_that_drop_otherwise_are_refused() {
    // `r0 = 1`, `r0 = 0` and `r0 &= 0`, each before an `exit`.
    const ACCEPT: [u8; 9] = [0xb7, 0, 0, 0, 1, 0, 0, 0, 0x95];
    const DROP: [u8; 9] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95];
    const MASKED: [u8; 9] = [0x57, 0, 0, 0, 0, 0, 0, 0, 0x95];
    let replaced = |from: [u8; 9], to: [u8; 9]| {
        audited(&objects(&|bytes| {
            let at = bytes.windows(9).position(|window| window == from).unwrap();
            bytes.splice(at..at + 9, to);
        }))
    };
    assert!(replaced(DROP, DROP).is_ok(), "the control");
    for (from, to, why) in [
        (ACCEPT, DROP, "not exactly one place"),
        (DROP, MASKED, "not exactly one place"),
        (DROP, ACCEPT, "not exactly one place"),
        (ACCEPT, MASKED, "another way to a drop"),
    ] {
        let error = replaced(from, to).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
    // The place is not in the program: `.maps` is zeros that nobody reads.
    let error = audited(&objects(&|bytes| {
        let at = bytes.windows(9).position(|window| window == DROP).unwrap();
        bytes.splice(at..at + 9, MASKED);
        let at = bytes.windows(100).position(|window| window == [0; 100]).unwrap();
        bytes.splice(at + 8..at + 17, DROP);
    }));
    assert!(error.unwrap_err().to_string().contains("more would change than one verdict"));
    // The branch around the one exit whose result is not a constant: `if r0 == 0` becomes `if r0 != 0`.
    let error = audited(&objects(&|bytes| {
        let branch = bytes.windows(16).position(|w| w[..2] == [0x15, 0] && w[4..9] == [0, 0, 0, 0, 0x95]);
        if let Some(at) = branch {
            bytes[at] = 0x55;
        }
    }));
    assert!(error.unwrap_err().to_string().contains("another way to a drop"));
}
