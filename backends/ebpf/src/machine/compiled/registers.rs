//! Which registers have certainly been written, wherever a program may be.

use crate::insn::{AluOp, Helper, Insn, Operand, Reg};

/// A set of registers, by bit.
type Set = u16;

/// The arguments of a call, which it leaves unusable.
const ARGUMENTS: Set = 0b11_1110;

fn one(reg: Reg) -> Set {
    1 << reg.number()
}

fn operand(operand: Operand) -> Set {
    match operand {
        Operand::Reg(reg) => one(reg),
        Operand::Imm(_) => 0,
    }
}

fn reads(insn: &Insn) -> Set {
    match *insn {
        Insn::Alu { op: AluOp::Mov, src, .. } => operand(src),
        Insn::Alu { dst, src, .. } | Insn::Branch { dst, src, .. } => one(dst) | operand(src),
        Insn::Be16(reg) => one(reg),
        Insn::Load { base, .. } => one(base),
        Insn::Store { base, src, .. } | Insn::AtomicAdd { base, src, .. } => one(base) | one(src),
        Insn::Call(Helper::MapLookup) => one(Reg::R1) | one(Reg::R2),
        Insn::Call(Helper::ProbeReadKernel) => one(Reg::R1) | one(Reg::R2) | one(Reg::R3),
        Insn::LoadMap { .. } | Insn::Jump { .. } => 0,
        Insn::Exit => one(Reg::R0),
    }
}

fn after(insn: &Insn, before: Set) -> Set {
    match *insn {
        Insn::Alu { dst, .. } | Insn::Be16(dst) | Insn::Load { dst, .. } | Insn::LoadMap { dst, .. } => {
            before | one(dst)
        }
        Insn::Call(_) => before & !ARGUMENTS | one(Reg::R0),
        Insn::Store { .. }
        | Insn::AtomicAdd { .. }
        | Insn::Jump { .. }
        | Insn::Branch { .. }
        | Insn::Exit => before,
    }
}

/// Which slots a run may come to. `None` if it may read a register that nobody wrote, or leave the program: jumps go
/// forward, so one look at each slot in order finds out.
pub(super) fn reachable(slots: &[Option<Insn>]) -> Option<Vec<bool>> {
    let mut written: Vec<Option<Set>> = vec![None; slots.len()];
    *written.first_mut()? = Some(one(Reg::R1) | one(Reg::FP));
    for (slot, insn) in slots.iter().enumerate() {
        let Some(before) = written[slot] else { continue };
        let insn = insn.as_ref()?;
        if reads(insn) & !before != 0 {
            return None;
        }
        for next in successors(slot, insn) {
            let place = written.get_mut(next).filter(|_| next > slot)?;
            *place = Some(place.unwrap_or(Set::MAX) & after(insn, before));
        }
    }
    Some(written.into_iter().map(|set| set.is_some()).collect())
}

/// The slot that a jump of so far goes to; a jump backward, which no program has, goes nowhere.
pub(super) fn target(slot: usize, off: i16) -> usize {
    usize::try_from(off).map_or(usize::MAX, |off| slot + 1 + off)
}

fn successors(slot: usize, insn: &Insn) -> impl Iterator<Item = usize> {
    let on = Some(slot + insn.slots());
    let (on, jump) = match *insn {
        Insn::Exit => (None, None),
        Insn::Jump { off } => (None, Some(target(slot, off))),
        Insn::Branch { off, .. } => (on, Some(target(slot, off))),
        _ => (on, None),
    };
    on.into_iter().chain(jump)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(insns: &[Insn]) -> Vec<Option<Insn>> {
        insns.iter().map(|i| Some(*i)).collect()
    }

    fn mov(dst: Reg, src: impl Into<Operand>) -> Insn {
        Insn::Alu { op: AluOp::Mov, dst, src: src.into() }
    }

    #[test]
    fn what_is_written_on_one_way_only_is_not_written() {
        let branch =
            |off| Insn::Branch { cond: crate::insn::Cond::Eq, dst: Reg::R1, src: Operand::Imm(0), off };
        assert_eq!(reachable(&program(&[branch(1), mov(Reg::R0, 1), Insn::Exit])), None);
        let both = [branch(2), mov(Reg::R0, 1), Insn::Jump { off: 1 }, mov(Reg::R0, 2), Insn::Exit];
        assert_eq!(reachable(&program(&both)), Some(vec![true; 5]));
    }

    #[test]
    fn calls_take_their_arguments_away() {
        let call = Insn::Call(Helper::MapLookup);
        let two = [mov(Reg::R2, 0), call, mov(Reg::R6, Reg::R2), Insn::Exit];
        assert_eq!(reachable(&program(&two)), None);
        assert_eq!(reachable(&program(&[mov(Reg::R2, 0), call, Insn::Exit])), Some(vec![true; 3]));
    }

    #[test]
    fn ends_are_ends() {
        assert_eq!(reachable(&[]), None);
        assert_eq!(reachable(&program(&[mov(Reg::R0, 1)])), None);
        assert_eq!(reachable(&program(&[Insn::Jump { off: -1 }])), None);
        let dead = [mov(Reg::R0, 1), Insn::Exit, mov(Reg::R0, Reg::R5), Insn::Exit];
        assert_eq!(reachable(&program(&dead)), Some(vec![true, true, false, false]));
    }
}
