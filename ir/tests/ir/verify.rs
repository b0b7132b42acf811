//! One broken unit or matrix for each invariant, and what only looks broken.

use netpolc_ir::matrix::{Matrix, Peers, fold};
use netpolc_ir::text;
use netpolc_ir::unit::Origin;
use netpolc_ir::verify::{MAX_VIOLATIONS, Violation, verify, verify_matrix};

const GOOD: &str = r#"unit 1
node0 = "n" 192.168.0.1 fd01::1
class0 = "a"
class1 = "b"
pod0 = "x/a" node0 10.0.0.1:class0 10.0.0.2:class0
pod1 = "x/b" node0 10.1.0.1:class1 [fd00::1]:class1
set0 = { class0, class1 }
set1 = { class0, 10.0.0.0/16 except 10.0.1.0/24, 172.16.0.0/12 }
ports0 = { tcp/80 tcp/90-99 }
ports1 = { tcp/1 }
isolate ingress set0 @1 @2
rule0 = admin ingress 1 set0 from set1 ports0 deny @1
rule1 = networkpolicy ingress 0 set0 from set1 ports0 accept @3
rule2 = networkpolicy ingress 0 set0 from set0 ports1 accept @3
"#;

fn invariants(violations: Vec<Violation>) -> Vec<&'static str> {
    let mut all: Vec<&str> = violations.into_iter().map(|v| v.invariant).collect();
    all.dedup();
    all
}

/// What is violated once `from` is replaced in the good unit.
fn broken(from: &str, to: &str) -> Vec<&'static str> {
    assert!(GOOD.contains(from), "{from}");
    let text = GOOD.replace(from, to);
    invariants(verify(text::parse(&text).unwrap()).err().unwrap_or_default())
}

#[test]
fn each_invariant_of_a_unit_is_checked() {
    assert_eq!(broken("unit 1", "unit 1"), [""; 0]);
    let cases = [
        ("x/a\" node0", "x/a\" node1", "U1"),
        ("10.0.0.2:class0", "10.0.0.2:class2", "U1"),
        ("set1 = { class0", "set1 = { class7", "U1"),
        ("isolate ingress set0", "isolate ingress set2", "U1"),
        ("1 set0 from", "1 set2 from", "U1"),
        ("from set1 ports0 deny", "from set2 ports0 deny", "U1"),
        ("ports0 deny", "ports2 deny", "U1"),
        ("{ class0, class1 }", "{ class1, class0 }", "U2"),
        ("{ class0, class1 }", "{ class0, class0 }", "U2"),
        ("isolate ingress set0", "isolate ingress set1", "U3"),
        ("1 set0 from", "1 set1 from", "U3"),
        ("tcp/90-99", "tcp/99-90", "U4"),
        ("10.0.0.2:class0", "10.0.0.1:class0", "U5"),
        ("10.1.0.1:class1", "10.0.0.1:class0", "U5"),
        ("192.168.0.1", "10.0.0.1", "U5"),
        ("10.0.0.2:class0", "10.0.1.2:class0", "U6"),
        ("10.0.0.2:class0", "[fd00::2]:class0", "U6"),
        ("172.16.0.0/12", "10.1.0.0/16", "U6"),
        ("172.16.0.0/12", "0.0.0.0/0", "U6"),
        ("accept @3", "pass @3", "U7"),
        ("networkpolicy ingress 0", "networkpolicy ingress 3", "U7"),
        ("networkpolicy ingress 0", "admin ingress 1", "U8"),
        ("except 10.0.1.0/24", "except fd00::/64", "U9"),
        ("@1 @2", "@2 @1", "U10"),
        ("accept @3", "accept @3 @3", "U10"),
        ("\"n\"", r#""n\n""#, "U11"),
        ("class0 = \"a\"", r#"class0 = "\u{9b}""#, "U11"),
        ("x/a", r"x/a\t", "U11"),
        ("x/a", "x/c", "U12"),
        ("x/a", "x/b", "U12"),
        ("node0 = \"n\" 192", "node0 = \"n\"\nnode1 = \"m\" 192", "U12"),
        ("192.168.0.1 fd01::1", "fd01::1 192.168.0.1", "U13"),
    ];
    for (from, to, invariant) in cases {
        assert_eq!(broken(from, to), [invariant], "{from} -> {to}");
    }
}

/// The union of a set's blocks counts, and blocks that no address meets do not.
#[test]
fn what_does_not_straddle() {
    for (from, to) in [
        ("172.16.0.0/12", "10.0.1.0/24"),
        ("172.16.0.0/12", "0.0.0.0/0, ::/0"),
        ("172.16.0.0/12", "10.1.0.1/32, fd00::1/128"),
        ("10.0.0.0/16 except 10.0.1.0/24", "10.0.0.1/32, 10.0.0.2/32"),
        ("10.0.0.0/16", "10.0.0.0/16 except 10.0.0.2/32, 10.0.0.0/30"),
    ] {
        assert_eq!(broken(from, to), [""; 0], "{from} -> {to}");
    }
}

#[test]
fn the_list_of_violations_is_bounded() {
    let mut text = "unit 1\n".to_owned();
    (0..10 * MAX_VIOLATIONS).for_each(|i| text += &format!("ports{i} = {{ udp/9-3 }}\n"));
    let violations = verify(text::parse(&text).unwrap()).unwrap_err();
    assert_eq!(violations.len(), MAX_VIOLATIONS);
}

fn broken_matrix(change: impl FnOnce(&mut Matrix)) -> Vec<&'static str> {
    let unit = verify(text::parse(GOOD).unwrap()).unwrap();
    let mut matrix = fold(&unit);
    assert_eq!(verify_matrix(&matrix), Ok(()));
    change(&mut matrix);
    invariants(verify_matrix(&matrix).err().unwrap_or_default())
}

#[test]
fn each_invariant_of_a_matrix_is_checked() {
    fn profile(matrix: &mut Matrix) -> &mut netpolc_ir::matrix::ProfileData {
        matrix.profiles.values_mut().find(|p| p.transports[0].len() > 1).unwrap()
    }
    assert_eq!(broken_matrix(|m| profile(m).other.peers = Peers::from_u32(99)), ["M1"]);
    assert_eq!(
        broken_matrix(|m| m.endpoints.values_mut().next().unwrap().host = netpolc_ir::unit::Host::from_u32(3)),
        ["M1"]
    );
    assert_eq!(broken_matrix(|m| profile(m).transports[0][0].hi += 1), ["M2"]);
    assert_eq!(broken_matrix(|m| drop(profile(m).transports[0].remove(0))), ["M2"]);
    assert_eq!(broken_matrix(|m| drop(profile(m).transports[0].pop())), ["M2"]);
    assert_eq!(broken_matrix(|m| profile(m).transports[1].clear()), ["M2"]);
    assert_eq!(
        broken_matrix(|m| profile(m).transports[0][1].peers = profile(m).transports[0][0].peers),
        ["M3"]
    );
    assert_eq!(broken_matrix(|m| m.peers[Peers::NONE].classes.insert(0)), ["M4"]);
    assert_eq!(broken_matrix(|m| m.peers[Peers::ALL].classes.remove(0)), ["M4"]);
    assert_eq!(broken_matrix(|m| _ = m.peers.push(m.peers[Peers::ALL].clone())), ["M5"]);
    let wide = |m: &mut Matrix| {
        let mut set = m.peers[Peers::NONE].clone();
        set.classes = netpolc_ir::bitset::BitSet::full(70);
        m.peers.push(set);
    };
    assert_eq!(broken_matrix(wide), ["M6"]);
    assert_eq!(broken_matrix(|m| profile(m).origins = vec![Origin(2), Origin(2)]), ["M7"]);
    assert_eq!(broken_matrix(|m| profile(m).transports[0][0].origins = vec![Origin(2), Origin(1)]), ["M7"]);
    assert_eq!(broken_matrix(|m| profile(m).other.hi = 1), ["M8"]);
    let again = |m: &mut Matrix| {
        let data = profile(m).clone();
        m.profiles.push(data);
    };
    assert_eq!(broken_matrix(again), ["M9"]);
    let open = |m: &mut Matrix| {
        let profile = profile(m);
        profile.transports.iter_mut().for_each(|t| t.truncate(1));
        profile.transports.iter_mut().for_each(|t| (t[0].hi, t[0].peers) = (65535, Peers::ALL));
        profile.other.peers = Peers::ALL;
        profile.origins.clear();
    };
    assert_eq!(broken_matrix(open), ["M9"]);
    let twice = |m: &mut Matrix| {
        let addr = m.endpoints.values().next().unwrap().addrs[0].0;
        m.hosts.values_mut().next().unwrap().addrs.push(addr);
    };
    assert_eq!(broken_matrix(twice), ["M10"]);
}
