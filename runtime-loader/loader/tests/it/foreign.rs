//! Rules of others stay as they are, byte for byte.

use crate::common::{Dir, LOADER, Netns, a, b, bundle, c, unique};
use std::os::unix::fs::PermissionsExt as _;

const OTHERS: &str = r#"
table ip kube-proxy {
	comment "rules for kube-proxy"
	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 10.96.0.10 . tcp . 53 : goto svc-a }
	}
	set podif {
		type ipv4_addr
		elements = { 10.0.0.1 }
	}
	chain svc-a {
		counter packets 7 bytes 420 accept
	}
	chain forward {
		type filter hook forward priority filter - 110; policy accept;
		ct state new counter packets 0 bytes 0 jump svc-a
	}
}
table ip6 kube-proxy {
	chain forward {
		type filter hook forward priority filter - 10; policy accept;
	}
}
table inet netpolc {
	chain forward {
		type filter hook forward priority filter - 10; policy accept;
	}
}
table bridge netpolc {
	set s {
		type mark
	}
}
table ip netpolc2 {
	chain version_0123456789abcdef {
		drop
	}
}
"#;

/// The listing without our two tables. A table's block ends with a brace at the beginning of a line.
fn others(netns: &Netns) -> String {
    let mut kept = String::new();
    let mut ours = false;
    for line in netns.sh("nft -a list ruleset").lines() {
        ours = ours && !line.starts_with("table ");
        ours |= ["table ip netpolc {", "table ip6 netpolc {"].iter().any(|head| line.starts_with(head));
        if !ours {
            kept += line;
            kept += "\n";
        }
        ours &= line != "}";
    }
    kept
}

#[test]
fn tables_of_others() {
    let netns = Netns::new();
    netns.nft(OTHERS);
    netns.sh(
        "iptables-nft -A FORWARD -s 10.1.0.0/16 -m conntrack --ctstate NEW -j DROP -m comment --comment x",
    );
    netns.sh("ip6tables-nft -t nat -A POSTROUTING -j MASQUERADE");
    let before = others(&netns);
    assert!(
        before.contains("table ip filter")
            && before.contains("table inet netpolc")
            && before.contains("bridge")
    );
    for script in [a(), b(), c()] {
        netns.apply(&bundle(&script), "applied");
        assert_eq!(others(&netns), before);
    }
    // The ways that repair things too.
    netns.sh("nft add counter ip netpolc handmade");
    netns.apply(&bundle(&c()), "repaired");
    assert_eq!(others(&netns), before);
    netns.load(&["remove"], 0);
    assert_eq!(netns.sh("nft -a list ruleset"), before);
}

/// Whether ours are there is asked by their name, in the right family: tables of others may hold what nft cannot read, and
/// so many rules that to list them takes longer than all that the loader does.
#[test]
fn tables_of_others_are_not_listed() {
    let netns = Netns::new();
    let mut rules = String::from("table ip kube-proxy {\n\tchain services {\n");
    for i in 0..2_000 {
        rules += &format!("\t\tip daddr 10.96.{}.{} tcp dport 80 counter accept\n", i / 250, i % 250);
    }
    netns.nft(&format!("{rules}\t}}\n}}\ntable inet netpolc {{\n}}\ntable ip6 netpolc2 {{\n}}\n"));
    let before = others(&netns);
    let dir = bundle(&a());
    // A stand-in for nft that refuses to look at anything but our tables, and says what it was asked.
    let bin = Dir(std::env::temp_dir().join(unique()));
    std::fs::create_dir(&bin.0).unwrap();
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {log}\ncase \"$*\" in\n  *'list table ip netpolc'|*'list table ip6 netpolc'|'-f -') \
         exec {nft} \"$@\" ;;\nesac\necho refused >&2\nexit 1\n",
        log = bin.file("log").display(),
        nft = netns.sh("command -v nft").trim()
    );
    std::fs::write(bin.file("nft"), script).unwrap();
    std::fs::set_permissions(bin.file("nft"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let run = |arguments: &str, starts: &str| {
        let output = netns.output(&format!("PATH={}:$PATH {LOADER} {arguments}", bin.path()));
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success() && text.starts_with(starts), "{arguments}: {text}");
    };
    run(&format!("apply --backend nftables {}", dir.path()), "applied");
    run(&format!("apply --backend nftables {}", dir.path()), "unchanged");
    run("status", "in force");
    assert!(std::fs::read_to_string(bin.file("log")).unwrap().contains("list table ip netpolc"));
    run("remove", "");
    assert_eq!(others(&netns), before);
}
