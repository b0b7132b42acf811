//! Drift, kills, and two loaders at once.

use crate::common::{Dir, Netns, SHAPE, a, b, bundle, fresh, marked};
use crate::daemon::wait;
use netpolc_bundle::nft::{self, Ruleset};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// After the change status must complain of it, and apply must mend it.
fn check_drift(change: &str, complaint: &str) {
    let netns = Netns::new();
    let dir = bundle(&a());
    netns.apply(&dir, "applied");
    netns.load(&["status"], 0);
    netns.sh(change);
    let text = netns.load(&["status", "--bundle", dir.path()], 1);
    assert!(text.contains(complaint), "{change}: wanted {complaint:?}: {text}");
    netns.load(&["status"], 1);
    let text = netns.load(&["status", "--format", "json"], 1);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["in_force"], false);
    netns.apply(&dir, "repaired");
    assert_eq!(netns.tables(), fresh(&a()), "{change}");
    netns.apply(&dir, "unchanged");
    netns.load(&["status", "--bundle", dir.path()], 0);
}

#[test]
fn drift_of_elements() {
    check_drift(
        "nft delete element ip netpolc pods_5a5a '{ 10.0.0.7 }'",
        "set pods_5a5a: other elements (1 ",
    );
    check_drift("nft add element ip netpolc pods_5a5a '{ 10.0.0.8 }'", "set pods_5a5a: other elements (3 ");
    check_drift("nft flush map ip6 netpolc egress_1234", "table ip6: set egress_1234: other elements (0 ");
    check_drift(
        "nft add element ip netpolc ranges_beef '{ 1-5 : accept }'",
        "set ranges_beef: other elements",
    );
    check_drift(
        "nft delete element ip netpolc blocks_9e9f '{ 10.3.4.0/24 : goto deny_c0c0 }'",
        "set blocks_9e9f",
    );
    check_drift(
        "nft add element ip netpolc pods_5a5a '{ 10.0.0.8 comment \"x\" }'",
        "changed by another hand",
    );
}

/// While transactions of somebody else fail, about a table that comes before ours, nft lists some of our chains twice. That
/// is no drift, and nothing is repaired.
#[test]
fn listings_that_are_torn() {
    let netns = Netns::new();
    netns.nft("add table ip a");
    let chains: String = (0..400)
        .map(|i| format!("\tchain from_{i:04x} {{\n\t\tip saddr @pods_5a5a return\n\t}}\n"))
        .collect();
    let dir = bundle(&a().replacen("\tchain ", &format!("{chains}\tchain "), 1));
    netns.apply(&dir, "applied");
    let others = bundle(&b());
    let chains: String =
        (0..1500).map(|i| format!("chain c{i} {{\nip saddr 10.0.0.1 accept\n}}\n")).collect();
    let refused = others.file("refused.nft");
    std::fs::write(&refused, format!("table ip a {{\n{chains}}}\ndelete chain ip a nobody\n")).unwrap();
    // It ends with the file.
    let mut command = netns.command("sh");
    command.args(["-c", "while [ -e \"$0\" ]; do nft -f \"$0\"; done"]).arg(&refused);
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // How often that happens depends on the machine; a kernel of the tests' own is torn in any case (`fake.rs`).
    let begun = Instant::now();
    let mut torn = 0;
    while torn < 12 && begun.elapsed() < Duration::from_secs(20) {
        let twice = netns.sh("nft list table ip netpolc | grep 'chain from_' | sort | uniq -d");
        torn += usize::from(!twice.is_empty());
        netns.load(&["status", "--bundle", dir.path()], 0);
        netns.apply(&dir, "unchanged");
    }
    assert!(process.try_wait().unwrap().is_none(), "the others have ended");
    std::fs::remove_file(&refused).unwrap();
    process.wait().unwrap();
}

#[test]
fn drift_of_rules() {
    check_drift("nft flush chain ip netpolc deny_c0c0", "chain deny_c0c0: other rules (0 ");
    check_drift("nft flush table ip netpolc", "chain forward: other rules");
    check_drift("nft insert rule ip6 netpolc forward accept", "chain forward: other rules (2 ");
    check_drift(
        "nft insert rule ip netpolc judge_aaac ip saddr @local_3f2a9c01 accept",
        "chain judge_aaac: other rules",
    );
    check_drift(
        "nft 'add chain ip netpolc mine; add rule ip netpolc mine accept; add rule ip netpolc forward jump mine'",
        "chain forward",
    );
}

#[test]
fn drift_of_tables() {
    check_drift("nft delete table ip6 netpolc", "table ip6: missing");
    check_drift(
        "nft delete chain ip netpolc $(nft list table ip netpolc | grep -o 'version_[0-9a-f]*')",
        "0 markers",
    );
    check_drift("nft add chain ip netpolc version_00000000000000aa", "2 markers");
    check_drift(
        "nft 'add chain ip netpolc in { type filter hook input priority 0; policy drop; }'",
        "changed by another hand",
    );
    check_drift("nft add counter ip netpolc handmade", "changed by another hand");
    // Only a table made anew can mend these.
    check_drift(
        "nft 'flush chain ip netpolc strange_aaaa; delete set ip netpolc isolated_11aa22bb; \
         add set ip netpolc isolated_11aa22bb { type inet_service; }'",
        "set isolated_11aa22bb: another type",
    );
    check_drift(
        "nft 'delete chain ip netpolc forward; \
         add chain ip netpolc forward { type filter hook forward priority 5; policy accept; }'",
        "chain forward: another hook",
    );
}

#[test]
fn leftovers_of_a_kill_are_taken_out() {
    let netns = Netns::new();
    netns.apply(&bundle(&a()), "applied");
    // What a loader leaves that is killed between its two transactions.
    netns.nft(&marked(&b()));
    netns.apply(&bundle(&b()), "");
    assert_eq!(netns.tables(), fresh(&b()));
    // Objects that no packet meets are no drift, but go.
    netns.sh("nft add chain ip netpolc unused; nft add rule ip netpolc unused ip saddr @local_3f2a9c01 drop");
    netns.load(&["status"], 0);
    netns.apply(&bundle(&b()), "unchanged");
    assert_eq!(netns.tables(), fresh(&b()));
}

/// The ip half of A and B with many elements, so that a switch takes a while.
fn large(script: &str, net: u32) -> String {
    let list: Vec<String> =
        (0..20_000u32).map(|n| std::net::Ipv4Addr::from((net << 24) + n * 3).to_string()).collect();
    script.replace("10.0.0.7, 10.0.0.9", &list.join(", "))
}

#[test]
fn killed_at_any_moment() {
    let first = large(SHAPE, 10);
    let second = large(&SHAPE.replace("pods_5a5a", "pods_6b6b").replace("from_5a5a", "from_6b6b"), 11);
    let versions = [&first, &second].map(|text| nft::digest(&nft::parse(text).unwrap()));
    let bundles = [bundle(&first), bundle(&second)];
    let wanted = [fresh(&first), fresh(&second)];
    let netns = Netns::new();
    netns.apply(&bundles[0], "applied");
    for round in 0..24usize {
        let next = &bundles[(round + 1) % 2];
        let mut child = netns
            .loader()
            .args(["apply", next.path()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(10 * round as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        // nft may still be at work; whenever one looks, one version or the other is in force, whole.
        for _ in 0..3 {
            let seen = nft::digest(&Ruleset { tables: netns.tables() });
            assert!(versions.contains(&seen), "round {round}: {seen}");
        }
        netns.apply(next, "");
        assert!(netns.tables() == wanted[(round + 1) % 2], "round {round}");
    }
}

#[test]
fn two_at_once() {
    let netns = Netns::new();
    let bundles = [bundle(&a()), bundle(&b())];
    let wanted = [fresh(&a()), fresh(&b())];
    for round in 0..6 {
        let children: Vec<_> = [0, 1, 0, 1]
            .map(|which: usize| {
                netns.loader().args(["apply", bundles[which].path()]).stdout(Stdio::null()).spawn().unwrap()
            })
            .into_iter()
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success(), "round {round}");
        }
        netns.load(&["status"], 0);
        assert!(wanted.contains(&netns.tables()), "round {round}");
        assert!(!netns.lock_file().exists(), "round {round}");
    }
}

/// nft, but it takes two seconds before it changes anything, and says in the file `begun` that they have begun.
fn slow_nft() -> Dir {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = Dir(std::env::temp_dir().join(format!("netpol-slow-nft-{}", std::process::id())));
    std::fs::create_dir(&dir.0).unwrap();
    let nft =
        ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].into_iter().find(|path| Path::new(path).exists());
    let begun = dir.file("begun");
    let wait = format!("[ \"$1\" = -f ] && {{ : > {}; /bin/sleep 2; }}", begun.display());
    let script = format!("#!/bin/sh\n{wait}\nexec {} \"$@\"\n", nft.unwrap());
    let path = dir.file("nft");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn a_successor_waits_for_the_nft_of_a_killed_loader() {
    let netns = Netns::new();
    let slow = slow_nft();
    let bundles = [bundle(&a()), bundle(&b())];
    let loader = netns.loader().get_args().last().unwrap().to_owned();
    let mut command = netns.command(loader.to_str().unwrap());
    let path = format!("{}:{}", slow.path(), std::env::var("PATH").unwrap());
    command.args(["apply", bundles[0].path()]).env("PATH", path).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    wait("nft", || slow.file("begun").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    // Its nft sleeps, and the kernel has nothing yet.
    assert!(netns.lock_file().exists());
    assert_eq!(netns.sh("nft list ruleset"), "");
    // Were this one to go first, the other's rules would come after it.
    netns.apply(&bundles[1], "applied");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(netns.tables(), fresh(&b()));
    assert!(!netns.lock_file().exists());
}
