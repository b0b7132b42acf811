//! Damaged artifacts are not proven: for every mutation the proof finds a packet, and the packet is a real one; or the
//! mutation changes nothing for any packet that is asked about.

use super::common::{Node, compiled, nodes, same_on_both, shop};
use netpolc_ebpf::contents::Established;
use netpolc_ebpf::decode::{Artifact as Decoded, decode};
use netpolc_ebpf::insn::{Cond, Insn, Operand};
use netpolc_ebpf::layout::{self, Map};
use netpolc_ebpf::machine::Machine;
use netpolc_frontend::reference::SetReference;
use netpolc_ir::proof::{Artifact, Kind, Packet, prove};
use netpolc_ir::unit::{Flow, Verdict};
use netpolc_testkit::flows::Questions;
use netpolc_testkit::generate::{Options, generate};
use netpolc_testkit::pipeline::{Compiled, seeds};
use netpolc_testkit::random::Random;
use std::net::IpAddr;

#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    caught: usize,
    neutral: usize,
    interpreted: usize,
    faults: Vec<String>,
}

struct Subject<'a> {
    reference: SetReference<'a>,
    node: &'a Node,
    packets: Vec<Packet>,
}

/// All kinds of packets on flows that touch the node.
fn packets(compiled: &Compiled, node: &Node, seed: u64) -> Vec<Packet> {
    let flows = Questions::new(&compiled.model).sample(&mut Random::new(seed), 1_500);
    let mut found = Vec::new();
    for flow in flows.into_iter().filter(|f| node.touches(f) && !node.is_own(f)) {
        let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::NeighbourDiscovery);
        found.extend(kinds.map(|kind| kind.packet(flow)));
    }
    found
}

impl Subject<'_> {
    fn judge(&self, mut machine: Machine, what: &str, tally: &mut Tally) {
        match prove(&self.reference, &mut machine, &self.node.name) {
            Err(witness) => {
                let real = machine.decide(&witness.packet) == witness.actual
                    && self.node.machine.decide(&witness.packet) == witness.expected
                    && !self.node.is_own(&witness.packet.flow);
                match real {
                    true => tally.caught += 1,
                    false => tally.faults.push(format!("{what}: not a real witness: {witness}")),
                }
            }
            Ok(_) => match self.packets.iter().find(|p| machine.decide(p) != self.node.machine.decide(p)) {
                None => tally.neutral += 1,
                Some(packet) => tally.faults.push(format!("{what}: the proof passes, but {packet} differs")),
            },
        }
    }
}

fn machine(decoded: &Decoded) -> Machine {
    Machine::new(decoded).unwrap()
}

/// Single bits of values, single keys, entries that are missing.
fn entries(subject: &Subject<'_>, random: &mut Random, tally: &mut Tally) {
    let decoded = decode(&subject.node.object, &subject.node.contents.text()).unwrap();
    for entry in decoded.contents.entries() {
        let (name, key) = (entry.map.name(), &entry.key);
        let mut missing = machine(&decoded);
        missing.unset(entry.map, key);
        subject.judge(missing, &format!("{name} {key:?} is missing"), tally);
        for _ in 0..3 {
            let bit = random.below(entry.value.len() * 8);
            let mut value = entry.value.clone();
            value[bit / 8] ^= 1 << (bit % 8);
            let mut flipped = machine(&decoded);
            flipped.set(entry.map, key, &value);
            subject.judge(flipped, &format!("{name} {key:?}: bit {bit} is flipped"), tally);
        }
        if Map::PODS.contains(&entry.map) {
            let addr = layout::pod_of_key(key).unwrap();
            let other = netpolc_ir::addr::Family::of(addr).addr(netpolc_ir::addr::bits(addr) ^ 1);
            let mut moved = machine(&decoded);
            moved.unset(entry.map, key);
            moved.set(entry.map, &layout::pod_key(other), &entry.value);
            subject.judge(moved, &format!("{addr} is moved to {other}"), tally);
        }
    }
}

/// Every instruction: other constants, other conditions, other offsets, other jumps, nothing at all.
fn patches(insn: Insn) -> Vec<Insn> {
    let mut found = vec![Insn::Jump { off: 0 }];
    match insn {
        Insn::Alu { op, dst, src: Operand::Imm(imm) } => {
            found.extend([imm ^ 1, imm.wrapping_add(4)].map(|imm| Insn::Alu {
                op,
                dst,
                src: Operand::Imm(imm),
            }));
        }
        Insn::Branch { cond, dst, src, off } => {
            let other = match cond {
                Cond::Eq => Cond::Ne,
                Cond::Ne => Cond::Eq,
                Cond::Gt => Cond::Le,
                Cond::Le => Cond::Gt,
            };
            found.push(Insn::Branch { cond: other, dst, src, off });
            found.push(Insn::Branch { cond, dst, src, off: off + 1 });
            if let Operand::Imm(imm) = src {
                found.push(Insn::Branch { cond, dst, src: Operand::Imm(imm.wrapping_add(1)), off });
            }
        }
        Insn::Load { size, dst, base, off } => {
            found.extend([off + 4, off - 4].map(|off| Insn::Load { size, dst, base, off }));
        }
        Insn::Store { size, base, off, src } => {
            found.extend([off + 4, off - 4].map(|off| Insn::Store { size, base, off, src }));
        }
        Insn::Jump { off } => found.push(Insn::Jump { off: off + 1 }),
        _ => {}
    }
    found
}

/// Instructions of the object, patched in its bytes and read back.
fn instructions(subject: &Subject<'_>, every: usize, tally: &mut Tally) {
    let mut number = 0;
    let (object, text) = (&subject.node.object, subject.node.contents.text());
    let code = netpolc_ebpf::program::build(subject.node.established).bytes();
    let at = object.windows(code.len()).position(|w| w == code).unwrap();
    let slots = netpolc_ebpf::insn::decode(&code).unwrap();
    for (slot, insn) in slots.iter().enumerate() {
        for patch in insn.map(patches).unwrap_or_default() {
            number += 1;
            if number % every != 0 {
                continue;
            }
            let mut bytes = Vec::new();
            patch.encode(&mut bytes);
            let mut patched = object.clone();
            patched[at + slot * 8..at + slot * 8 + 8].copy_from_slice(&bytes);
            let what = format!("slot {slot}: {} becomes {patch}", insn.unwrap());
            match decode(&patched, &text) {
                Err(_) => tally.refused += 1,
                Ok(decoded) => {
                    let mut interpreted = machine(&decoded);
                    interpreted.interpret();
                    let compiled = machine(&decoded);
                    same_on_both(&compiled, &interpreted, subject.packets.iter().take(500), &what);
                    tally.interpreted += usize::from(!compiled.is_compiled());
                    subject.judge(compiled, &what, tally);
                }
            }
        }
    }
}

fn run(
    yaml: &str,
    seed: u64,
    established: Established,
    mutate: impl Fn(&Subject<'_>, &mut Tally),
    tally: &mut Tally,
) {
    let compiled = compiled(yaml);
    for node in nodes(&compiled, established) {
        let packets = packets(&compiled, &node, seed);
        let subject = Subject { reference: SetReference::new(&compiled.model), node: &node, packets };
        let before = tally.faults.len();
        mutate(&subject, tally);
        tally.faults[before..].iter_mut().for_each(|f| *f = format!("seed {seed} {}: {f}", node.name));
    }
}

fn finish(tally: &Tally, least: usize) {
    let Tally { refused, caught, neutral, interpreted, faults } = tally;
    println!("caught {caught}, refused {refused}, neutral {neutral}; {interpreted} were not compiled");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults[..faults.len().min(30)].join("\n"));
    assert!(*caught > least, "{caught}");
}

#[test]
fn flipped_entries() {
    let mut tally = Tally::default();
    let all = |subject: &Subject<'_>, tally: &mut Tally| entries(subject, &mut Random::new(7), tally);
    run(&shop(), 1, Established::Cut, all, &mut tally);
    for seed in 0..seeds(3) {
        let yaml = generate(seed, Options { tiers: seed % 2 == 1, ..Options::default() }).yaml();
        run(&yaml, seed, Established::Cut, all, &mut tally);
    }
    finish(&tally, 200);
}

/// Every fifth of some 1,300 patches; `NETPOLC_SEEDS=1` or more tries all, which takes minutes.
#[test]
fn patched_instructions() {
    let every = if seeds(0) > 0 { 1 } else { 5 };
    for established in Established::ALL {
        let mut tally = Tally::default();
        let patch = |subject: &Subject<'_>, tally: &mut Tally| {
            if subject.node.name == "alpha" {
                instructions(subject, every, tally);
            }
        };
        run(&shop(), 1, established, patch, &mut tally);
        finish(&tally, 60);
    }
}

/// A mutation of nothing is not caught.
#[test]
fn sound_artifacts_are_proven() {
    let mut tally = Tally::default();
    let nothing = |subject: &Subject<'_>, tally: &mut Tally| {
        let decoded = decode(&subject.node.object, &subject.node.contents.text()).unwrap();
        subject.judge(machine(&decoded), "nothing", tally);
    };
    run(&shop(), 1, Established::Cut, nothing, &mut tally);
    assert_eq!((tally.caught, tally.neutral), (0, 2), "{tally:?}");
    let denied = Flow {
        src: "10.1.1.4".parse().unwrap(),
        dst: "10.1.0.2".parse().unwrap(),
        protocol: netpolc_ir::ports::Protocol::TCP,
        port: 80,
    };
    let node = nodes(&compiled(&shop()), Established::Cut).remove(0);
    assert_eq!(node.decide(&denied), Verdict::Deny);
}

/// Three pods that are alike, of which two get one number: they would reach each other as one pod does itself. Whichever
/// of them stands for all, it is found.
#[test]
fn pods_that_share_a_number() {
    let twin = |i: u8| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: twin-{i}, namespace: shop, labels: {{app: db}}}}\n\
             spec: {{nodeName: alpha, containers: [{{name: main, image: example/main, ports: []}}]}}\n\
             status: {{phase: Running, podIPs: [{{ip: 10.1.0.{i}}}, {{ip: \"fd00:1:0::{i}\"}}]}}\n---\n"
        )
    };
    let compiled = compiled(&format!("{}{}{}", shop(), twin(20), twin(30)));
    let node = nodes(&compiled, Established::Cut).remove(0);
    let decoded = decode(&node.object, &node.contents.text()).unwrap();
    let reference = SetReference::new(&compiled.model);
    let alike: Vec<IpAddr> = ["10.1.0.2", "10.1.0.20", "10.1.0.30"].map(|a| a.parse().unwrap()).into();
    let value = |addr: &IpAddr| {
        let key = layout::pod_key(*addr);
        decoded.contents.entries().find(|e| e.map == Map::Pods4 && e.key == key).unwrap().value
    };
    for (a, b) in alike.iter().flat_map(|a| alike.iter().map(move |b| (a, b))).filter(|(a, b)| a != b) {
        let mut machine = machine(&decoded);
        machine.set(Map::Pods4, &layout::pod_key(*a), &value(b));
        let witness = prove(&reference, &mut machine, &node.name).unwrap_err();
        assert_eq!(machine.decide(&witness.packet), witness.actual, "{witness}");
    }
}
