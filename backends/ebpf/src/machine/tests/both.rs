//! The two executors on programs that nobody wrote: the same result, the same fault, the same counter.

use super::*;
use crate::insn::{AluOp, Cond, Helper, Reg, Size};

/// xorshift64*; the seed is not 0.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

const WRITABLE: [Reg; 10] =
    [Reg::R0, Reg::R1, Reg::R2, Reg::R3, Reg::R4, Reg::R5, Reg::R6, Reg::R7, Reg::R8, Reg::R9];

/// Small numbers, edges of the stack and of regions, and anything.
fn constant(random: &mut Random) -> i32 {
    let edges = [0, 1, -1, 4, 7, 8, 20, 40, 63, 64, 512, 513, -512, i32::MAX, i32::MIN];
    if random.one_in(4) { random.below(1 << 31) as i32 } else { random.pick(&edges) }
}

fn offset(random: &mut Random) -> i16 {
    let edges = [0, 1, 8, 16, -1, -4, -8, -16, -100, -505, -508, -512, -513, i16::MAX, i16::MIN];
    if random.one_in(3) { -(random.below(540) as i16) } else { random.pick(&edges) }
}

fn operand(random: &mut Random) -> Operand {
    if random.one_in(2) { Operand::Reg(random.pick(&WRITABLE)) } else { Operand::Imm(constant(random)) }
}

/// An instruction, `rest` slots before the last one.
fn instruction(random: &mut Random, rest: usize) -> Insn {
    let any = |random: &mut Random| if random.one_in(2) { Reg::FP } else { random.pick(&WRITABLE) };
    let size = random.pick(&[Size::B1, Size::B2, Size::B4, Size::B8]);
    let off = random.below(rest.max(1)).min(9) as i16;
    let ops = [AluOp::Add, AluOp::Sub, AluOp::Or, AluOp::And, AluOp::Lsh, AluOp::Rsh, AluOp::Mov];
    match random.below(20) {
        0..7 => Insn::Alu { op: random.pick(&ops), dst: random.pick(&WRITABLE), src: operand(random) },
        7 => Insn::Alu { op: AluOp::Mov, dst: random.pick(&WRITABLE), src: Operand::Reg(Reg::FP) },
        8 => Insn::Be16(random.pick(&WRITABLE)),
        9..12 => Insn::Load { size, dst: random.pick(&WRITABLE), base: any(random), off: offset(random) },
        12..15 => Insn::Store { size, base: any(random), off: offset(random), src: random.pick(&WRITABLE) },
        15 => {
            let cond = random.pick(&[Cond::Eq, Cond::Ne, Cond::Gt, Cond::Le]);
            Insn::Branch { cond, dst: any(random), src: operand(random), off }
        }
        16 if rest > 0 => Insn::Jump { off },
        17 => Insn::Call(random.pick(&[Helper::MapLookup, Helper::ProbeReadKernel])),
        18 => Insn::AtomicAdd { base: random.pick(&WRITABLE), off: offset(random), src: any(random) },
        _ => Insn::Alu { op: AluOp::Mov, dst: random.pick(&WRITABLE), src: Operand::Imm(constant(random)) },
    }
}

/// A call with arguments that may well be right, into the middle of what else there is.
fn lookup(random: &mut Random) -> Vec<Insn> {
    let map = random.below(Map::ALL.len() + 2) as i32;
    let at = -(random.below(530) as i32);
    let mov = |dst, src| Insn::Alu { op: AluOp::Mov, dst, src };
    let mut insns = vec![
        mov(Reg::R2, Operand::Imm(random.below(3) as i32)),
        Insn::Store { size: Size::B4, base: Reg::FP, off: at as i16, src: Reg::R2 },
        mov(Reg::R2, Operand::Reg(Reg::FP)),
        Insn::Alu { op: AluOp::Add, dst: Reg::R2, src: Operand::Imm(at) },
        Insn::LoadMap { dst: Reg::R1, fd: map },
        Insn::Call(Helper::MapLookup),
    ];
    let size = random.pick(&[Size::B2, Size::B8]);
    insns.push(match random.below(3) {
        0 => Insn::AtomicAdd { base: Reg::R0, off: random.pick(&[0, 8, 4]), src: Reg::FP },
        _ => Insn::Load { size, dst: Reg::R6, base: Reg::R0, off: random.pick(&[0, 2, 8, 12]) },
    });
    insns.extend([1, 2, 3, 4, 5].map(|i| mov(WRITABLE[i], Operand::Imm(i as i32))));
    insns
}

fn copy(random: &mut Random) -> Vec<Insn> {
    let mov = |dst, src| Insn::Alu { op: AluOp::Mov, dst, src };
    let add = |dst, imm| Insn::Alu { op: AluOp::Add, dst, src: Operand::Imm(imm) };
    let from = if random.one_in(2) { Reg::FP } else { Reg::R7 };
    let mut insns = vec![
        mov(Reg::R1, Operand::Reg(Reg::FP)),
        add(Reg::R1, -(random.below(530) as i32)),
        mov(Reg::R2, Operand::Imm(random.pick(&[0, 1, 8, 16, 100, 512, 513]))),
        mov(Reg::R3, Operand::Reg(from)),
        add(Reg::R3, -(random.below(100) as i32)),
        Insn::Call(Helper::ProbeReadKernel),
    ];
    insns.extend([1, 2, 3, 4, 5].map(|i| mov(WRITABLE[i], Operand::Imm(i as i32))));
    insns
}

/// A program whose jumps go forward to an instruction, with its registers written at first.
fn random_program(seed: u64) -> Vec<Option<Insn>> {
    let random = &mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    // r7 is the context and r8 the packet, as in a program of ours.
    let mut insns = vec![
        Insn::Alu { op: AluOp::Mov, dst: Reg::R7, src: Operand::Reg(Reg::R1) },
        Insn::Load { size: Size::B8, dst: Reg::R8, base: Reg::R7, off: 8 },
    ];
    let others = WRITABLE.into_iter().filter(|r| ![Reg::R1, Reg::R7, Reg::R8].contains(r));
    insns.extend(others.map(|dst| Insn::Alu { op: AluOp::Mov, dst, src: Operand::Imm(constant(random)) }));
    let len = 5 + random.below(60);
    while insns.len() < len {
        match random.below(12) {
            0 => insns.extend(lookup(random)),
            1 => insns.extend(copy(random)),
            _ => insns.push(instruction(random, len - insns.len())),
        }
    }
    insns.push(Insn::Exit);
    let mut slots: Vec<Option<Insn>> =
        insns.iter().flat_map(|i| [Some(*i), None].into_iter().take(i.slots())).collect();
    let last = slots.len() - 1;
    for slot in 0..slots.len() {
        let landing = |off: i16| {
            let target = slot + 1 + off as usize;
            let found = (slot + 1..=target.min(last)).rev().find(|t| slots[*t].is_some());
            (found.unwrap_or(last) - slot - 1) as i16
        };
        match slots[slot] {
            Some(Insn::Jump { off }) => slots[slot] = Some(Insn::Jump { off: landing(off) }),
            Some(Insn::Branch { cond, dst, src, off }) => {
                slots[slot] = Some(Insn::Branch { cond, dst, src, off: landing(off) });
            }
            _ => {}
        }
    }
    slots
}

#[test]
fn random_programs_do_the_same_on_both() {
    let machine = machine(Established::Cut);
    let cases = [
        machine.opening(flow("10.0.0.2", 80)),
        Case { entry: Entry::None { nfct: 0 }, ..machine.opening(flow("10.0.0.3", 81)) },
    ];
    let (mut compiled, mut ended, mut faults, mut counted) = (0, 0, 0, 0);
    for seed in 1..=6_000 {
        let slots = random_program(seed);
        let bytes: Vec<u8> = slots.iter().flatten().fold(Vec::new(), |mut bytes, insn| {
            insn.encode(&mut bytes);
            bytes
        });
        assert_eq!(crate::insn::decode(&bytes).as_ref(), Ok(&slots), "seed {seed}");
        let Some(code) = compiled::code(&slots) else { continue };
        compiled += 1;
        for case in &cases {
            let kernel = Kernel::new(case);
            let plain = interpreter::run(&slots, &machine.maps, &kernel);
            assert_eq!(code.run(&machine.maps, &kernel), plain, "seed {seed}: {slots:#?}");
            ended += usize::from(plain.is_ok());
            faults += usize::from(plain.is_err());
            counted += usize::from(plain.is_ok_and(|outcome| outcome.counted.is_some()));
        }
    }
    // Enough of each kind that the comparison means something.
    assert!(compiled > 2_000 && ended > 500 && faults > 500 && counted > 5);
}

/// What may read a register that was not written is interpreted, and so is what is too long.
#[test]
fn what_is_not_compiled() {
    let exit = vec![Some(Insn::Exit)];
    assert!(compiled::code(&exit).is_none());
    let zero = Some(Insn::Alu { op: AluOp::Mov, dst: Reg::R0, src: Operand::Imm(0) });
    let mut short = vec![zero; crate::limits::COMPILED - 1];
    short.push(Some(Insn::Exit));
    assert!(compiled::code(&short).is_some());
    short.insert(0, zero);
    assert!(compiled::code(&short).is_none());
    assert!(machine(Established::Cut).is_compiled() && machine(Established::Keep).is_compiled());
}
