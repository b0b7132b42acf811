use super::*;
use crate::contents::{Contents, Pair, Pod};
use crate::emit::emit;

/// Two pods of the node: 10.0.0.1 is isolated and takes TCP port 80 from 10.0.0.2.
fn machine(established: Established) -> Machine {
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    let contents = Contents {
        columns: 2,
        rows: vec!["ingress test".into()],
        pods: BTreeMap::from([
            (ip("10.0.0.1"), Pod { column: 0, ingress: 1, egress: 0, pod: 1 }),
            (ip("10.0.0.2"), Pod { column: 1, ingress: 0, egress: 0, pod: 2 }),
        ]),
        blocks: BTreeMap::new(),
        pairs: BTreeMap::from([((1, 1), Pair { ports: [2, 0, 0], other: 0 })]),
        ports: vec![vec![(80, 80)]],
    };
    load(&emit(&contents, established).unwrap(), &contents.text()).unwrap()
}

fn flow(src: &str, port: u16) -> Flow {
    Flow { src: src.parse().unwrap(), dst: "10.0.0.1".parse().unwrap(), protocol: Protocol::TCP, port }
}

#[test]
fn what_a_pair_says() {
    let machine = machine(Established::Cut);
    let verdict = |src: &str, port| machine.decide(&Packet::opening(flow(src, port)));
    assert_eq!(verdict("10.0.0.2", 80), Verdict::Allow);
    assert_eq!(verdict("10.0.0.2", 81), Verdict::Deny);
    assert_eq!(verdict("10.0.0.3", 80), Verdict::Deny);
    assert_eq!(verdict("10.0.0.1", 81), Verdict::Allow);
}

/// Behind a bridge, any pod of the node may be the source, and nobody else.
#[test]
fn interfaces() {
    let machine = machine(Established::Cut);
    let from = |src: &str, interface| machine.verdict(&Case { interface, ..machine.opening(flow(src, 80)) });
    assert_eq!(from("10.0.0.2", Some(2)), Verdict::Allow);
    assert_eq!(from("10.0.0.2", Some(layout::SHARED)), Verdict::Allow);
    assert_eq!(from("10.0.0.2", Some(1)), Verdict::Deny);
    assert_eq!(from("10.0.0.2", None), Verdict::Deny);
    let outwards = |interface| {
        let flow = Flow {
            src: "10.9.9.9".parse().unwrap(),
            dst: "10.0.0.2".parse().unwrap(),
            ..flow("10.0.0.2", 80)
        };
        machine.verdict(&Case { interface, ..machine.opening(flow) })
    };
    assert_eq!(outwards(None), Verdict::Allow);
    assert_eq!(outwards(Some(layout::SHARED)), Verdict::Deny);
}

/// A connection that is denied now: cut, unless conntrack expected it of another connection; kept.
#[test]
fn denied_connections() {
    for (established, wanted) in [(Established::Cut, Verdict::Deny), (Established::Keep, Verdict::Allow)] {
        let machine = machine(established);
        for state in [0, 1, 3, 4] {
            let entry = Entry::Connection { state, begun: false };
            let case = Case { entry, ..machine.opening(flow("10.0.0.2", 81)) };
            assert_eq!(machine.verdict(&case), wanted, "{established:?} {state}");
            let mut kernel = Kernel::new(&case);
            kernel.expect();
            let result = interpreter::run(&machine.slots, &machine.maps, &kernel);
            assert_eq!(result, Ok(program::NF_ACCEPT), "{established:?} {state}");
        }
        let mut kernel = Kernel::new(&machine.opening(flow("10.0.0.2", 81)));
        kernel.expect();
        assert_eq!(interpreter::run(&machine.slots, &machine.maps, &kernel), Ok(program::NF_DROP));
    }
}

/// What a missing map entry or a foreign key does: nothing is allowed that was not.
#[test]
fn entries_of_a_wrong_size_are_left_out() {
    let mut machine = machine(Established::Cut);
    machine.set(Map::Pairs, &[1, 0, 0], &[1; 8]);
    machine.set(Map::Pairs, &99u32.to_le_bytes(), &[1; 8]);
    machine.set(Map::Ports, &0u32.to_le_bytes(), &[0xff; 9]);
    assert_eq!(machine.decide(&Packet::opening(flow("10.0.0.2", 81))), Verdict::Deny);
    machine.set(Map::Ports, &0u32.to_le_bytes(), &[0xff; 8192]);
    assert_eq!(machine.decide(&Packet::opening(flow("10.0.0.2", 81))), Verdict::Allow);
    machine.unset(Map::Pairs, &1u32.to_le_bytes());
    assert_eq!(machine.decide(&Packet::opening(flow("10.0.0.2", 80))), Verdict::Deny);
}
