//! The text form: what it looks like, what it refuses, and that nothing makes the reader fall over.

use crate::common::{Rng, unit};
use netpolc_ir::matrix::fold;
use netpolc_ir::text::{parse, write, write_matrix};
use netpolc_ir::unit::Unit;
use netpolc_ir::verify::verify;

const ALL_FORMS: &str = r#"unit 1
node0 = "node-1" 192.168.10.1 fd00::1
node1 = "nöde \"2\" \\ \n\r\t\u{7f}\u{2028}"
class0 = "x app=db"
class1 = ""
pod0 = "x/db-0" node0 10.244.1.10:class0 [fd00:1::10]:class1 [::ffff:1.2.3.4]:class0
pod1 = "x/no address" node1
set0 = { }
set1 = { class0, class1 }
set2 = { class0, 10.0.0.0/8 except 10.1.0.0/16 10.2.0.0/16, 0.0.0.0/0, fd00::/8 except fd00::/64 }
ports0 = { }
ports1 = { any tcp udp sctp/0 tcp/80-90 udp/65535 tcp/9-3 }
isolate ingress set1
isolate egress set1 @3 @4294967295
rule0 = admin ingress 4294967295 set1 from set2 ports1 pass
rule1 = networkpolicy egress 0 set1 to set2 ports0 accept @4 @9
rule2 = baseline egress 1 set1 to set2 ports0 deny
"#;

#[test]
fn every_form_reads_and_writes_as_documented() {
    let unit = parse(ALL_FORMS).unwrap();
    assert_eq!(write(&unit), ALL_FORMS);
    assert_eq!(unit.hosts.values().nth(1).unwrap().name, "nöde \"2\" \\ \n\r\t\u{7f}\u{2028}");
    assert_eq!(parse("unit 1"), Ok(Unit::default()));
    let loose =
        "\n  # a comment\n\tunit   1\nset0={class0,10.0.0.0/8 except 10.0.0.0/9,::/0}\nclass0=\"a\"\n";
    let strict = "unit 1\nclass0 = \"a\"\nset0 = { class0, 10.0.0.0/8 except 10.0.0.0/9, ::/0 }\n";
    assert_eq!(write(&parse(loose).unwrap()), strict);
}

#[test]
fn errors_say_where() {
    let cases = [
        ("", 1, 1),
        ("\n\n", 3, 1),
        ("unit 2", 1, 6),
        ("unit 1 1", 1, 8),
        ("class0 = \"a\"", 1, 1),
        ("unit 1\nunit 1", 2, 1),
        ("unit 1\nclass1 = \"a\"", 2, 1),
        ("unit 1\nclass00 = \"a\"", 2, 1),
        ("unit 1\nclass0 = a", 2, 10),
        ("unit 1\nclass0 = \"a", 2, 10),
        ("unit 1\nclass0 = \"\\x\"", 2, 10),
        ("unit 1\nclass0 = \"\\u{110000}\"", 2, 10),
        ("unit 1\nclass0 = \"\\u{}\"", 2, 10),
        ("unit 1\nclass0 = \"a\" b", 2, 14),
        ("unit 1\nnode0 = \"a\" 1.2.3.4/32", 2, 13),
        ("unit 1\npod0 = \"a\" node01", 2, 12),
        ("unit 1\npod0 = \"a\" node4294967295", 2, 12),
        ("unit 1\npod0 = \"a\" node0 fd00::1:class0", 2, 18),
        ("unit 1\npod0 = \"a\" node0 [1.2.3.4]:class0", 2, 18),
        ("unit 1\nset0 = { 10.0.0.1/8 }", 2, 10),
        ("unit 1\nset0 = { 10.0.0.0/+8 }", 2, 10),
        ("unit 1\nset0 = { 10.0.0.0/33 }", 2, 10),
        ("unit 1\nset0 = { ::/0, class0 }", 2, 16),
        ("unit 1\nset0 = { class0 class1 }", 2, 17),
        ("unit 1\nset0 = { class0, }", 2, 18),
        ("unit 1\nset0 = { ::/0 except }", 2, 22),
        ("unit 1\nset0 = { ::/0", 2, 14),
        ("unit 1\nports0 = { tcp/65536 }", 2, 12),
        ("unit 1\nports0 = { tcp/080 }", 2, 12),
        ("unit 1\nports0 = { icmp }", 2, 12),
        ("unit 1\nisolate both set0", 2, 9),
        ("unit 1\nisolate ingress set0 3", 2, 22),
        ("unit 1\nisolate ingress set0 @4294967296", 2, 22),
        ("unit 1\nrule0 = admin ingress 1 set0 to set0 ports0 deny", 2, 30),
        ("unit 1\nrule0 = admin ingress 1 set0 from set0 ports0 drop", 2, 47),
    ];
    for (text, line, column) in cases {
        let error = parse(text).unwrap_err();
        assert_eq!((error.line, error.column), (line, column), "{text}: {error}");
    }
}

/// Damaged texts are refused or read, and what is read is written and read back.
#[test]
fn damage_does_no_harm() {
    let pieces = [
        "{",
        "}",
        ",",
        "\"",
        "\\u{",
        "=",
        "\n",
        " ",
        "@",
        "/",
        "-",
        "4294967295",
        "class",
        "é",
        "\u{0}",
        "[",
        "0",
    ];
    let mut read = 0;
    for seed in 0..4000 {
        let rng = &mut Rng::new(seed);
        let mut text = if rng.one_in(4) { ALL_FORMS.to_owned() } else { write(&unit(seed)) };
        for _ in 0..1 + rng.below(3) {
            let ends: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
            let (at, piece) = (rng.pick(&ends), rng.pick(&pieces));
            match rng.below(3) {
                0 => text.insert_str(at, piece),
                1 => drop(text.remove(at)),
                _ => text.truncate(at.max(1)),
            }
        }
        if let Ok(unit) = parse(&text) {
            read += 1;
            assert_eq!(parse(&write(&unit)), Ok(unit.clone()), "{text}");
            let _ = verify(unit);
        }
    }
    assert!(read > 100, "{read}");
}

#[test]
fn a_matrix_for_people() {
    let unit = r#"unit 1
node0 = "n" 192.168.0.1
class0 = "a"
class1 = "b"
pod0 = "x/a" node0 10.0.0.1:class0
set0 = { class0 }
set1 = { class1, 172.16.0.0/12 except 172.16.0.0/16 }
ports0 = { tcp/80-81 udp/53 }
isolate ingress set0 @1
rule0 = networkpolicy ingress 0 set0 from set1 ports0 accept @2
"#;
    let expected = r#"matrix 1
node0 = "n" 192.168.0.1
class0 = "a" ingress profile0 egress open
class1 = "b" ingress open egress open
pod0 = "x/a" node0 10.0.0.1:class0
peers0 = { nobody }
peers1 = { everybody }
peers2 = { class1, 172.16.0.0/12 except 172.16.0.0/16 }
profile0 @1
  tcp 0-79 peers0
  tcp 80-81 peers2 @2
  tcp 82-65535 peers0
  udp 0-52 peers0
  udp 53 peers2 @2
  udp 54-65535 peers0
  sctp peers0
  other peers0
"#;
    let unit = verify(parse(unit).unwrap()).unwrap();
    assert_eq!(write_matrix(&fold(&unit)), expected);
}
