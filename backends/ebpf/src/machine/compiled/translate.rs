//! BPF instructions -> Cranelift's.
//!
//! What this file promises, and running the code depends on: the function takes one argument, a [`Frame`]; it reads and
//! writes nothing but the stack of that frame, within its bounds, and its `value`; it calls nothing but the one function
//! of [`native`](super::native) that it was given, with that same frame; and it returns.
//!
//! [`Frame`]: super::native::Frame

use super::native::{Places, Service};
use super::registers::{reachable, target};
use crate::insn::{AluOp, Cond, Helper, Insn, Operand, Reg, Size};
use crate::machine::memory::{FRAME_POINTER, STACK_BYTES, map_address};
use crate::machine::packet::region;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    Block, Endianness, FuncRef, Function, InstBuilder, MemFlagsData, Type, Value, types,
};
use cranelift_codegen::isa::TargetFrontendConfig;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use std::collections::BTreeMap;

/// Fills a function of signature `(frame) -> r0` with the instructions of a program. `service` is of signature
/// `(frame, slot, service, a, b, c) -> fault`. `None` if the program has to be interpreted; the function is then of no
/// use.
pub(super) fn translate(
    slots: &[Option<Insn>],
    function: &mut Function,
    service: FuncRef,
    config: TargetFrontendConfig,
) -> Option<()> {
    let reachable = reachable(slots)?;
    let mut context = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(function, &mut context);
    let entry = builder.create_block();
    builder.append_block_params_for_function_params(entry);
    builder.switch_to_block(entry);
    let frame = *builder.block_params(entry).first()?;
    let registers = [(); 11].map(|()| builder.declare_var(types::I64));
    let fault = builder.create_block();
    let mut blocks = BTreeMap::new();
    let live = || slots.iter().zip(&reachable).enumerate().filter(|(_, (_, live))| **live);
    for (slot, (insn, _)) in live() {
        if let Some(Insn::Jump { off } | Insn::Branch { off, .. }) = insn {
            blocks.entry(target(slot, *off)).or_insert_with(|| builder.create_block());
        }
    }
    let mut translation = Translation { builder, frame, registers, blocks, fault, service, open: true };
    translation.begin();
    for (slot, (insn, _)) in live() {
        translation.instruction(slot, insn.as_ref()?)?;
    }
    translation.finish(config);
    Some(())
}

struct Translation<'f> {
    builder: FunctionBuilder<'f>,
    frame: Value,
    registers: [Variable; 11],
    /// For each slot that is jumped to, what begins there.
    blocks: BTreeMap<usize, Block>,
    /// Where a run ends that went wrong.
    fault: Block,
    service: FuncRef,
    /// Whether the instruction before this one runs on into it.
    open: bool,
}

impl Translation<'_> {
    /// The registers as a program finds them. That the others are zero is never seen.
    fn begin(&mut self) {
        let zero = self.constant(0);
        self.registers.iter().for_each(|reg| self.builder.def_var(*reg, zero));
        for (reg, value) in [(Reg::R1, region::base(region::CTX)), (Reg::FP, FRAME_POINTER)] {
            let value = self.constant(value);
            self.set(reg, value);
        }
    }

    fn finish(mut self, config: TargetFrontendConfig) {
        self.builder.switch_to_block(self.fault);
        let zero = self.constant(0);
        self.builder.ins().return_(&[zero]);
        self.builder.seal_all_blocks();
        self.builder.finalize(config);
    }

    fn constant(&mut self, value: u64) -> Value {
        self.builder.ins().iconst(types::I64, value as i64)
    }

    fn get(&mut self, reg: Reg) -> Value {
        self.builder.use_var(self.registers[reg.number()])
    }

    fn set(&mut self, reg: Reg, value: Value) {
        self.builder.def_var(self.registers[reg.number()], value);
    }

    fn operand(&mut self, operand: Operand) -> Value {
        match operand {
            Operand::Reg(reg) => self.get(reg),
            Operand::Imm(imm) => self.constant(imm as i64 as u64),
        }
    }

    fn address(&mut self, base: Reg, off: i16) -> Value {
        let (base, off) = (self.get(base), self.constant(off as i64 as u64));
        self.builder.ins().iadd(base, off)
    }

    fn instruction(&mut self, slot: usize, insn: &Insn) -> Option<()> {
        if let Some(&block) = self.blocks.get(&slot) {
            if self.open {
                self.builder.ins().jump(block, &[]);
            }
            self.builder.switch_to_block(block);
        }
        self.open = true;
        match *insn {
            Insn::Alu { op, dst, src } => self.alu(op, dst, src),
            Insn::Be16(reg) => {
                let value = self.get(reg);
                let low = self.builder.ins().ireduce(types::I16, value);
                let swapped = self.builder.ins().bswap(low);
                let value = self.builder.ins().uextend(types::I64, swapped);
                self.set(reg, value);
            }
            Insn::Load { size, dst, base, off } => {
                let value = self.load(slot, size, base, off);
                self.set(dst, value);
            }
            Insn::Store { size, base, off, src } => self.store(slot, size, base, off, src),
            Insn::AtomicAdd { base, off, src } => {
                let (addr, amount) = (self.address(base, off), self.get(src));
                self.call(slot, Service::Add, [Some(addr), Some(amount), None]);
            }
            Insn::LoadMap { dst, fd } => {
                let value = self.constant(map_address(fd));
                self.set(dst, value);
            }
            Insn::Jump { off } => {
                let block = *self.blocks.get(&target(slot, off))?;
                self.builder.ins().jump(block, &[]);
                self.open = false;
            }
            Insn::Branch { cond, dst, src, off } => {
                let (a, b) = (self.get(dst), self.operand(src));
                let holds = self.builder.ins().icmp(condition(cond), a, b);
                let (there, next) = (*self.blocks.get(&target(slot, off))?, self.builder.create_block());
                self.builder.ins().brif(holds, there, &[], next, &[]);
                self.builder.switch_to_block(next);
            }
            Insn::Call(Helper::MapLookup) => {
                let arguments = [Reg::R1, Reg::R2].map(|reg| Some(self.get(reg)));
                let value = self.call(slot, Service::Lookup, [arguments[0], arguments[1], None]);
                self.set(Reg::R0, value);
            }
            Insn::Call(Helper::ProbeReadKernel) => {
                let arguments = [Reg::R1, Reg::R2, Reg::R3].map(|reg| Some(self.get(reg)));
                let value = self.call(slot, Service::ProbeRead, arguments);
                self.set(Reg::R0, value);
            }
            Insn::Exit => {
                let value = self.get(Reg::R0);
                self.builder.ins().return_(&[value]);
                self.open = false;
            }
        }
        Some(())
    }

    fn alu(&mut self, op: AluOp, dst: Reg, src: Operand) {
        let b = self.operand(src);
        if op == AluOp::Mov {
            return self.set(dst, b);
        }
        let a = self.get(dst);
        let ins = self.builder.ins();
        // Shifts of 64 bits take the low six bits of the distance, as BPF's do.
        let value = match op {
            AluOp::Add => ins.iadd(a, b),
            AluOp::Sub => ins.isub(a, b),
            AluOp::Or => ins.bor(a, b),
            AluOp::And => ins.band(a, b),
            AluOp::Lsh => ins.ishl(a, b),
            AluOp::Rsh => ins.ushr(a, b),
            AluOp::Mov => b,
        };
        self.set(dst, value);
    }

    fn load(&mut self, slot: usize, size: Size, base: Reg, off: i16) -> Value {
        let Some(place) = on_stack(base, off, size) else {
            let (addr, bytes) = (self.address(base, off), self.constant(size.bytes() as u64));
            return self.call(slot, Service::Read, [Some(addr), Some(bytes), None]);
        };
        let (frame, ty) = (self.frame, number(size));
        let value = self.builder.ins().load(ty, flags(), frame, place);
        if ty == types::I64 { value } else { self.builder.ins().uextend(types::I64, value) }
    }

    fn store(&mut self, slot: usize, size: Size, base: Reg, off: i16, src: Reg) {
        let Some(place) = on_stack(base, off, size) else {
            let (addr, bytes) = (self.address(base, off), self.constant(size.bytes() as u64));
            let value = self.get(src);
            self.call(slot, Service::Write, [Some(addr), Some(bytes), Some(value)]);
            return;
        };
        let (frame, ty, value) = (self.frame, number(size), self.get(src));
        let value = if ty == types::I64 { value } else { self.builder.ins().ireduce(ty, value) };
        self.builder.ins().store(flags(), value, frame, place);
    }

    /// Asks for a service and ends the run if it finds fault; what came of it.
    fn call(&mut self, slot: usize, service: Service, arguments: [Option<Value>; 3]) -> Value {
        let (place, which) = (self.constant(slot as u64), self.constant(service as u64));
        let zero = self.constant(0);
        let [a, b, c] = arguments.map(|argument| argument.unwrap_or(zero));
        let call = self.builder.ins().call(self.service, &[self.frame, place, which, a, b, c]);
        let fault = self.builder.inst_results(call).first().copied().unwrap_or(zero);
        let next = self.builder.create_block();
        self.builder.ins().brif(fault, self.fault, &[], next, &[]);
        self.builder.switch_to_block(next);
        self.builder.ins().load(types::I64, flags(), self.frame, Places::VALUE)
    }
}

/// Where in the frame a fixed place on the stack is, if all of it is on the stack.
fn on_stack(base: Reg, off: i16, size: Size) -> Option<i32> {
    let at = STACK_BYTES.checked_add_signed(isize::from(off)).filter(|_| base == Reg::FP)?;
    let within = at.checked_add(size.bytes())? <= STACK_BYTES;
    within.then(|| Places::STACK + at as i32)
}

/// BPF numbers are little-endian whatever the host is; places on the stack need not be aligned.
fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap().with_endianness(Endianness::Little)
}

fn number(size: Size) -> Type {
    match size {
        Size::B1 => types::I8,
        Size::B2 => types::I16,
        Size::B4 => types::I32,
        Size::B8 => types::I64,
    }
}

fn condition(cond: Cond) -> IntCC {
    match cond {
        Cond::Eq => IntCC::Equal,
        Cond::Ne => IntCC::NotEqual,
        Cond::Gt => IntCC::UnsignedGreaterThan,
        Cond::Le => IntCC::UnsignedLessThanOrEqual,
    }
}
