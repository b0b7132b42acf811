//! The assembler: instructions with labels, maps and fields of the kernel's structures, put together into a program.

use crate::insn::{AluOp, Cond, Helper, Insn, Operand, Reg, Size};
use crate::layout::Map;
use std::collections::BTreeMap;
use std::fmt::Write;

/// A field of a structure of the kernel whose place differs between kernels: the loader finds it (CO-RE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `sk_buff._nfct`: the packet's entry of the connection table, and its state in the low three bits.
    SkbNfct,
    /// `sk_buff.head`: where the packet's buffer starts.
    SkbHead,
    /// `sk_buff.network_header`: where in it the IP header starts.
    SkbNetworkHeader,
    /// `nf_conn.tuplehash[0].tuple`: the connection as its first packet came.
    CtOriginal,
    /// `nf_conn.tuplehash[1].tuple`: the connection as replies come, its source is the true destination.
    CtReply,
    /// `nf_conn.status`.
    CtStatus,
    /// `nf_conn.proto.tcp.state`.
    CtTcpState,
    /// `nf_hook_state.in`: the interface that the packet came from.
    StateIn,
    /// `net_device.ifindex`.
    DeviceIndex,
}

impl Field {
    /// All, in order.
    pub const ALL: [Field; 9] = [
        Field::SkbNfct,
        Field::SkbHead,
        Field::SkbNetworkHeader,
        Field::CtOriginal,
        Field::CtReply,
        Field::CtStatus,
        Field::CtTcpState,
        Field::StateIn,
        Field::DeviceIndex,
    ];

    /// The path from the structure to the field.
    pub const fn path(self) -> &'static str {
        match self {
            Field::SkbNfct => "sk_buff._nfct",
            Field::SkbHead => "sk_buff.head",
            Field::SkbNetworkHeader => "sk_buff.network_header",
            Field::CtOriginal => "nf_conn.tuplehash[0].tuple",
            Field::CtReply => "nf_conn.tuplehash[1].tuple",
            Field::CtStatus => "nf_conn.status",
            Field::CtTcpState => "nf_conn.proto.tcp.state",
            Field::StateIn => "nf_hook_state.in",
            Field::DeviceIndex => "net_device.ifindex",
        }
    }

    /// The field with this path.
    pub fn from_path(path: &str) -> Option<Field> {
        Field::ALL.into_iter().find(|f| f.path() == path)
    }
}

/// Where a jump goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label(&'static str, usize);

/// A finished program. Slots are numbered from 0, eight bytes each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    /// The name of the program.
    pub name: String,
    /// The instructions.
    pub insns: Vec<Insn>,
    /// Which slots load which map.
    pub maps: BTreeMap<usize, Map>,
    /// Which slots hold the offset of which field.
    pub fields: BTreeMap<usize, Field>,
    /// What begins at which slot, for people.
    pub notes: BTreeMap<usize, &'static str>,
}

impl Assembled {
    /// The bytes of the program.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.insns.len() * 8);
        self.insns.iter().for_each(|insn| insn.encode(&mut out));
        out
    }

    /// The program as text, for review.
    pub fn disassembly(&self) -> String {
        let mut out = format!("{}:\n", self.name);
        let mut slot = 0;
        for insn in &self.insns {
            if let Some(note) = self.notes.get(&slot) {
                let _ = writeln!(out, "; {note}");
            }
            let _ = write!(out, "{slot:4}: {insn}");
            if let Insn::Jump { off } | Insn::Branch { off, .. } = insn {
                let _ = write!(out, " <{}>", slot as i64 + 1 + i64::from(*off));
            }
            if let Some(map) = self.maps.get(&slot) {
                let _ = write!(out, " <{}>", map.name());
            }
            if let Some(field) = self.fields.get(&slot) {
                let _ = write!(out, " <{}>", field.path());
            }
            out.push('\n');
            slot += insn.slots();
        }
        out
    }
}

/// Puts a program together.
#[derive(Debug, Default)]
pub struct Assembler {
    insns: Vec<Insn>,
    slot: usize,
    maps: BTreeMap<usize, Map>,
    fields: BTreeMap<usize, Field>,
    notes: BTreeMap<usize, &'static str>,
    labels: BTreeMap<Label, usize>,
    /// Instruction and slot of each jump, and where it goes.
    jumps: Vec<(usize, usize, Label)>,
    copies: usize,
}

impl Assembler {
    fn push(&mut self, insn: Insn) -> &mut Assembler {
        self.slot += insn.slots();
        self.insns.push(insn);
        self
    }

    /// A label of this name. Labels of equal names from different calls are different.
    pub fn label(&mut self, name: &'static str) -> Label {
        self.copies += 1;
        Label(name, self.copies)
    }

    /// Says where a label is, and what begins there.
    pub fn place(&mut self, label: Label) -> &mut Assembler {
        self.labels.insert(label, self.slot);
        self
    }

    /// What begins here, for people: it becomes line information of the object.
    pub fn note(&mut self, text: &'static str) -> &mut Assembler {
        self.notes.insert(self.slot, text);
        self
    }

    /// Arithmetic.
    pub fn alu(&mut self, op: AluOp, dst: Reg, src: impl Into<Operand>) -> &mut Assembler {
        self.push(Insn::Alu { op, dst, src: src.into() })
    }

    /// A copy.
    pub fn mov(&mut self, dst: Reg, src: impl Into<Operand>) -> &mut Assembler {
        self.alu(AluOp::Mov, dst, src)
    }

    /// Network order to host order.
    pub fn be16(&mut self, dst: Reg) -> &mut Assembler {
        self.push(Insn::Be16(dst))
    }

    /// Reads memory.
    pub fn load(&mut self, size: Size, dst: Reg, base: Reg, off: i16) -> &mut Assembler {
        self.push(Insn::Load { size, dst, base, off })
    }

    /// Writes memory.
    pub fn store(&mut self, size: Size, base: Reg, off: i16, src: Reg) -> &mut Assembler {
        self.push(Insn::Store { size, base, off, src })
    }

    /// Adds to memory that all processors share.
    pub fn atomic_add(&mut self, base: Reg, off: i16, src: Reg) -> &mut Assembler {
        self.push(Insn::AtomicAdd { base, off, src })
    }

    /// Reads a field of a structure of the kernel.
    pub fn load_field(&mut self, size: Size, dst: Reg, base: Reg, field: Field) -> &mut Assembler {
        self.fields.insert(self.slot, field);
        self.push(Insn::Load { size, dst, base, off: crate::btf::local_offset(field) as i16 })
    }

    /// Adds the offset of a field of a structure of the kernel.
    pub fn add_field(&mut self, dst: Reg, field: Field) -> &mut Assembler {
        self.fields.insert(self.slot, field);
        self.alu(AluOp::Add, dst, crate::btf::local_offset(field) as i32)
    }

    /// r0 = address of the value in a map of the key at an offset from the frame pointer, or 0.
    pub fn lookup(&mut self, map: Map, key: i16) -> &mut Assembler {
        self.mov(Reg::R2, Reg::FP).alu(AluOp::Add, Reg::R2, i32::from(key));
        self.maps.insert(self.slot, map);
        self.push(Insn::LoadMap { dst: Reg::R1, fd: 0 }).push(Insn::Call(Helper::MapLookup))
    }

    /// Copies kernel memory at r3 to an offset from the frame pointer; r0 = 0 unless that failed.
    pub fn probe_read(&mut self, to: i16, bytes: i32) -> &mut Assembler {
        self.mov(Reg::R1, Reg::FP).alu(AluOp::Add, Reg::R1, i32::from(to));
        self.mov(Reg::R2, bytes).push(Insn::Call(Helper::ProbeReadKernel))
    }

    /// Goes on at a label, which must come later.
    pub fn goto(&mut self, to: Label) -> &mut Assembler {
        self.jumps.push((self.insns.len(), self.slot, to));
        self.push(Insn::Jump { off: 0 })
    }

    /// Goes on at a label, which must come later, if a comparison holds.
    pub fn branch(&mut self, dst: Reg, cond: Cond, src: impl Into<Operand>, to: Label) -> &mut Assembler {
        self.jumps.push((self.insns.len(), self.slot, to));
        self.push(Insn::Branch { cond, dst, src: src.into(), off: 0 })
    }

    /// Ends the program.
    pub fn exit(&mut self) -> &mut Assembler {
        self.push(Insn::Exit)
    }

    /// The program. A jump to a label that was not placed stays a jump to the next instruction: [`crate::program`] has
    /// none, and its tests hold that.
    pub fn finish(mut self, name: String) -> Assembled {
        for (index, slot, label) in &self.jumps {
            let target = self.labels.get(label).copied().unwrap_or(slot + 1);
            if let Some(Insn::Jump { off } | Insn::Branch { off, .. }) = self.insns.get_mut(*index) {
                *off = (target as i64 - *slot as i64 - 1) as i16;
            }
        }
        let Assembler { insns, maps, fields, notes, .. } = self;
        Assembled { name, insns, maps, fields, notes }
    }
}
