//! eBPF instructions as typed values: to and from the bytes of the instruction set (RFC 9669), and as text.
//!
//! Only what a compiler of ours emits can be said; [`decode`] refuses everything else. Little-endian.

use std::fmt;

/// A register. Invariant: at most 10; 10 is the frame pointer and is never written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg(u8);

impl Reg {
    /// The result of calls, and of the program.
    pub const R0: Reg = Reg(0);
    /// First argument.
    pub const R1: Reg = Reg(1);
    /// Second argument.
    pub const R2: Reg = Reg(2);
    /// Third argument.
    pub const R3: Reg = Reg(3);
    /// Fourth argument.
    pub const R4: Reg = Reg(4);
    /// Fifth argument.
    pub const R5: Reg = Reg(5);
    /// Survives calls.
    pub const R6: Reg = Reg(6);
    /// Survives calls.
    pub const R7: Reg = Reg(7);
    /// Survives calls.
    pub const R8: Reg = Reg(8);
    /// Survives calls.
    pub const R9: Reg = Reg(9);
    /// The end of the stack's 512 bytes.
    pub const FP: Reg = Reg(10);

    /// The number.
    pub const fn number(self) -> usize {
        self.0 as usize
    }

    fn new(number: u8) -> Result<Reg, Malformed> {
        if number <= 10 { Ok(Reg(number)) } else { Err(Malformed("a register that does not exist")) }
    }
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// A register or a constant, which is sign-extended to 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operand {
    /// A register.
    Reg(Reg),
    /// A constant.
    Imm(i32),
}

impl From<Reg> for Operand {
    fn from(reg: Reg) -> Operand {
        Operand::Reg(reg)
    }
}

impl From<i32> for Operand {
    fn from(imm: i32) -> Operand {
        Operand::Imm(imm)
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Reg(reg) => reg.fmt(f),
            Operand::Imm(imm) => imm.fmt(f),
        }
    }
}

/// 64-bit arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AluOp {
    /// Wrapping addition.
    Add,
    /// Wrapping subtraction.
    Sub,
    /// Bitwise or.
    Or,
    /// Bitwise and.
    And,
    /// Shift to the left by the low six bits.
    Lsh,
    /// Logical shift to the right by the low six bits.
    Rsh,
    /// Copy.
    Mov,
}

impl AluOp {
    const ALL: [(AluOp, u8, &'static str); 7] = [
        (AluOp::Add, 0x00, "+="),
        (AluOp::Sub, 0x10, "-="),
        (AluOp::Or, 0x40, "|="),
        (AluOp::And, 0x50, "&="),
        (AluOp::Lsh, 0x60, "<<="),
        (AluOp::Rsh, 0x70, ">>="),
        (AluOp::Mov, 0xb0, "="),
    ];

    fn row(self) -> (u8, &'static str) {
        Self::ALL.iter().find(|r| r.0 == self).map_or((0, ""), |r| (r.1, r.2))
    }
}

/// A comparison of 64-bit unsigned values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cond {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Greater.
    Gt,
    /// Less or equal.
    Le,
}

impl Cond {
    const ALL: [(Cond, u8, &'static str); 4] =
        [(Cond::Eq, 0x10, "=="), (Cond::Ne, 0x50, "!="), (Cond::Gt, 0x20, ">"), (Cond::Le, 0xb0, "<=")];

    fn row(self) -> (u8, &'static str) {
        Self::ALL.iter().find(|r| r.0 == self).map_or((0, ""), |r| (r.1, r.2))
    }

    /// Whether it holds.
    pub const fn holds(self, a: u64, b: u64) -> bool {
        match self {
            Cond::Eq => a == b,
            Cond::Ne => a != b,
            Cond::Gt => a > b,
            Cond::Le => a <= b,
        }
    }
}

/// How much is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Size {
    /// One byte.
    B1,
    /// Two.
    B2,
    /// Four.
    B4,
    /// Eight.
    B8,
}

impl Size {
    const ALL: [(Size, u8, usize); 4] =
        [(Size::B1, 0x10, 1), (Size::B2, 0x08, 2), (Size::B4, 0x00, 4), (Size::B8, 0x18, 8)];

    /// In bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Size::B1 => 1,
            Size::B2 => 2,
            Size::B4 => 4,
            Size::B8 => 8,
        }
    }

    fn code(self) -> u8 {
        Self::ALL.iter().find(|r| r.0 == self).map_or(0, |r| r.1)
    }
}

/// An instruction. Offsets of jumps count slots of eight bytes from the next instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Insn {
    /// Arithmetic on 64 bits.
    Alu {
        /// What.
        op: AluOp,
        /// Left operand and result.
        dst: Reg,
        /// Right operand.
        src: Operand,
    },
    /// The low 16 bits from network order to host order; the others become 0.
    Be16(Reg),
    /// Reads memory.
    Load {
        /// How much.
        size: Size,
        /// Where to.
        dst: Reg,
        /// The address.
        base: Reg,
        /// Added to the address.
        off: i16,
    },
    /// Writes memory.
    Store {
        /// How much.
        size: Size,
        /// The address.
        base: Reg,
        /// Added to the address.
        off: i16,
        /// What.
        src: Reg,
    },
    /// Adds to eight bytes of memory at once for all processors; what was there is not read back.
    AtomicAdd {
        /// The address.
        base: Reg,
        /// Added to the address.
        off: i16,
        /// What is added.
        src: Reg,
    },
    /// A map, as helpers take it: two slots. In an object the constant is 0 and a relocation names the map.
    LoadMap {
        /// Where to.
        dst: Reg,
        /// The map's file descriptor.
        fd: i32,
    },
    /// Goes on elsewhere.
    Jump {
        /// How far.
        off: i16,
    },
    /// Goes on elsewhere if a comparison holds.
    Branch {
        /// The comparison.
        cond: Cond,
        /// Left side.
        dst: Reg,
        /// Right side.
        src: Operand,
        /// How far.
        off: i16,
    },
    /// Calls a helper of the kernel.
    Call(Helper),
    /// Ends the program; the result is in r0.
    Exit,
}

/// A helper of the kernel, by its number (`enum bpf_func_id`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Helper {
    /// r0 = address of the value of key r2 in map r1, or 0.
    MapLookup,
    /// Copies r2 bytes from r3 to r1; r0 = 0, or an error and zeros.
    ProbeReadKernel,
}

impl Helper {
    const ALL: [(Helper, i32, &'static str); 2] = [
        (Helper::MapLookup, 1, "bpf_map_lookup_elem"),
        (Helper::ProbeReadKernel, 113, "bpf_probe_read_kernel"),
    ];

    fn row(self) -> (i32, &'static str) {
        Self::ALL.iter().find(|r| r.0 == self).map_or((0, ""), |r| (r.1, r.2))
    }
}

/// Bytes that are no instruction of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

impl Insn {
    /// How many slots of eight bytes it takes.
    pub const fn slots(&self) -> usize {
        match self {
            Insn::LoadMap { .. } => 2,
            _ => 1,
        }
    }

    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut slot = |code: u8, dst: Reg, src: u8, off: i16, imm: i32| {
            out.extend([code, dst.0 | src << 4]);
            out.extend(off.to_le_bytes());
            out.extend(imm.to_le_bytes());
        };
        let parts = |src: Operand| match src {
            Operand::Reg(r) => (0x08, r.0, 0),
            Operand::Imm(imm) => (0, 0, imm),
        };
        match *self {
            Insn::Alu { op, dst, src } => {
                let (bit, reg, imm) = parts(src);
                slot(0x07 | op.row().0 | bit, dst, reg, 0, imm);
            }
            Insn::Be16(dst) => slot(0xdc, dst, 0, 0, 16),
            Insn::Load { size, dst, base, off } => slot(0x61 | size.code(), dst, base.0, off, 0),
            Insn::Store { size, base, off, src } => slot(0x63 | size.code(), base, src.0, off, 0),
            // BPF_STX | BPF_ATOMIC | BPF_DW; the constant BPF_ADD without BPF_FETCH is 0.
            Insn::AtomicAdd { base, off, src } => slot(0xdb, base, src.0, off, 0),
            Insn::LoadMap { dst, fd } => {
                // BPF_PSEUDO_MAP_FD where a file descriptor stands; 0 before relocation.
                slot(0x18, dst, u8::from(fd != 0), 0, fd);
                slot(0, Reg(0), 0, 0, 0);
            }
            Insn::Jump { off } => slot(0x05, Reg(0), 0, off, 0),
            Insn::Branch { cond, dst, src, off } => {
                let (bit, reg, imm) = parts(src);
                slot(0x05 | cond.row().0 | bit, dst, reg, off, imm);
            }
            Insn::Call(helper) => slot(0x85, Reg(0), 0, 0, helper.row().0),
            Insn::Exit => slot(0x95, Reg(0), 0, 0, 0),
        }
    }
}

/// Reads a program: for each slot its instruction, `None` for the second slot of a wide one. Jumps go forward, to an
/// instruction, and the last instruction does not run on: so every run ends.
///
/// # Errors
/// The first thing that is no instruction of ours.
pub fn decode(bytes: &[u8]) -> Result<Vec<Option<Insn>>, Malformed> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(8) {
        return Err(Malformed("not a whole number of instructions"));
    }
    let mut slots = Vec::with_capacity(bytes.len() / 8);
    let mut chunks = bytes.chunks_exact(8);
    while let Some(slot) = chunks.next() {
        let insn = decode_slot(slot)?;
        slots.push(Some(insn));
        if matches!(insn, Insn::LoadMap { .. }) {
            if chunks.next() != Some(&[0; 8]) {
                return Err(Malformed("a wide instruction without its second half"));
            }
            slots.push(None);
        }
    }
    for (i, insn) in slots.iter().enumerate() {
        if let Some(Insn::Jump { off } | Insn::Branch { off, .. }) = insn {
            let target = usize::try_from(*off).ok().and_then(|off| slots.get(i + 1 + off));
            if !matches!(target, Some(Some(_))) {
                return Err(Malformed("a jump backward or out of the program"));
            }
        }
    }
    match slots.last() {
        Some(Some(Insn::Exit | Insn::Jump { .. })) => Ok(slots),
        _ => Err(Malformed("the program runs past its end")),
    }
}

fn decode_slot(slot: &[u8]) -> Result<Insn, Malformed> {
    let &[code, regs, o0, o1, i0, i1, i2, i3] = slot else { return Err(Malformed("half an instruction")) };
    let (dst, src) = (Reg::new(regs & 15)?, Reg::new(regs >> 4)?);
    let (off, imm) = (i16::from_le_bytes([o0, o1]), i32::from_le_bytes([i0, i1, i2, i3]));
    let unknown = Malformed("an instruction that we do not emit");
    let operand = if code & 0x08 == 0 { Operand::Imm(imm) } else { Operand::Reg(src) };
    let size = Size::ALL.iter().find(|r| r.1 == code & 0x18).map(|r| r.0).ok_or(unknown)?;
    let insn = match code {
        0xdc if imm == 16 => Insn::Be16(dst),
        0x18 => Insn::LoadMap { dst, fd: imm },
        0xdb => Insn::AtomicAdd { base: dst, off, src },
        0x05 => Insn::Jump { off },
        0x85 => Insn::Call(Helper::ALL.iter().find(|r| r.1 == imm).ok_or(unknown)?.0),
        0x95 => Insn::Exit,
        _ => match code & 0x07 {
            0x07 => {
                let op = AluOp::ALL.iter().find(|r| r.1 == code & 0xf0).ok_or(unknown)?.0;
                Insn::Alu { op, dst, src: operand }
            }
            0x01 if code & 0xe0 == 0x60 => Insn::Load { size, dst, base: src, off },
            0x03 if code & 0xe0 == 0x60 => Insn::Store { size, base: dst, off, src },
            0x05 => {
                let cond = Cond::ALL.iter().find(|r| r.1 == code & 0xf0).ok_or(unknown)?.0;
                Insn::Branch { cond, dst, src: operand, off }
            }
            _ => return Err(unknown),
        },
    };
    let written = match insn {
        Insn::Alu { dst, .. } | Insn::Be16(dst) | Insn::Load { dst, .. } | Insn::LoadMap { dst, .. } => dst,
        _ => Reg::R0,
    };
    if written == Reg::FP {
        return Err(Malformed("the frame pointer is written"));
    }
    // What an instruction does not use must be zero: no two byte strings mean the same.
    let mut again = Vec::with_capacity(16);
    insn.encode(&mut again);
    if again.get(..8) == Some(slot) { Ok(insn) } else { Err(unknown) }
}

impl fmt::Display for Insn {
    /// As the kernel's verifier and llvm-objdump write them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = |size: &Size| size.bytes() * 8;
        match self {
            Insn::Alu { op, dst, src } => write!(f, "{dst} {} {src}", op.row().1),
            Insn::Be16(dst) => write!(f, "{dst} = be16 {dst}"),
            Insn::Load { size, dst, base, off } => write!(f, "{dst} = *(u{} *)({base} {off:+})", bits(size)),
            Insn::Store { size, base, off, src } => write!(f, "*(u{} *)({base} {off:+}) = {src}", bits(size)),
            Insn::AtomicAdd { base, off, src } => write!(f, "lock *(u64 *)({base} {off:+}) += {src}"),
            Insn::LoadMap { dst, fd } => write!(f, "{dst} = map[{fd}] ll"),
            Insn::Jump { off } => write!(f, "goto {off:+}"),
            Insn::Branch { cond, dst, src, off } => {
                write!(f, "if {dst} {} {src} goto {off:+}", cond.row().1)
            }
            Insn::Call(helper) => write!(f, "call {}", helper.row().1),
            Insn::Exit => f.write_str("exit"),
        }
    }
}
