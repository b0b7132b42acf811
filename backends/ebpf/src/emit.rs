//! Program and sizes of maps -> an ELF object, as libbpf and its kin load it. Deterministic to the byte.
//!
//! Sections: `netfilter` (the program), `.maps` (one definition for each map), `license`, `.BTF` (types), `.BTF.ext`
//! (the function, lines that say what the program does where, and CO-RE relocations). The license is what the kernel
//! asks of a program that calls `bpf_probe_read_kernel`.

use crate::asm::Assembled;
use crate::btf::{self, Local};
use crate::contents::{Contents, Established};
use crate::layout::Map;
use crate::program;
use object::write::{Object, Relocation, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind};
use object::{SymbolFlags, SymbolKind, SymbolScope};

pub use netpolc_bundle::bpf::object::{LICENSE, R_BPF_64_64, SECTION};

/// An object that could not be written: a bug of ours.
#[derive(Debug, thiserror::Error)]
#[error("the object cannot be written: {0}")]
pub struct EmitError(#[from] object::write::Error);

/// The object for a node's contents, and for one way to treat established connections.
///
/// # Errors
/// If the ELF writer refuses, which it has no reason to.
pub fn emit(contents: &Contents, established: Established) -> Result<Vec<u8>, EmitError> {
    write(&program::build(established), |map| contents.room(map))
}

/// The object for a program.
///
/// # Errors
/// If the ELF writer refuses.
pub fn write(program: &Assembled, room: impl Fn(Map) -> u32) -> Result<Vec<u8>, EmitError> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let code = program.bytes();
    let text = object.add_section(Vec::new(), SECTION.into(), SectionKind::Text);
    object.append_section_data(text, &code, 8);
    object.add_symbol(symbol(&program.name, 0, code.len(), SymbolKind::Text, text));
    let maps = object.add_section(Vec::new(), b".maps".to_vec(), SectionKind::Data);
    let definition = btf::DEFINITION_BYTES as usize;
    object.append_section_data(maps, &vec![0; definition * Map::ALL.len()], 8);
    let mut symbols = Vec::new();
    for (i, map) in Map::ALL.into_iter().enumerate() {
        let symbol = symbol(map.name(), i * definition, definition, SymbolKind::Data, maps);
        symbols.push((map, object.add_symbol(symbol)));
    }
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    let text_of_license = [LICENSE.as_bytes(), &[0]].concat();
    object.append_section_data(license, &text_of_license, 1);
    // Local, since libbpf's linker asks for the types of all symbols that others may see.
    let license = symbol("_license", 0, text_of_license.len(), SymbolKind::Data, license);
    object.add_symbol(Symbol { scope: SymbolScope::Compilation, ..license });
    for (slot, map) in &program.maps {
        if let Some((_, symbol)) = symbols.iter().find(|(m, _)| m == map) {
            let flags = RelocationFlags::Elf { r_type: R_BPF_64_64 };
            let offset = *slot as u64 * 8;
            object.add_relocation(text, Relocation { offset, symbol: *symbol, addend: 0, flags })?;
        }
    }
    let (types, extra) = type_information(program, room);
    for (name, bytes) in [(".BTF", types), (".BTF.ext", extra)] {
        let section = object.add_section(Vec::new(), name.into(), SectionKind::Other);
        object.append_section_data(section, &bytes, 4);
    }
    Ok(object.write()?)
}

fn symbol(
    name: &str,
    at: usize,
    bytes: usize,
    kind: SymbolKind,
    section: object::write::SectionId,
) -> Symbol {
    Symbol {
        name: name.into(),
        value: at as u64,
        size: bytes as u64,
        kind,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    }
}

/// `.BTF` and `.BTF.ext` (the latter: `struct btf_ext_header` of libbpf, then three tables).
fn type_information(program: &Assembled, room: impl Fn(Map) -> u32) -> (Vec<u8>, Vec<u8>) {
    let Local { mut types, fields, function } = btf::local(&program.name, room);
    let section = types.string(SECTION);
    let file = types.string("netpolc/forward");
    let table = |record: usize, records: Vec<u32>| -> Vec<u32> {
        let count = records.len() * 4 / record;
        [vec![record as u32, section, count as u32], records].concat()
    };
    let functions = table(8, vec![0, function]);
    let mut lines = Vec::new();
    for ((slot, note), line) in program.notes.iter().zip(1u32..) {
        // The line's number is in the upper 22 bits, the column in the lower 10.
        lines.extend([*slot as u32 * 8, file, types.string(note), line << 10 | 1]);
    }
    let lines = table(16, lines);
    let mut relocations = Vec::new();
    for (slot, field) in &program.fields {
        if let Some((_, id, access)) = fields.iter().find(|f| f.0 == *field) {
            // BPF_CORE_FIELD_BYTE_OFFSET.
            relocations.extend([*slot as u32 * 8, *id, types.string(access), 0]);
        }
    }
    let relocations = table(16, relocations);
    let mut extra = btf::MAGIC.to_le_bytes().to_vec();
    extra.extend([1, 0]);
    let tables = [functions, lines, relocations];
    let mut words = vec![32u32];
    let mut at = 0;
    for table in &tables {
        let bytes = table.len() as u32 * 4;
        words.extend([at, bytes]);
        at += bytes;
    }
    words.extend(tables.concat());
    extra.extend(words.into_iter().flat_map(u32::to_le_bytes));
    (types.finish(), extra)
}
