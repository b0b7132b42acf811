use super::*;
use crate::contents::{Contents, Pair, Pod};
use crate::emit::emit;
use crate::insn::{AluOp, Operand, Reg};
use std::collections::BTreeMap;

/// Two pods of the node: 10.0.0.1 is isolated and takes TCP port 80 from 10.0.0.2.
fn contents() -> Contents {
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    Contents {
        columns: 2,
        rows: vec!["ingress test".into()],
        pods: BTreeMap::from([
            (ip("10.0.0.1"), Pod { column: 0, ingress: 1, egress: 0, pod: 1 }),
            (ip("10.0.0.2"), Pod { column: 1, ingress: 0, egress: 0, pod: 2 }),
        ]),
        blocks: BTreeMap::new(),
        pairs: BTreeMap::from([((1, 1), Pair { ports: [2, 0, 0], other: 0 })]),
        ports: vec![vec![(80, 80)]],
    }
}

fn machine(established: Established) -> Machine {
    let contents = contents();
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

/// Two programs that are asked the same: where one does otherwise, that is noticed, whatever the other one says.
#[test]
fn programs_that_do_not_agree() {
    let decoded = |established| {
        let contents = contents();
        crate::decode::decode(&emit(&contents, established).unwrap(), &contents.text()).unwrap()
    };
    let pair =
        || netpolc_bundle::bpf::Pair { cut: decoded(Established::Cut), keep: decoded(Established::Keep) };
    let packets = [80, 81].map(|port| Packet::opening(flow("10.0.0.2", port)));
    let asked = |machine: &Machine| packets.map(|packet| machine.decide(&packet));
    let machine = Machine::of_both(&pair()).unwrap().unwrap();
    assert_eq!((asked(&machine), machine.apart()), ([Verdict::Allow, Verdict::Deny], None));
    // The twin lets pass what it should drop.
    let mut machine = Machine::of_both(&pair()).unwrap().unwrap();
    let twin = machine.twin.as_mut().unwrap();
    for slot in twin.slots.iter_mut().flatten() {
        if let Insn::Alu { op: AluOp::Mov, dst: Reg::R0, src: Operand::Imm(0) } = slot {
            *slot = Insn::Alu { op: AluOp::Mov, dst: Reg::R0, src: Operand::Imm(1) };
        }
    }
    twin.code = None;
    assert_eq!((asked(&machine), machine.apart()), ([Verdict::Allow, Verdict::Deny], Some(packets[1])));
    // Other contents, another order, another program: each must be asked by itself.
    let mut other = pair();
    other.keep.contents.pods.clear();
    let turned =
        netpolc_bundle::bpf::Pair { cut: decoded(Established::Keep), keep: decoded(Established::Cut) };
    let mut unknown = pair();
    unknown.keep.program.slots.push(None);
    for pair in [other, turned, unknown] {
        assert!(Machine::of_both(&pair).unwrap().is_none());
    }
}

/// The numbers of sets of ports at the bounds of their kinds; those that no set has are no port.
#[test]
fn sets_of_ports_by_number() {
    let mut machine = machine(Established::Cut);
    let mut allowed = |number: u32, port| {
        let value: Vec<u8> = [number, 0, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
        machine.set(Map::Pairs, &1u32.to_le_bytes(), &value);
        machine.decide(&Packet::opening(flow("10.0.0.2", port))) == Verdict::Allow
    };
    let one = |port| layout::Ports::One(port).number();
    for (number, port, expected) in [
        (0, 0, false),
        (1, 65535, true),
        (2, 80, true),
        (2, 81, false),
        (3, 80, false),
        (one(0), 0, true),
        (one(0), 1, false),
        (one(80), 80, true),
        (one(80), 81, false),
        (one(80), 0, false),
        (one(65535), 65535, true),
        (one(65535), 65534, false),
        (one(65535) + 1, 0, false),
        (u32::MAX, 65535, false),
    ] {
        assert_eq!(allowed(number, port), expected, "{number}: {port}");
    }
}

/// Behind a bridge, any pod of the node may be the source, and nobody else.
#[test]
fn interfaces() {
    let machine = machine(Established::Cut);
    let from = |src: &str, interface| {
        machine.program.verdict(&machine.maps, &Case { interface, ..machine.opening(flow(src, 80)) })
    };
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
        machine.program.verdict(&machine.maps, &Case { interface, ..machine.opening(flow) })
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
            assert_eq!(machine.program.verdict(&machine.maps, &case), wanted, "{established:?} {state}");
            let mut kernel = Kernel::new(&case);
            kernel.expect();
            let expected = Outcome { result: program::NF_ACCEPT, counted: None };
            assert_eq!(outcome(&machine, &kernel), expected, "{established:?} {state}");
        }
        let mut kernel = Kernel::new(&machine.opening(flow("10.0.0.2", 81)));
        kernel.expect();
        assert_eq!(outcome(&machine, &kernel), Outcome { result: program::NF_DROP, counted: COUNTED });
    }
}

/// Row 1, column 1 of two.
const COUNTED: Option<Counted> = Some(Counted { key: 1, amount: 1 });

fn outcome(machine: &Machine, kernel: &Kernel) -> Outcome {
    interpreter::run(&machine.program.slots, &machine.maps, kernel).unwrap()
}

/// What a row denies is counted with the pair; what is dropped for another reason is not, nor what passes.
#[test]
fn counters() {
    let machine = machine(Established::Cut);
    let counted = |case: Case| {
        let Outcome { result, counted } = outcome(&machine, &Kernel::new(&case));
        (result, counted)
    };
    let opening = |src: &str, port| machine.opening(flow(src, port));
    assert_eq!(counted(opening("10.0.0.2", 80)), (program::NF_ACCEPT, None));
    assert_eq!(counted(opening("10.0.0.2", 81)), (program::NF_DROP, COUNTED));
    let of_nobody = Some(Counted { key: 0, amount: 1 });
    assert_eq!(counted(opening("10.0.0.3", 80)), (program::NF_DROP, of_nobody));
    let established = Entry::Connection { state: 0, begun: false };
    assert_eq!(counted(Case { entry: established, ..opening("10.0.0.2", 81) }), (program::NF_DROP, COUNTED));
    let spoofed = Case { interface: None, ..opening("10.0.0.2", 81) };
    assert_eq!(counted(spoofed), (program::NF_DROP, None));
    let invalid = Case { entry: Entry::None { nfct: 0 }, ..opening("10.0.0.2", 81) };
    assert_eq!(counted(invalid), (program::NF_DROP, None));
}

/// A program that reads a counter, or adds to anything else, is at fault.
#[test]
fn counters_are_for_adding() {
    use crate::insn::{AluOp, Helper, Reg, Size};
    let machine = machine(Established::Cut);
    let zero = Insn::Alu { op: AluOp::Mov, dst: Reg::R1, src: Operand::Imm(0) };
    let key = Insn::Store { size: Size::B4, base: Reg::FP, off: -4, src: Reg::R1 };
    let address = |dst, off| {
        [
            Insn::Alu { op: AluOp::Mov, dst, src: Operand::Reg(Reg::FP) },
            Insn::Alu { op: AluOp::Add, dst, src: Operand::Imm(off) },
        ]
    };
    let run = |map: Map, last: &[Insn]| {
        let load = Insn::LoadMap { dst: Reg::R1, fd: map as i32 + 1 };
        let mut insns = vec![zero, key];
        insns.extend(address(Reg::R2, -4));
        insns.extend([load, Insn::Call(Helper::MapLookup)]);
        insns.extend(last);
        insns.push(Insn::Exit);
        let slots: Vec<Option<Insn>> =
            insns.iter().flat_map(|i| [Some(*i), None].into_iter().take(i.slots())).collect();
        interpreter::run(&slots, &machine.maps, &Kernel::new(&machine.opening(flow("10.0.0.2", 80))))
    };
    let add = |off| Insn::AtomicAdd { base: Reg::R0, off, src: Reg::R0 };
    let key_of = |run: Result<Outcome, Fault>| run.unwrap().counted.unwrap().key;
    assert_eq!(key_of(run(Map::Denied, &[add(0)])), 0);
    assert_eq!(key_of(run(Map::Denied, &[add(8)])), 1);
    for off in [4, 16, -8] {
        assert_eq!(run(Map::Denied, &[add(off)]), Err(Fault::Memory(7)), "{off}");
    }
    assert_eq!(run(Map::Pairs, &[add(0)]), Err(Fault::Memory(7)));
    let read = Insn::Load { size: Size::B1, dst: Reg::R0, base: Reg::R0, off: 0 };
    assert_eq!(run(Map::Denied, &[read]), Err(Fault::Memory(7)));
    let mut copy = address(Reg::R1, -16).to_vec();
    copy.push(Insn::Alu { op: AluOp::Mov, dst: Reg::R2, src: Operand::Imm(8) });
    copy.push(Insn::Alu { op: AluOp::Mov, dst: Reg::R3, src: Operand::Reg(Reg::R0) });
    copy.push(Insn::Call(Helper::ProbeReadKernel));
    assert_eq!(run(Map::Denied, &copy), Err(Fault::Helper(11)));
}

/// What a missing map entry or a foreign key does: nothing is allowed that was not.
#[test]
fn entries_of_a_wrong_size_are_left_out() {
    let mut machine = machine(Established::Cut);
    machine.set(Map::Pairs, &[1, 0, 0], &[1; 16]);
    machine.set(Map::Pairs, &99u32.to_le_bytes(), &[1; 16]);
    machine.set(Map::Pairs, &1u32.to_le_bytes(), &[1; 8]);
    machine.set(Map::Ports, &0u32.to_le_bytes(), &[0xff; 9]);
    assert_eq!(machine.decide(&Packet::opening(flow("10.0.0.2", 81))), Verdict::Deny);
    machine.set(Map::Ports, &0u32.to_le_bytes(), &[0xff; 8192]);
    assert_eq!(machine.decide(&Packet::opening(flow("10.0.0.2", 81))), Verdict::Allow);
    machine.unset(Map::Pairs, &1u32.to_le_bytes());
    assert_eq!(machine.decide(&Packet::opening(flow("10.0.0.2", 80))), Verdict::Deny);
}

mod both;
