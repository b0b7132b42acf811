//! Object and contents -> what would be loaded. Independent of `select` and `emit`: it starts from the bytes, reads
//! sections, symbols, relocations and types, and takes nothing for granted that the kernel would not check.

use super::btf::{Btf, BtfError, MapShape};
use super::contents::{Contents, ContentsError, Established};
use super::insn::{self, AluOp, Insn, Malformed, Operand};
use super::layout::Map;
use super::{Field, tuples_together};
use crate::limits;
use object::read::elf::ElfFile64;
use object::{
    Endianness, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SymbolKind,
};
use std::collections::BTreeMap;

/// The section of the program, by which libbpf (1.2 and newer) knows its type.
pub const SECTION: &str = "netfilter";
/// What the program calls itself in the section `license`.
pub const LICENSE: &str = "Dual MIT/GPL";
/// The relocation of a wide load that names a map (`R_BPF_64_64`, Documentation/bpf/llvm_reloc.rst).
pub const R_BPF_64_64: u32 = 1;

/// Bytes that are not an artifact of ours.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The object is too large to be read.
    #[error("an object of {0} bytes is too large")]
    TooLarge(usize),
    /// The bytes are no ELF object.
    #[error("not an ELF object: {0}")]
    Elf(#[from] object::Error),
    /// The program is not one.
    #[error("not a program of ours: {0}")]
    Program(#[from] Malformed),
    /// The types are not readable.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The contents are not readable.
    #[error("contents: {0}")]
    Contents(#[from] ContentsError),
    /// Something is missing, or is not as it must be.
    #[error("{0}")]
    Wrong(String),
}

fn wrong(text: impl Into<String>) -> DecodeError {
    DecodeError::Wrong(text.into())
}

/// A program as it stands in an object, before it is linked with maps and a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// For each slot of eight bytes its instruction; `None` for the second half of a wide one.
    pub slots: Vec<Option<Insn>>,
    /// Which slots load which map.
    pub maps: BTreeMap<usize, Map>,
    /// Which slots hold the offset of which field.
    pub fields: BTreeMap<usize, Field>,
}

/// An artifact that was read back.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// How the program treats established connections.
    pub established: Established,
    /// The program.
    pub program: Program,
    /// The maps, in order.
    pub shapes: Vec<MapShape>,
    /// What the maps hold at first.
    pub contents: Contents,
    /// The types, functions and lines of the object, for the kernel.
    pub information: Information,
}

/// Types, functions and lines, as the kernel takes them beside a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Information {
    /// The section `.BTF`, for `BPF_BTF_LOAD`.
    pub types: Vec<u8>,
    /// `struct bpf_func_info`: slot and type, eight bytes each.
    pub functions: Vec<u8>,
    /// `struct bpf_line_info`: slot, file, line's text and number, sixteen bytes each.
    pub lines: Vec<u8>,
}

/// What linking needs and does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The kernel has no such field.
    #[error("this kernel has no {0}")]
    Field(&'static str),
    /// The field is too far from the beginning of its structure for an instruction.
    #[error("{0} is too far from the beginning of its structure")]
    Far(&'static str),
    /// One read would not get both tuples of a connection.
    #[error("this kernel has the two tuples of a connection elsewhere than programs read them")]
    Apart,
}

impl Program {
    /// The instructions with the places of fields and the descriptors of maps filled in.
    ///
    /// # Errors
    /// If `offset` does not know a field, or puts the tuples of a connection apart.
    pub fn link(
        &self,
        offset: impl Fn(Field) -> Option<u32>,
        fd: impl Fn(Map) -> i32,
    ) -> Result<Vec<Option<Insn>>, LinkError> {
        if !tuples_together(&offset) {
            return Err(LinkError::Apart);
        }
        let mut slots = self.slots.clone();
        for (slot, field) in &self.fields {
            let at = offset(*field).ok_or(LinkError::Field(field.path()))?;
            match slots.get_mut(*slot) {
                Some(Some(Insn::Load { off, .. })) => {
                    *off = at.try_into().map_err(|_| LinkError::Far(field.path()))?;
                }
                Some(Some(Insn::Alu { src, .. })) => {
                    *src = Operand::Imm(at.try_into().map_err(|_| LinkError::Far(field.path()))?);
                }
                _ => {}
            }
        }
        for (slot, map) in &self.maps {
            if let Some(Some(Insn::LoadMap { fd: place, .. })) = slots.get_mut(*slot) {
                *place = fd(*map);
            }
        }
        Ok(slots)
    }

    /// The bytes that the kernel takes: fields where `offset` says, maps by their descriptors.
    ///
    /// # Errors
    /// If the kernel lacks a field.
    pub fn link_for(
        &self,
        offset: impl Fn(Field) -> Option<u32>,
        fd: impl Fn(Map) -> i32,
    ) -> Result<Vec<u8>, LinkError> {
        let slots = self.link(offset, fd)?;
        let mut bytes = Vec::with_capacity(slots.len() * 8);
        slots.iter().flatten().for_each(|insn| insn.encode(&mut bytes));
        Ok(bytes)
    }

    /// As [`Program::link_for`], with a kernel's types.
    ///
    /// # Errors
    /// If the kernel lacks a field.
    pub fn link_for_kernel(&self, kernel: &Btf, fd: impl Fn(Map) -> i32) -> Result<Vec<u8>, LinkError> {
        self.link_for(|field| kernel.offset_of(field.path()), fd)
    }
}

/// Reads an artifact back.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn decode(object: &[u8], contents: &str) -> Result<Artifact, DecodeError> {
    let contents = Contents::parse(contents)?;
    let (program, shapes, information) = read_object(object)?;
    let named = Established::ALL.into_iter().find(|e| program.name == e.program());
    let established =
        named.ok_or_else(|| wrong(format!("{:?} is no name of a program of ours", program.name)))?;
    for shape in &shapes {
        let (kind, key, value) = shape.map.shape();
        let (needs, room) = (contents.needs(shape.map), contents.room(shape.map));
        if (shape.kind, shape.key, shape.value, shape.flags) != (kind, key, value, kind.flags()) {
            return Err(wrong(format!("map {} is not as the program needs it", shape.map.name())));
        }
        if !(needs..=room).contains(&shape.entries) {
            let name = shape.map.name();
            return Err(wrong(format!(
                "map {name} has room for {}, the contents ask for {room}",
                shape.entries
            )));
        }
    }
    Ok(Artifact { established, program, shapes, contents, information })
}

/// Reads an object.
fn read_object(bytes: &[u8]) -> Result<(Program, Vec<MapShape>, Information), DecodeError> {
    if bytes.len() > limits::BPF_OBJECT_BYTES as usize {
        return Err(DecodeError::TooLarge(bytes.len()));
    }
    let elf = ElfFile64::<Endianness>::parse(bytes)?;
    if elf.architecture() != object::Architecture::Bpf || !elf.is_little_endian() {
        return Err(wrong("not an object for little-endian eBPF"));
    }
    let section =
        |name: &str| elf.section_by_name(name).ok_or_else(|| wrong(format!("there is no section {name}")));
    let code = section(SECTION)?;
    if section("license")?.data()? != [LICENSE.as_bytes(), &[0]].concat() {
        return Err(wrong("the license is not the one that the kernel asks for"));
    }
    let data = code.data()?;
    if data.len() > limits::BPF_INSTRUCTIONS * 8 {
        return Err(DecodeError::TooLarge(data.len()));
    }
    let slots = insn::decode(data)?;
    let functions =
        elf.symbols().filter(|s| s.kind() == SymbolKind::Text && s.section_index() == Some(code.index()));
    let names: Vec<&str> = functions.filter_map(|s| s.name().ok()).collect();
    let [name] = names[..] else { return Err(wrong("there is not exactly one program")) };
    let btf = Btf::parse(section(".BTF")?.data()?)?;
    let shapes = btf.maps().ok_or_else(|| wrong("the maps are not ours"))?;
    if !shapes.iter().map(|s| s.map).eq(Map::ALL) {
        return Err(wrong("the maps are not ours"));
    }
    let mut maps = BTreeMap::new();
    for (offset, relocation) in code.relocations() {
        let RelocationTarget::Symbol(target) = relocation.target() else {
            return Err(wrong("a relocation names nothing"));
        };
        let map = Map::from_name(elf.symbol_by_index(target)?.name()?);
        let flags = RelocationFlags::Elf { r_type: R_BPF_64_64 };
        match (map, usize::try_from(offset)) {
            (Some(map), Ok(offset)) if relocation.flags() == flags && offset % 8 == 0 => {
                maps.insert(offset / 8, map);
            }
            _ => return Err(wrong("a relocation that is not ours")),
        }
    }
    let loads =
        slots.iter().enumerate().filter(|(_, i)| matches!(i, Some(Insn::LoadMap { .. }))).map(|(i, _)| i);
    if !loads.eq(maps.keys().copied())
        || slots.iter().flatten().any(|i| matches!(i, Insn::LoadMap { fd: 1.., .. }))
    {
        return Err(wrong("maps and relocations do not belong together"));
    }
    let extra = section(".BTF.ext")?.data()?;
    let fields = fields(extra, &btf, &slots)?;
    let information = Information {
        types: section(".BTF")?.data()?.to_vec(),
        functions: in_slots(table(extra, &btf, 0, 8)?, 8),
        lines: in_slots(table(extra, &btf, 1, 16)?, 16),
    };
    Ok((Program { name: name.to_owned(), slots, maps, fields }, shapes, information))
}

fn word(bytes: &[u8], at: usize) -> Result<u32, DecodeError> {
    let bytes = bytes.get(at..at.saturating_add(4)).and_then(|b| b.try_into().ok());
    bytes.map(u32::from_le_bytes).ok_or_else(|| wrong("a table of .BTF.ext is cut off"))
}

/// The records of a table of `.BTF.ext`: functions (0), lines (1), relocations of fields (2). All are of one section.
fn table<'e>(extra: &'e [u8], btf: &Btf, number: usize, record: usize) -> Result<&'e [u8], DecodeError> {
    let at = |at| word(extra, at).map(|w| w as usize);
    let (from, bytes) = (at(4)?.saturating_add(at(8 + number * 8)?), at(12 + number * 8)?);
    let records = bytes.checked_sub(12).and_then(|_| extra.get(from + 12..from.checked_add(bytes)?));
    let records = records.ok_or_else(|| wrong("a table of .BTF.ext is cut off"))?;
    let count = at(from + 8)?.checked_mul(record);
    if at(from)? != record || count != Some(records.len()) || btf.string(word(extra, from + 4)?) != SECTION {
        return Err(wrong("a table of .BTF.ext is not ours"));
    }
    Ok(records)
}

/// Records whose first word counts slots, as the kernel counts, and not bytes, as objects do.
fn in_slots(records: &[u8], record: usize) -> Vec<u8> {
    let mut out = records.to_vec();
    for record in out.chunks_exact_mut(record) {
        if let Some(first) = record.first_chunk_mut::<4>() {
            *first = (u32::from_le_bytes(*first) / 8).to_le_bytes();
        }
    }
    out
}

/// The CO-RE relocations of `.BTF.ext`. Each must stand at an instruction whose constant is the place in our own types,
/// as libbpf demands.
fn fields(extra: &[u8], btf: &Btf, slots: &[Option<Insn>]) -> Result<BTreeMap<usize, Field>, DecodeError> {
    let mut fields = BTreeMap::new();
    for record in table(extra, btf, 2, 16)?.chunks_exact(16) {
        let (offset, id) = (word(record, 0)?, word(record, 4)?);
        let (access, kind) = (word(record, 8)?, word(record, 12)?);
        let path = btf.access_path(id, btf.string(access)).unwrap_or_default();
        let field = Field::from_path(&path).filter(|_| kind == 0 && offset % 8 == 0);
        let field =
            field.ok_or_else(|| wrong(format!("a relocation of a field that is not ours: {path}")))?;
        let slot = offset as usize / 8;
        let written = match slots.get(slot) {
            Some(Some(Insn::Load { off, .. })) => i64::from(*off),
            Some(Some(Insn::Alu { op: AluOp::Add, src: Operand::Imm(imm), .. })) => i64::from(*imm),
            _ => return Err(wrong(format!("{path} is relocated where nothing is read"))),
        };
        if btf.offset_of(&path).map(i64::from) != Some(written) {
            return Err(wrong(format!("{path} is not where the types of the object say")));
        }
        fields.insert(slot, field);
    }
    Ok(fields)
}
