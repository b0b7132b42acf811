//! Runs a linked program. Every access to memory is checked; jumps only go forward, so every run ends.

use super::maps::Maps;
use super::packet::{Kernel, region};
use super::{Counted, Fault, Outcome};
use crate::insn::{AluOp, Helper, Insn, Operand, Reg, Size};
use crate::layout::Map;

const STACK_BYTES: usize = 512;

struct Run<'r> {
    maps: &'r Maps,
    kernel: &'r Kernel,
    stack: [u8; STACK_BYTES],
    registers: [u64; 11],
    /// Which registers have been written, by bit.
    written: u16,
    slot: usize,
    counted: Option<Counted>,
}

/// The result of a run.
pub(super) fn run(slots: &[Option<Insn>], maps: &Maps, kernel: &Kernel) -> Result<Outcome, Fault> {
    let mut registers = [0; 11];
    registers[Reg::R1.number()] = region::base(region::CTX);
    registers[Reg::FP.number()] = region::base(region::STACK) + STACK_BYTES as u64;
    let written = 1 << Reg::R1.number() | 1 << Reg::FP.number();
    let stack = [0xaa; STACK_BYTES];
    let mut run = Run { maps, kernel, stack, registers, written, slot: 0, counted: None };
    loop {
        let insn = slots.get(run.slot).copied().flatten().ok_or(Fault::Memory(run.slot))?;
        if insn == Insn::Exit {
            return Ok(Outcome { result: run.get(Reg::R0)?, counted: run.counted });
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
                let value = self.read(addr, size)?;
                self.set(dst, value);
            }
            Insn::Store { size, base, off, src } => {
                let addr = self.get(base)?.wrapping_add(off as i64 as u64);
                let value = self.get(src)?.to_le_bytes();
                self.stack(addr, size.bytes())?.copy_from_slice(&value[..size.bytes()]);
            }
            Insn::AtomicAdd { base, off, src } => {
                let addr = self.get(base)?.wrapping_add(off as i64 as u64);
                let amount = self.get(src)?;
                self.counted = Some(Counted { key: self.counter(addr)?, amount });
            }
            Insn::LoadMap { dst, fd } => self.set(dst, region::base(region::MAPS + fd as u64)),
            Insn::Jump { off } => return Ok(off as usize),
            Insn::Branch { cond, dst, src, off } => {
                if cond.holds(self.get(dst)?, self.operand(src)?) {
                    return Ok(off as usize);
                }
            }
            Insn::Call(helper) => {
                let result = match helper {
                    Helper::MapLookup => self.lookup()?,
                    Helper::ProbeReadKernel => self.probe_read()?,
                };
                self.written &= !0b11_1110;
                self.set(Reg::R0, result);
            }
            Insn::Exit => {}
        }
        Ok(0)
    }

    fn memory(&self, addr: u64, bytes: usize) -> Option<&[u8]> {
        let (number, at) = (addr >> 32, addr as u32 as usize);
        let memory = match number {
            region::STACK => &self.stack,
            region::VALUES..region::MAPS => {
                self.maps.memory(*Map::ALL.get((number - region::VALUES) as usize)?)
            }
            _ => self.kernel.region(number)?,
        };
        memory.get(at..at.checked_add(bytes)?)
    }

    fn read(&self, addr: u64, size: Size) -> Result<u64, Fault> {
        let mut value = [0; 8];
        let memory = self.memory(addr, size.bytes()).ok_or(Fault::Memory(self.slot))?;
        value[..size.bytes()].copy_from_slice(memory);
        Ok(u64::from_le_bytes(value))
    }

    /// Only the stack is ever written.
    fn stack(&mut self, addr: u64, bytes: usize) -> Result<&mut [u8], Fault> {
        let at = addr.checked_sub(region::base(region::STACK)).and_then(|at| usize::try_from(at).ok());
        let range = at.and_then(|at| Some(at..at.checked_add(bytes)?)).ok_or(Fault::Memory(self.slot))?;
        self.stack.get_mut(range).ok_or(Fault::Memory(self.slot))
    }

    /// The counter at an address. Nothing else may be added to: what a run reads does not change during runs.
    fn counter(&self, addr: u64) -> Result<u32, Fault> {
        let at = (addr >> 32 == region::COUNTERS).then_some(addr as u32 as usize);
        at.and_then(|at| self.maps.counter(at)).ok_or(Fault::Memory(self.slot))
    }

    fn lookup(&self) -> Result<u64, Fault> {
        let number = self.get(Reg::R1)? >> 32;
        let index = number.checked_sub(region::MAPS + 1).ok_or(Fault::Helper(self.slot))? as usize;
        let map = *Map::ALL.get(index).ok_or(Fault::Helper(self.slot))?;
        let key =
            self.memory(self.get(Reg::R2)?, self.maps.key_bytes(map)).ok_or(Fault::Helper(self.slot))?;
        if map == Map::Interfaces && self.kernel.has_interface(key) {
            return Ok(region::base(region::INTERFACE));
        }
        let found = self.maps.find(map, key);
        Ok(found.map_or(0, |at| region::base(region::VALUES + index as u64) + at as u64))
    }

    fn probe_read(&mut self) -> Result<u64, Fault> {
        let (to, from) = (self.get(Reg::R1)?, self.get(Reg::R3)?);
        let bytes = usize::try_from(self.get(Reg::R2)?).unwrap_or(usize::MAX);
        if bytes == 0 || bytes > STACK_BYTES {
            return Err(Fault::Helper(self.slot));
        }
        if from >> 32 == region::COUNTERS {
            return Err(Fault::Helper(self.slot));
        }
        let copy = self.memory(from, bytes).map(<[u8]>::to_vec);
        let place = self.stack(to, bytes)?;
        match copy {
            Some(copy) => {
                place.copy_from_slice(&copy);
                Ok(0)
            }
            None => {
                place.fill(0);
                // -EFAULT
                Ok(-14i64 as u64)
            }
        }
    }
}
