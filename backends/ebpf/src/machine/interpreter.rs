//! Runs a linked program instruction by instruction: the plain reading of the instruction set, against which compiled
//! code is held. Every access to memory is checked; jumps only go forward, so every run ends.

use super::maps::Maps;
use super::memory::{FRAME_POINTER, Memory, map_address};
use super::packet::{Kernel, region};
use super::{Fault, Outcome};
use crate::insn::{AluOp, Helper, Insn, Operand, Reg};

struct Run<'r> {
    memory: Memory<'r>,
    registers: [u64; 11],
    /// Which registers have been written, by bit.
    written: u16,
    slot: usize,
}

/// The result of a run.
pub(super) fn run(slots: &[Option<Insn>], maps: &Maps, kernel: &Kernel) -> Result<Outcome, Fault> {
    let mut registers = [0; 11];
    registers[Reg::R1.number()] = region::base(region::CTX);
    registers[Reg::FP.number()] = FRAME_POINTER;
    let written = 1 << Reg::R1.number() | 1 << Reg::FP.number();
    let mut run = Run { memory: Memory::new(maps, kernel), registers, written, slot: 0 };
    loop {
        let insn = slots.get(run.slot).copied().flatten().ok_or(Fault::Memory(run.slot))?;
        if insn == Insn::Exit {
            return Ok(Outcome { result: run.get(Reg::R0)?, counted: run.memory.counted });
        }
        let jump = run.step(&insn)?;
        run.slot += insn.slots() + jump;
    }
}

impl Run<'_> {
    fn get(&self, reg: Reg) -> Result<u64, Fault> {
        if self.written >> reg.number() & 1 == 0 {
            return Err(Fault::Register(self.slot));
        }
        Ok(self.registers[reg.number()])
    }

    fn set(&mut self, reg: Reg, value: u64) {
        self.registers[reg.number()] = value;
        self.written |= 1 << reg.number();
    }

    fn operand(&self, operand: Operand) -> Result<u64, Fault> {
        match operand {
            Operand::Reg(reg) => self.get(reg),
            Operand::Imm(imm) => Ok(imm as i64 as u64),
        }
    }

    /// Runs one instruction; how many slots are skipped after it.
    fn step(&mut self, insn: &Insn) -> Result<usize, Fault> {
        match *insn {
            Insn::Alu { op, dst, src } => {
                let b = self.operand(src)?;
                let a = if op == AluOp::Mov { 0 } else { self.get(dst)? };
                let value = match op {
                    AluOp::Add => a.wrapping_add(b),
                    AluOp::Sub => a.wrapping_sub(b),
                    AluOp::Or => a | b,
                    AluOp::And => a & b,
                    AluOp::Lsh => a << (b & 63),
                    AluOp::Rsh => a >> (b & 63),
                    AluOp::Mov => b,
                };
                self.set(dst, value);
            }
            Insn::Be16(reg) => {
                let value = u64::from((self.get(reg)? as u16).swap_bytes());
                self.set(reg, value);
            }
            Insn::Load { size, dst, base, off } => {
                let addr = self.get(base)?.wrapping_add(off as i64 as u64);
                let value = self.memory.read(addr, size.bytes()).map_err(|t| t.at(self.slot))?;
                self.set(dst, value);
            }
            Insn::Store { size, base, off, src } => {
                let addr = self.get(base)?.wrapping_add(off as i64 as u64);
                let value = self.get(src)?;
                self.memory.write(addr, size.bytes(), value).map_err(|t| t.at(self.slot))?;
            }
            Insn::AtomicAdd { base, off, src } => {
                let addr = self.get(base)?.wrapping_add(off as i64 as u64);
                let amount = self.get(src)?;
                self.memory.add(addr, amount).map_err(|t| t.at(self.slot))?;
            }
            Insn::LoadMap { dst, fd } => self.set(dst, map_address(fd)),
            Insn::Jump { off } => return Ok(off as usize),
            Insn::Branch { cond, dst, src, off } => {
                if cond.holds(self.get(dst)?, self.operand(src)?) {
                    return Ok(off as usize);
                }
            }
            Insn::Call(helper) => {
                let result = match helper {
                    Helper::MapLookup => self.memory.lookup(self.get(Reg::R1)?, self.get(Reg::R2)?),
                    Helper::ProbeReadKernel => {
                        let (to, bytes, from) = (self.get(Reg::R1)?, self.get(Reg::R2)?, self.get(Reg::R3)?);
                        self.memory.probe_read(to, bytes, from)
                    }
                };
                let result = result.map_err(|t| t.at(self.slot))?;
                self.written &= !0b11_1110;
                self.set(Reg::R0, result);
            }
            Insn::Exit => {}
        }
        Ok(0)
    }
}
