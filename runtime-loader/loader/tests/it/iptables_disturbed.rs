//! The backend iptables where others interfere: drift, failures, kills.

use crate::cluster::{a, b, bundle, c, compiled, denying};
use crate::common::{Dir, Netns, unique};
use crate::iptables::{Variant, fresh, netns};
use netpolc_bundle::ipt;
use netpolc_bundle::store;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

/// After the change status must complain of it, and apply must mend it.
fn check_drift(change: &str, complaints: &[&str]) {
    for variant in Variant::ALL {
        let netns = netns(variant);
        let dir = bundle(&a());
        netns.ipt(&dir, "applied");
        netns.load(&["status", "--bundle", dir.path()], 0);
        let word = variant.word();
        let change = change.replace("IPT", &format!("iptables-{word} -w"));
        let change = change.replace("DENY", &denying()[0]);
        let change = change.replace("6TPI", &format!("ip6tables-{word} -w"));
        netns.sh(&change);
        let text = netns.load(&["status", "--bundle", dir.path()], 1);
        for complaint in complaints.iter().map(|complaint| complaint.replace("DENY", &denying()[0])) {
            assert!(text.contains(&complaint), "{change}: wanted {complaint:?}: {text}");
        }
        netns.load(&["status"], 1);
        netns.ipt(&dir, "repaired");
        assert_eq!(netns.listing(variant), fresh(variant, &dir), "{change}");
        netns.ipt(&dir, "unchanged");
        netns.load(&["status", "--bundle", dir.path()], 0);
    }
}

#[test]
fn drift_of_the_jumps() {
    check_drift(
        "IPT -F FORWARD",
        &["table filter: FORWARD does not jump to NETPOLC-FORWARD", "lets it pass"],
    );
    check_drift(
        "6TPI -t mangle -D PREROUTING -j NETPOLC-PREROUTING",
        &["family ip6, table mangle: PREROUTING does not"],
    );
    check_drift(
        "IPT -I FORWARD 1 -s 10.7.0.0/16 -j ACCEPT",
        &["rules of others stand before the jump from FORWARD"],
    );
    check_drift("IPT -A FORWARD -j NETPOLC-FORWARD", &["FORWARD jumps to NETPOLC-FORWARD 2 times"]);
    check_drift(
        "IPT -D FORWARD -j NETPOLC-FORWARD; IPT -A FORWARD -j ACCEPT; IPT -A FORWARD -j NETPOLC-FORWARD",
        &["rules of others stand before"],
    );
    check_drift(
        "IPT -N OTHERS; IPT -A OTHERS -i eth0 -m comment --comment 'x y' -j DENY",
        &["a rule of another hand leads to ours: OTHERS -i eth0"],
    );
}

#[test]
fn drift_of_rules() {
    check_drift("IPT -F NETPOLC-FORWARD", &["chain NETPOLC-FORWARD: other rules (0 ", "lets it pass"]);
    check_drift("IPT -D DENY 1", &["chain DENY: other rules (0 ", "lets it pass"]);
    check_drift(
        "6TPI -I NETPOLC-FORWARD 1 -j RETURN",
        &["family ip6, filter: chain NETPOLC-FORWARD: other rules"],
    );
    check_drift("IPT -I NETPOLC-FORWARD 1 -j ACCEPT", &["family ip: changed by another hand"]);
    check_drift("IPT -I DENY 1 -s 10.1.0.3 -j RETURN", &["10.1.0.3 -> 10.1.0.2 ", "lets it pass"]);
    check_drift(
        "IPT -F FORWARD; IPT -F NETPOLC-FORWARD; IPT -X $(IPT -S | grep -o 'NETPOLC-V-[0-9a-f]*')",
        &["0 markers"],
    );
    check_drift("IPT -N NETPOLC-V-00000000000000aa", &["2 markers"]);
    check_drift("IPT -t mangle -F; IPT -t mangle -X", &["mangle: chain NETPOLC-PREROUTING: missing"]);
}

const SET4: &str = "$(ipset list -name | grep NETPOLC-SET4 | head -1)";

#[test]
fn drift_of_sets() {
    let add = format!("ipset add {SET4} 10.1.0.3");
    check_drift(&add, &["other elements", "10.1.0.3 -> 10.1.0.2 80/TCP: the bundle denies it"]);
    let delete = format!("ipset del {SET4} 192.0.2.0/24");
    check_drift(&delete, &["other elements", "80/TCP: the bundle lets it pass, the kernel denies it"]);
    check_drift(&format!("ipset flush {SET4}"), &["other elements (0 "]);
    check_drift(
        &format!(
            "ipset add {SET4} 10.1.0.0/24 nomatch; ipset del {SET4} 10.1.0.0/24; ipset del {SET4} 10.1.0.1"
        ),
        &["other elements"],
    );
}

/// What nobody meets is no drift, and goes.
#[test]
fn leftovers_are_taken_out() {
    for variant in Variant::ALL {
        let netns = netns(variant);
        let dir = bundle(&a());
        netns.ipt(&dir, "applied");
        let word = variant.word();
        netns.sh(&format!(
            "iptables-{word} -w -N NETPOLC-OLD; iptables-{word} -w -N NETPOLC-OLDER; \
             iptables-{word} -w -A NETPOLC-OLD -j NETPOLC-OLDER; ipset create NETPOLC-OLD hash:net; \
             ipset create NETPOLC-REPAIR hash:ip"
        ));
        netns.load(&["status"], 0);
        netns.ipt(&dir, "unchanged");
        assert_eq!(netns.listing(variant), fresh(variant, &dir));
    }
}

/// A set of our name with another type, and foreign ones.
#[test]
fn sets_in_the_way() {
    let netns = netns(Variant::Nft);
    let dir = bundle(&a());
    netns.ipt(&dir, "applied");
    let name = netns.sh(&format!("echo {SET4}")).trim().to_owned();
    netns.load(&["remove"], 0);
    netns.sh(&format!("ipset create {name} hash:ip,port; ipset create FOREIGN hash:ip,port"));
    netns.ipt(&dir, "");
    netns.load(&["status", "--bundle", dir.path()], 0);
    assert!(netns.sh("ipset list -name").contains("FOREIGN"));
}

/// Rules as kube-proxy, a CNI plugin and an administrator make them.
#[test]
fn rules_of_others_stay() {
    for variant in Variant::ALL {
        let netns = netns(variant);
        let word = variant.word();
        netns.sh(&format!(
            "for t in iptables ip6tables; do x=\"$t-{word} -w\"; \
             $x -N KUBE-FORWARD; $x -A FORWARD -m comment --comment 'kubernetes forwarding rules' -j KUBE-FORWARD; \
             $x -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP; \
             $x -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT; \
             $x -t nat -N KUBE-SERVICES; $x -t nat -A PREROUTING -j KUBE-SERVICES; $x -t nat -N KUBE-SVC; \
             $x -t nat -A KUBE-SERVICES -p tcp --dport 443 -j KUBE-SVC; \
             $x -t nat -A KUBE-SVC -m statistic --mode random --probability 0.5 -j RETURN; \
             $x -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu; done; \
             ipset create KUBE-LOOP hash:ip,port,ip"
        ));
        let foreign = || {
            let text = netns.sh(&format!("ipset save; iptables-{word}-save; ip6tables-{word}-save"));
            let lines = text.lines().filter(|line| !line.starts_with('#') && !line.contains("NETPOLC-"));
            let plain = lines.map(|line| line.split(" [").next().unwrap().to_owned());
            plain.collect::<Vec<_>>()
        };
        let before = foreign();
        assert!(before.iter().any(|line| line.contains("KUBE-SVC -m statistic")));
        for policies in [a(), b(), c(), a()] {
            netns.ipt(&bundle(&policies), "applied");
            assert_eq!(foreign(), before, "{variant:?}");
        }
        netns.sh(&format!("iptables-{word} -w -I FORWARD 1 -j KUBE-FORWARD"));
        netns.ipt(&bundle(&a()), "repaired");
        let chain = netns.sh(&format!("iptables-{word} -w -S FORWARD"));
        let rules: Vec<&str> = chain.lines().skip(1).collect();
        assert!(
            rules[0] == "-A FORWARD -j NETPOLC-FORWARD" && rules[1] == "-A FORWARD -j KUBE-FORWARD",
            "{chain}"
        );
        netns.sh(&format!("iptables-{word} -w -D FORWARD 2"));
        netns.load(&["remove"], 0);
        assert_eq!(foreign(), before, "{variant:?}");
    }
}

/// A directory with a program that stands in for one of the system's.
fn stand_in(name: &str, script: &str) -> Dir {
    let dir = Dir(std::env::temp_dir().join(unique()));
    std::fs::create_dir(&dir.0).unwrap();
    let path = dir.file(name);
    std::fs::write(&path, format!("#!/bin/sh\n{}", script.replace("REAL", &format!("/usr/sbin/{name}"))))
        .unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

impl Netns {
    /// The loader with this directory first in its path.
    fn loader_with(&self, dir: &Dir, args: &[&str]) -> std::process::Command {
        let loader = self.loader().get_args().last().unwrap().to_owned();
        let mut command = self.command(loader.to_str().unwrap());
        command.args(args).env("PATH", format!("{}:{}", dir.path(), std::env::var("PATH").unwrap()));
        command
    }
}

#[test]
fn a_failing_program_leaves_the_old_rules() {
    for variant in Variant::ALL {
        let word = variant.word();
        // The last can load the first table, and then fails.
        let half = "if grep -q NETPOLC-V; then sed '/^\\*mangle/,$d' <&0 >/dev/null; fi; exit 1\n";
        let programs = [
            (format!("ip6tables-{word}-restore"), "echo no luck >&2; exit 1\n".to_owned()),
            (format!("iptables-{word}-restore"), "echo no luck >&2; exit 1\n".to_owned()),
            (format!("iptables-{word}-restore"), half.to_owned()),
            (
                format!("ip6tables-{word}-restore"),
                "cat >/tmp/$$; grep -q NETPOLC-DEAD /tmp/$$; sed '/^.mangle/,$d' /tmp/$$ | REAL \"$@\"; rm /tmp/$$; \
                 echo no luck >&2; exit 1\n"
                    .to_owned(),
            ),
        ];
        for (name, script) in &programs {
            let fake = stand_in(name, script);
            let netns = netns(variant);
            let bundles = [a(), b()].map(|policies| bundle(&policies));
            for (old, new) in [(None, 0), (Some(0), 1), (Some(1), 0)] {
                if let Some(old) = old {
                    netns.ipt(&bundles[old], "");
                }
                let before = netns.listing(variant);
                let args = ["apply", "--backend", "iptables", bundles[new].path()];
                let output = netns.loader_with(&fake, &args).output().unwrap();
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(matches!(output.status.code(), Some(3 | 70)), "{name}: {text}");
                if output.status.code() == Some(3) {
                    let after = netns.listing(variant);
                    assert_eq!(after.ruleset.sets, before.ruleset.sets, "{name} {script}");
                    let chains = |listing: &ipt::Listing| {
                        let tables = listing.ruleset.tables.iter().filter(|(_, chains)| !chains.is_empty());
                        tables.map(|(key, chains)| (*key, chains.clone())).collect::<Vec<_>>()
                    };
                    assert_eq!(chains(&after), chains(&before), "{name} {script}: {text}");
                } else {
                    // The stand-in does not let itself be taken back.
                    assert!(script.contains("mangle/,$d' /tmp"), "{name} {script}: {text}");
                }
            }
            // With the real programs all is well again.
            netns.ipt(&bundles[0], "");
            assert_eq!(netns.listing(variant), fresh(variant, &bundles[0]));
        }
    }
}

#[test]
fn without_ipset_the_rules_have_no_sets() {
    for variant in Variant::ALL {
        let netns = netns(variant);
        let dir = bundle(&a());
        let fake = stand_in("ipset", "echo 'Kernel error received: set type not supported' >&2; exit 1\n");
        let args = ["apply", "--backend", "iptables", dir.path()];
        let output = netns.loader_with(&fake, &args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && text.contains("without ipsets: ipset: Kernel error"), "{text}");
        let listing = netns.listing(variant);
        assert!(listing.ruleset.sets.is_empty());
        let read = compiled(&a()).read_back().unwrap();
        assert_eq!(ipt::digest(&listing.ruleset), ipt::digest(read.iptables_plain.as_ref().unwrap()));
        netns.load(&["status", "--bundle", dir.path()], 0);
        // Where sets can be had, they are used.
        netns.ipt(&dir, "applied");
        assert_eq!(netns.listing(variant), fresh(variant, &dir));
        // A bundle without the plain rules says what it lacks.
        let mut parts = compiled(&a());
        parts.files.retain(|name, _| !name.contains("plain"));
        parts.manifest.files.retain(|name, _| !name.contains("plain"));
        parts.manifest.artifacts.remove(&netpolc_bundle::Artifact::IptablesPlain);
        let only = Dir(std::env::temp_dir().join(unique()));
        std::fs::create_dir(&only.0).unwrap();
        store::write(&only.0, &parts).unwrap();
        netns.load(&["remove"], 0);
        let args = ["apply", "--backend", "iptables", only.path()];
        let output = netns.loader_with(&fake, &args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(3) && text.contains("set type not supported"), "{text}");
        netns.ipt(&only, "applied");
    }
}

#[test]
fn killed_at_any_moment() {
    for variant in Variant::ALL {
        let bundles = [a(), b()].map(|policies| bundle(&policies));
        let wanted = [0, 1].map(|i| fresh(variant, &bundles[i]));
        let versions = [0, 1].map(|i| ipt::digest(&wanted[i].ruleset));
        let (netns, mut old) = (netns(variant), 0);
        netns.ipt(&bundles[0], "applied");
        for round in 0..24usize {
            let next = (round + 1) % 2;
            let mut child = netns
                .loader()
                .args(["apply", "--backend", "iptables", bundles[next].path()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(7 * round as u64));
            child.kill().unwrap();
            child.wait().unwrap();
            // Its programs may still be at work. They share its lock.
            let lock = netns.lock_file();
            netns.sh(&format!("[ ! -e {0} ] || flock {0} true", lock.display()));
            let seen = ipt::digest(&netns.listing(variant).ruleset);
            assert!(versions.contains(&seen), "{variant:?}, round {round}: {seen}");
            old += usize::from(seen != versions[next]);
            netns.ipt(&bundles[next], "");
            assert_eq!(netns.listing(variant), wanted[next], "{variant:?}, round {round}");
        }
        assert!(old > 0, "{variant:?}: no loader was killed in time");
    }
}

#[test]
fn two_at_once() {
    for variant in Variant::ALL {
        let netns = netns(variant);
        let bundles = [a(), b()].map(|policies| bundle(&policies));
        let wanted = [0, 1].map(|i| fresh(variant, &bundles[i]));
        for _ in 0..3 {
            let children = [0, 1, 0, 1].map(|which: usize| {
                let args = ["apply", "--backend", "iptables", bundles[which].path()];
                netns.loader().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            });
            for mut child in children {
                assert!(child.wait().unwrap().success());
            }
            netns.load(&["status"], 0);
            assert!(wanted.contains(&netns.listing(variant)));
            assert!(!netns.lock_file().exists());
        }
    }
}
