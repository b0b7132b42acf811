//! The parser, the checks and the version of rulesets.

use crate::common::{Random, SHAPE, SHAPE6, script};
use netpolc_bundle::nft::{
    self, Elements, Family, Field, Key, Match, Outcome, ParseError, Ruleset, Verdict, Version,
};

const LISTING: &str = include_str!("data/shape.listing");
const LISTING_NUMERIC: &str = include_str!("data/shape.numeric.listing");
const LISTING6: &str = include_str!("data/shape6.listing");

fn parse(text: &str) -> Ruleset {
    nft::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A script of one chain with this rule, and sets and maps to refer to.
fn with_rule(rule: &str) -> String {
    format!(
        "table ip netpolc {{\n}}\nflush table ip netpolc\ntable ip netpolc {{\n\
         set s {{\ntype ipv4_addr\n}}\nmap m {{\ntype inet_service : verdict\nflags interval\n}}\n\
         map a {{\ntype ipv4_addr : verdict\n}}\n\
         chain forward {{\ntype filter hook forward priority filter; policy accept;\n{rule}\n}}\n}}\n"
    )
}

fn rule(text: &str) -> nft::Rule {
    parse(&with_rule(text)).tables[&Family::Ip].chains["forward"].rules[0].clone()
}

fn check_refused(text: &str, line: u32, part: &str) {
    let error = nft::parse(text).expect_err(text);
    assert!(
        error.message.contains(part) && error.line == line,
        "{error}, wanted line {line} and {part:?}\n{text}"
    );
}

/// Both texts mean the same rule, up to what the version leaves out.
fn check_same(a: &str, b: &str) {
    assert_eq!(version(&with_rule(a)), version(&with_rule(b)), "{a}\n{b}");
}

fn version(text: &str) -> Version {
    nft::digest(&parse(text))
}

#[test]
fn a_listing_means_what_the_script_means() {
    nft::check(&parse(SHAPE)).unwrap();
    assert_eq!(version(SHAPE), version(LISTING));
    assert_eq!(version(SHAPE), version(LISTING_NUMERIC));
    assert_eq!(version(SHAPE6), version(LISTING6));
    assert_ne!(version(SHAPE), version(SHAPE6));
    let table = &parse(SHAPE).tables[&Family::Ip];
    let listed = &parse(LISTING).tables[&Family::Ip];
    assert!(table.flush && !listed.flush);
    assert_eq!((&table.sets, &table.chains), (&listed.sets, &listed.chains));
}

#[test]
fn what_the_shape_says() {
    let ruleset = parse(SHAPE);
    let table = &ruleset.tables[&Family::Ip];
    assert_eq!(table.sets["local_3f2a9c01"].elements, Elements::Addrs(vec![0x0a00_0001, 0x0a00_0002]));
    assert_eq!(table.sets["podif"].elements, Elements::default());
    let Elements::General(blocks) = &table.sets["blocks_9e9f"].elements else { panic!() };
    assert_eq!(blocks[&vec![Key::Addr(0x0a03_0400, 0x0a03_04ff)]], Some(Verdict::Goto("deny_c0c0".into())));
    assert_eq!(blocks[&vec![Key::Addr(0x0a04_0000, 0x0a04_0007)]], Some(Verdict::Return));
    let Elements::General(ports) = &table.sets["ports_d00d"].elements else { panic!() };
    assert_eq!(ports[&vec![Key::Proto(17), Key::Service(53, 53)]], Some(Verdict::Return));
    assert_eq!(table.chains["forward"].hook, Some(nft::Hook { priority: -10 }));
    assert_eq!(table.chains["deny_c0c0"].rules[1].comment.as_deref(), Some("default deny"));
    assert!(table.chains["deny_c0c0"].rules[1].counter);
    let masked = &table.chains["from_5a5a"].rules[1];
    assert_eq!(masked.outcome, Outcome::Vmap(vec![Field::SaddrPrefix(24)], "block24_9e9e".into()));
    assert_eq!(nft::markers(table).len(), 1);
}

/// What the loader fills is asked as it is filled, and decides about packets, but its elements are no part of a version.
#[test]
fn sets_that_the_loader_fills() {
    let table = |fill: &str, rules: &str| {
        format!(
            "table ip netpolc {{\n\tset podif {{\n\t\ttype ifname\n\t}}\n\tset local {{\n\t\ttype ipv4_addr\n\t\t\
             elements = {{ 10.0.0.1 }}\n\t}}\n\tset podaddr {{\n\t\ttype ifname . ipv4_addr\n{fill}\t}}\n\
             \tchain forward {{\n\t\ttype filter hook forward priority -10; policy accept;\n{rules}\t}}\n}}\n"
        )
    };
    let unbound = "\t\tiifname . ip saddr != @podaddr drop\n";
    let empty = parse(&table("", unbound));
    let full = parse(&table("\t\telements = { \"veth1\" . 10.0.0.1 }\n", unbound));
    nft::check(&empty).unwrap();
    assert_eq!(nft::digest(&empty), nft::digest(&full));
    assert_ne!(nft::digest(&empty), nft::digest(&parse(&table("", ""))));
    for rules in ["iifname . ip daddr != @podaddr drop", "iifname . ip saddr != @local drop"] {
        assert!(nft::parse(&table("", &format!("\t\t{rules}\n"))).is_err(), "{rules}");
    }
    let other = parse(&table("", "\t\tiifname . ip saddr @podaddr drop\n"));
    assert!(nft::check(&other).is_err());

    use netpolc_bundle::nft::run::{Bases, Packet, passes};
    let rules = parse(&table("", unbound));
    let judged = |packet: Packet| passes(&rules, &Bases::of(&rules), &packet);
    let from = |src: &str| Packet::opening(src.parse().unwrap(), "10.0.0.9".parse().unwrap(), 17, 53);
    assert!(judged(from("10.0.0.1")) && !judged(from("10.0.0.2")));
    assert!(!judged(Packet { spoofed: true, ..from("10.0.0.1") }));
    assert!(!judged(Packet { asymmetric: true, ..from("10.0.0.1") }));
}

#[test]
fn spellings_of_matches() {
    for text in [
        "ct state and ( established | related ) == 0 drop",
        "ct state & (related | established) == 0 drop",
        "ct state & 0x6 == 0x0 drop",
        "ct state ! established,related drop",
        "ct state ! 0x4,0x2 drop",
    ] {
        assert_eq!(rule(text).matches, [Match::NotEstablished], "{text}");
    }
    for text in [
        "tcp flags & (fin | syn | rst | ack) != syn drop",
        "tcp flags != syn / fin,syn,rst,ack drop",
        "tcp flags != 0x2 / 0x1,0x2,0x4,0x10 drop",
    ] {
        assert_eq!(rule(text).matches, [Match::TcpNotSyn], "{text}");
    }
    for text in ["@th,96,8 != 1 meta l4proto sctp drop", "@th,96,8 != 0x1 meta l4proto 132 drop"] {
        assert_eq!(rule(text).matches, [Match::SctpNotInit], "{text}");
    }
    assert_eq!(rule("ct state 0x41 drop").matches, [Match::NotTracked]);
    assert_eq!(rule("fib saddr . iif oif 0 drop").matches, [Match::ReversePathFails]);
    assert_eq!(rule("iifname . ip saddr != @podaddr drop").matches, [Match::Unbound]);
    assert_eq!(rule("meta l4proto udp drop"), rule("meta l4proto 17 drop"));
    assert_eq!(rule("tcp dport vmap @m"), rule("meta l4proto 6 th dport vmap @m"));
    check_same("meta l4proto 6 ip saddr @s th dport vmap @m", "ip saddr @s tcp dport vmap @m");
    check_same(
        "meta l4proto 6 tcp flags != syn / fin,syn,rst,ack drop",
        "tcp flags != syn / fin,syn,rst,ack drop",
    );
    check_same("ip saddr & 255.255.255.255 @s drop", "ip saddr @s drop");
    check_same("ip saddr & 0.0.0.0 == @s drop", "ip saddr & 0.0.0.0 @s drop");
    check_same("counter packets 12 bytes 34 drop comment \"x\"", "counter drop");
    check_same("counter packets 12 bytes 34 ip saddr vmap @a", "counter ip saddr vmap @a");
}

#[test]
fn what_the_parser_refuses() {
    for (rule, part) in [
        ("ct state != established,related drop", "ct state"),
        ("ct state new drop", "ct state"),
        ("ct state ! established drop", "ct state"),
        ("ct state & (established | related) == 6 drop", "ct state"),
        ("tcp flags & (fin | syn) != syn drop", "tcp flags"),
        ("@th,96,8 == 1 meta l4proto sctp drop", "`!=`"),
        ("@th,96,8 != 2 meta l4proto sctp drop", "chunk type"),
        ("@th,104,8 != 1 meta l4proto sctp drop", "`96`"),
        ("@th,96,8 != 1 meta l4proto tcp drop", "another protocol"),
        ("@th,96,8 != 1 drop", "`meta`"),
        ("ip6 saddr @s drop", "unknown match"),
        ("icmpv6 type { 133, 134, 135, 136, 137 } accept", "unknown match"),
        ("ip6 hoplimit 255 icmpv6 type { 133, 134, 135, 136, 137 } accept", "unknown match"),
        ("ip saddr 10.0.0.1 drop", "`@`"),
        ("ip saddr & 255.0.255.0 @s drop", "holes"),
        ("ip saddr & 255.255.255.0 . ip daddr @s drop", "concatenation"),
        ("ip saddr @s", "a match or a verdict"),
        ("counter", "a match or a verdict"),
        ("counter ip saddr @s drop", "counter before"),
        ("drop drop", "the end of the statement"),
        ("queue", "`dport`"),
        ("log prefix \"x\" drop", "unknown match"),
        ("jump $x", "unexpected character"),
        ("goto a/b", "a name"),
        ("meta mark set 1 accept", "`l4proto`"),
        ("drop \\", "unexpected character"),
        ("meta l4proto 006 drop", "protocol"),
        ("meta l4proto 256 drop", "protocol"),
        ("meta l4proto 17 tcp dport vmap @m", "two protocols"),
        ("type filter hook forward priority filter; policy accept;", "twice"),
    ] {
        let part = if rule == "queue" { "unknown match" } else { part };
        check_refused(&with_rule(rule), 17, part);
    }
    let long = format!("drop comment \"{}\"", "x".repeat(129));
    check_refused(&with_rule(&long), 17, "comment of more");
}

#[test]
fn what_scripts_may_touch() {
    for text in [
        "include \"/etc/passwd\"",
        "define x = 1",
        "delete table ip netpolc",
        "flush ruleset",
        "table ip filter {\n}",
        "table inet netpolc {\n}",
        "table netpolc {\n}",
        "add rule ip netpolc forward accept",
        "flush table ip filter",
        "flush table ip netpolc",
        "table ip netpolc {\ncounter c {\n}\n}",
        "table ip netpolc {\nchain c {\ntype filter hook input priority 0; policy accept;\n}\n}",
        "table ip netpolc {\nchain c {\ntype nat hook forward priority 0; policy accept;\n}\n}",
        "table ip netpolc {\nchain c {\ntype filter hook forward priority 0; policy drop;\n}\n}",
        "table ip netpolc {\nchain c {\n}\nchain c {\n}\n}",
        "table ip netpolc {\nset c {\ntype ipv4_addr\n}\nmap c {\ntype ipv4_addr : verdict\n}\n}",
        "table ip netpolc {\nset c {\ntype ipv6_addr\n}\n}",
        "table ip netpolc {\nset c {\ntype ipv4_addr\nflags timeout\n}\n}",
        "table ip netpolc {\nset c {\n}\n}",
        "table ip netpolc {\nchain c {\n}\n}\nflush table ip netpolc",
        "table ip netpolc {\nchain c {\ndrop",
        "table ip netpolc {",
        "table ip netpolc { } table ip netpolc { }",
        "table ip netpolc {\n} # a\\\nflush ruleset",
        "table ip netpolc {\n}\r\n",
        "\u{feff}table ip netpolc {\n}",
    ] {
        assert!(nft::parse(text).is_err(), "{text}");
    }
    assert_eq!(parse("").tables.len(), 0);
    assert_eq!(parse("# nothing\n\n;;\n").tables.len(), 0);
    assert_eq!(parse("table ip netpolc { }\ntable ip netpolc {}\ntable ip6 netpolc {\n}").tables.len(), 2);
}

#[test]
fn elements() {
    let set = |properties: &str| format!("table ip netpolc {{\nset s {{\n{properties}\n}}\n}}\n");
    let elements = |text: &str| parse(&set(text)).tables[&Family::Ip].sets["s"].elements.clone();
    let refused = |text: &str| assert!(nft::parse(&set(text)).is_err(), "{text}");
    assert_eq!(
        elements("type ipv4_addr\nelements = {\n10.0.0.2,\n\t\t 10.0.0.1,\n }"),
        Elements::Addrs(vec![0x0a00_0001, 0x0a00_0002])
    );
    assert_eq!(elements("type ipv4_addr"), Elements::Addrs(vec![]));
    assert_eq!(
        elements("type ipv4_addr\nflags interval\nelements = { 0.0.0.0/0 }"),
        elements("type ipv4_addr\nflags interval\nelements = { 0.0.0.0-255.255.255.255 }")
    );
    assert_eq!(elements("type ifname\nelements = { \"veth1\", \"a.b@c\" }").len(), 2);
    let triple =
        "type ipv4_addr . inet_proto . inet_service\nflags interval\nelements = { 10.0.0.0/8 . 6 . 80-90 }";
    assert_eq!(elements(triple), elements(&triple.replace(". 6 .", ". tcp .")));
    for text in [
        "type ipv4_addr\nelements = { 10.0.0.1, 10.0.0.1 }",
        "type ipv4_addr\nelements = { 10.0.0.0/24 }",
        "type ipv4_addr\nelements = { 10.0.0.1 comment \"x\" }",
        "type ipv4_addr\nelements = { 10.0.0.1 timeout 5s }",
        "type ipv4_addr\nelements = { 010.0.0.1 }",
        "type ipv4_addr\nelements = { fd00::1 }",
        "type ipv4_addr\nelements = { }",
        "type ipv4_addr\nelements = { 10.0.0.1 10.0.0.2 }",
        "type ipv4_addr\nelements = { 10.0.0.1 }\nelements = { 10.0.0.2 }",
        "elements = { 10.0.0.1 }\ntype ipv4_addr",
        "type ipv4_addr\nelements = { 10.0.0.1 }\nflags interval",
        "type ipv4_addr\nflags interval\nelements = { 10.0.0.1/24 }",
        "type ipv4_addr\nflags interval\nelements = { 10.0.0.0/33 }",
        "type ipv4_addr\nflags interval\nelements = { 10.0.0.2-10.0.0.1 }",
        "type inet_service\nflags interval\nelements = { 90-80 }",
        "type inet_service\nelements = { 080 }",
        "type inet_service\nelements = { 65536 }",
        "type inet_service\nelements = { http }",
        "type ifname\nelements = { \"veth*\" }",
        "type ifname\nelements = { \"sixteen-bytes-xx\" }",
        "type ifname\nelements = { veth1 }",
        "type ipv4_addr : verdict",
        "type ipv4_addr . ipv4_addr . ipv4_addr . ipv4_addr . ipv4_addr . ipv4_addr",
    ] {
        refused(text);
    }
}

fn check_error(text: &str, part: &str) {
    let error = nft::check(&parse(text)).expect_err(text);
    assert!(error.to_string().contains(part), "{error}, wanted {part:?}\n{text}");
}

#[test]
fn references() {
    check_error(&with_rule("jump nowhere"), "not declared");
    check_error(&with_rule("ip saddr @nowhere drop"), "not declared");
    check_error(&with_rule("ip saddr vmap @s"), "no map");
    check_error(&with_rule("ip saddr @a drop"), "a map");
    check_error(&with_rule("ip saddr . ip daddr @s drop"), "another type");
    check_error(&with_rule("jump forward"), "cannot be jumped to");
    check_error(&with_rule("meta l4proto 47 th dport vmap @m"), "without ports");
    check_error(&SHAPE.replace("goto from_5a5a, 17", "goto from_5a5b, 17"), "not declared");
    check_error(&SHAPE.replace("10.4.0.0-10.4.0.7", "10.3.4.255-10.4.0.7"), "overlap");
    check_error("table ip netpolc {\nchain version_00 {\ndrop\n}\n}", "marker");
}

/// A base chain and `below` chains, each leading to the next.
fn chains(below: usize, last: &str) -> String {
    let mut text =
        "table ip netpolc {\nchain forward {\ntype filter hook forward priority 0; policy accept;\ngoto c1\n}\n".to_owned();
    for n in 1..=below {
        let rule = if n == below { last.to_owned() } else { format!("jump c{}", n + 1) };
        text += &format!("chain c{n} {{\n{rule}\n}}\n");
    }
    text + "}\n"
}

#[test]
fn chains_end() {
    nft::check(&parse(&chains(15, "drop"))).unwrap();
    check_error(&chains(16, "drop"), "16 chains in a row");
    check_error(&chains(3, "goto c1"), "loop");
    check_error(&chains(1, "goto c1"), "loop");
    // Wide rather than deep: 14 layers, each chain with two ways into the next layer's two chains.
    let mut text = "table ip netpolc {\n".to_owned();
    for layer in 0..14 {
        for side in ["a", "b"] {
            text += &format!("chain {side}{layer} {{\n");
            if layer < 13 {
                text += &format!("ct state invalid,untracked jump a{0}\ngoto b{0}\n", layer + 1);
            }
            text += "}\n";
        }
    }
    nft::check(&parse(&(text + "}\n"))).unwrap();
}

#[test]
fn what_the_version_depends_on() {
    let version_of = |from: &str, to: &str| {
        let text = SHAPE.replacen(from, to, 1);
        assert_ne!(text, SHAPE, "{from}");
        version(&text)
    };
    for (from, to) in [
        ("# netpolc 1: node node-1", "# another"),
        ("comment \"default deny\"", "comment \"denied\""),
        ("chain version_0123456789abcdef", "chain version_0123456789abcdee"),
        ("type ifname\n", "type ifname\nelements = { \"veth1\" }\n"),
        ("10.0.0.7, 10.0.0.9", "10.0.0.9, 10.0.0.7"),
        ("\tchain forward {", "\tchain nobody_comes_here {\n\t\tdrop\n\t}\n\tchain forward {"),
        ("flush table ip netpolc\n", ""),
        ("filter - 10", "-10"),
    ] {
        assert_eq!(version_of(from, to), version(SHAPE), "{from} -> {to}");
    }
    for (from, to) in [
        ("10.0.0.7, 10.0.0.9", "10.0.0.7"),
        ("10.0.0.7, 10.0.0.9", "10.0.0.7, 10.0.0.8"),
        ("17 . 53 : return", "17 . 53 : accept"),
        ("17 . 53 : return", "17 . 54 : return"),
        ("6 : goto from_5a5a }", "6 : goto deny_c0c0 }"),
        ("filter - 10", "filter - 11"),
        ("counter drop comment \"default deny\"", "drop comment \"default deny\""),
        ("counter drop comment \"default deny\"", "counter accept"),
        ("\t\tip saddr vmap @egress_1234\n", ""),
        ("ip saddr vmap @egress_1234", "ip daddr vmap @egress_1234"),
        ("255.255.255.0 vmap", "255.255.254.0 vmap"),
        ("meta l4proto 6 th dport", "meta l4proto 17 th dport"),
        ("9000-9100", "9000-9101"),
        ("ct state invalid,untracked goto strange_aaaa", "ct state invalid,untracked jump strange_aaaa"),
    ] {
        assert_ne!(version_of(from, to), version(SHAPE), "{from} -> {to}");
    }
    let swapped = SHAPE.replace(
        "ip saddr vmap @egress_1234\n\t\tip daddr vmap @ingress_1234",
        "ip daddr vmap @ingress_1234\n\t\tip saddr vmap @egress_1234",
    );
    assert_ne!(version(&swapped), version(SHAPE));
    assert_ne!(version(&script()), version(SHAPE));
    let printed = version(SHAPE).to_string();
    assert_eq!(printed.parse::<Version>().unwrap(), version(SHAPE));
    for bad in ["", "0123456789ABCDEF", "0123456789abcde", "+123456789abcdef", "0123456789abcdef0"] {
        assert!(bad.parse::<Version>().is_err(), "{bad}");
    }
}

/// Mutated texts are read or refused, and a text that is read has the version that its meaning has.
#[test]
fn mutations_never_panic() {
    let mut random = Random(7);
    let mut read = 0;
    for seed in [SHAPE, LISTING, SHAPE6] {
        let expected = version(seed);
        for _ in 0..4_000 {
            let mut bytes = seed.as_bytes().to_vec();
            random.mutate(&mut bytes);
            let text = String::from_utf8_lossy(&bytes);
            let Ok(ruleset) = nft::parse(&text) else { continue };
            read += 1;
            let _ = nft::check(&ruleset);
            let strip = |ruleset: &Ruleset| {
                let tables: Vec<_> =
                    ruleset.tables.values().map(|t| format!("{:?} {:?}", t.sets, t.chains)).collect();
                tables
            };
            if strip(&ruleset) == strip(&parse(seed)) {
                assert_eq!(nft::digest(&ruleset), expected);
            }
        }
    }
    assert!(read > 100, "{read}");
}

#[test]
fn limits_hold() {
    let mut long = "x".repeat(256);
    check_refused(&format!("table ip netpolc {{\nchain {long} {{\n}}\n}}"), 2, "name of more");
    long.truncate(255);
    parse(&format!("table ip netpolc {{\nchain {long} {{\n}}\n}}"));
    let matches = "ct state invalid,untracked ".repeat(17);
    check_refused(&with_rule(&format!("{matches}drop")), 17, "matches");
    let many = "chain c { ".repeat(100_000);
    let ParseError { line, .. } = nft::parse(&format!("table ip netpolc {{ {many}")).unwrap_err();
    assert_eq!(line, 1);
    let mut text = "table ip netpolc {\nset s {\ntype ipv4_addr\nelements = { ".to_owned();
    for n in 0..=2_000_000u32 {
        text += &std::net::Ipv4Addr::from(n).to_string();
        text += ",";
    }
    check_refused(&(text + "}\n}\n}\n"), 4, "more than 2000000 elements");
}

/// Run with `--release -- --ignored --nocapture` for the figures; it fails only where something is far off.
#[test]
fn fifty_thousand_addresses_are_quick() {
    let list: Vec<String> =
        (0..50_000u32).map(|n| std::net::Ipv4Addr::from(0x0a00_0000 + n * 7).to_string()).collect();
    let set = format!("\tset s {{\n\t\ttype ipv4_addr\n\t\telements = {{ {} }}\n\t}}\n", list.join(", "));
    let text = with_rule("ip saddr @t drop")
        .replace("set s {", &format!("{}set s {{", set.replace("set s", "set t")));
    let start = std::time::Instant::now();
    let ruleset = parse(&text);
    let parsed = start.elapsed();
    let start = std::time::Instant::now();
    nft::digest(&ruleset);
    let digested = start.elapsed();
    println!("{} bytes: parsed in {parsed:?}, digest in {digested:?}", text.len());
    assert_eq!(ruleset.tables[&Family::Ip].sets["t"].elements.len(), 50_000);
    assert!(parsed.as_millis() < 1_000 && digested.as_millis() < 1_000);
}
