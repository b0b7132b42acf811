//! A program whose one instruction for `NF_DROP` says `NF_ACCEPT`.
//!
//! All drops of a program end at the same two instructions, behind the one that counts what no policy allows. So that is
//! counted as ever; what is dropped for other reasons is not counted when it is dropped, and neither is it here.

use super::refused;
use crate::Error;
use netpolc_bundle::bpf::insn::{AluOp, Cond, Insn, Operand, Reg};
use netpolc_bundle::bpf::object::{self, Artifact, Program};

/// `NF_DROP`, include/uapi/linux/netfilter.h.
const NF_DROP: i32 = 0;
/// `NF_ACCEPT`, include/uapi/linux/netfilter.h.
const NF_ACCEPT: i32 = 1;

/// The bytes of an object whose program accepts where it drops. `before` is what the object was read as.
///
/// # Errors
/// If the program ends otherwise than ours do, or if more would change than the one verdict.
pub(super) fn accepting(bytes: &[u8], maps: &str, before: &Artifact) -> Result<Vec<u8>, Error> {
    let fault = |why: &str| refused("the program drops", why);
    let (old, new) = (end(NF_DROP), end(NF_ACCEPT));
    let mut places = bytes.windows(old.len()).enumerate().filter(|(_, window)| *window == old);
    let (Some((at, _)), None) = (places.next(), places.next()) else {
        return Err(fault("there is not exactly one place where it does"));
    };
    let mut bytes = bytes.to_vec();
    bytes.iter_mut().skip(at).zip(&new).for_each(|(byte, new)| *byte = *new);
    let after = object::decode(&bytes, maps).map_err(|error| refused("the program drops", error))?;
    if !one_verdict_apart(before, &after) {
        return Err(fault("more would change than one verdict"));
    }
    if may_drop(&after.program) {
        return Err(fault("there is another way to a drop"));
    }
    Ok(bytes)
}

fn verdict(number: i32) -> Insn {
    Insn::Alu { op: AluOp::Mov, dst: Reg::R0, src: Operand::Imm(number) }
}

/// How a program ends with a verdict.
fn end(number: i32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    verdict(number).encode(&mut bytes);
    Insn::Exit.encode(&mut bytes);
    bytes
}

/// Whether two artifacts are the same but for one instruction, that drops in the first and accepts in the second.
fn one_verdict_apart(before: &Artifact, after: &Artifact) -> bool {
    let (old, new) = (&before.program.slots, &after.program.slots);
    let apart: Vec<_> = old.iter().zip(new).filter(|(old, new)| old != new).collect();
    let program = Program { slots: old.clone(), ..after.program.clone() };
    apart == [(&Some(verdict(NF_DROP)), &Some(verdict(NF_ACCEPT)))]
        && old.len() == new.len()
        && program == before.program
        && (before.established, &before.shapes, &before.contents, &before.information)
            == (after.established, &after.shapes, &after.contents, &after.information)
}

/// What r0 can be at a place of a program; neither where nothing leads.
#[derive(Debug, Clone, Copy, Default)]
struct Result0 {
    zero: bool,
    other: bool,
}

impl Result0 {
    const ANYTHING: Result0 = Result0 { zero: true, other: true };
}

/// Whether a way through a program may end with `NF_DROP` in r0. All else that it can end with is `NF_ACCEPT`, as the
/// kernel's verifier takes nothing else.
pub(super) fn may_drop(program: &Program) -> bool {
    // Jumps go forward, so all that leads to a slot stands before it.
    let mut known = vec![Result0::default(); program.slots.len()];
    known.iter_mut().take(1).for_each(|first| *first = Result0::ANYTHING);
    for (at, insn) in program.slots.iter().enumerate() {
        let now = known.get(at).copied().unwrap_or_default();
        let Some(insn) = insn.filter(|_| now.zero || now.other) else { continue };
        let next = at + insn.slots();
        let to = |off: i16| next.checked_add_signed(off.into()).unwrap_or(usize::MAX);
        let (zero, other) = (Result0 { other: false, ..now }, Result0 { zero: false, ..now });
        let ways = match insn {
            Insn::Exit if now.zero => return true,
            Insn::Exit => vec![],
            Insn::Jump { off } => vec![(to(off), now)],
            Insn::Branch { cond: Cond::Eq, dst: Reg::R0, src: Operand::Imm(0), off } => {
                vec![(to(off), zero), (next, other)]
            }
            Insn::Branch { cond: Cond::Ne, dst: Reg::R0, src: Operand::Imm(0), off } => {
                vec![(to(off), other), (next, zero)]
            }
            Insn::Branch { off, .. } => vec![(to(off), now), (next, now)],
            Insn::Alu { op: AluOp::Mov, dst: Reg::R0, src: Operand::Imm(number) } => {
                vec![(next, Result0 { zero: number == 0, other: number != 0 })]
            }
            Insn::Alu { dst: Reg::R0, .. }
            | Insn::Be16(Reg::R0)
            | Insn::Load { dst: Reg::R0, .. }
            | Insn::LoadMap { dst: Reg::R0, .. }
            | Insn::Call(_) => vec![(next, Result0::ANYTHING)],
            Insn::Alu { .. }
            | Insn::Be16(_)
            | Insn::Load { .. }
            | Insn::LoadMap { .. }
            | Insn::Store { .. }
            | Insn::AtomicAdd { .. } => vec![(next, now)],
        };
        for (to, found) in ways {
            if let Some(known) = known.get_mut(to) {
                known.zero |= found.zero;
                known.other |= found.other;
            }
        }
    }
    false
}
