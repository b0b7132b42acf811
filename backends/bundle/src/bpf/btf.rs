//! Reads BTF: an object's, or a kernel's. Bounded by the size of the input; nothing in it is trusted.

use super::layout::{Map, MapType};
use std::collections::{BTreeMap, HashMap};

mod stream;

/// The magic number of a BTF section, in the byte order of its writer.
pub const MAGIC: u16 = 0xeb9f;

/// Kinds of types, by their numbers.
#[expect(missing_docs, reason = "the names are those of Documentation/bpf/btf.rst")]
pub mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// How deep anonymous structures, arrays and qualifiers may nest.
const DEPTH: u32 = 32;

/// Bytes that are no BTF.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no type information: {0}")]
pub struct BtfError(pub &'static str);

#[derive(Debug, Clone)]
struct Type {
    name: u32,
    kind: u32,
    /// A size or a type, by kind.
    value: u32,
    /// What follows the fixed part.
    rest: Vec<u32>,
    /// Offsets of members hold the size of a bit field in their upper byte.
    flag: bool,
}

impl Type {
    /// From the three words that all types begin with, and what follows them.
    fn new([name, info, value]: [u32; 3], rest: Vec<u32>) -> Type {
        Type { name, kind: kind_of(info), value, rest, flag: info >> 31 == 1 }
    }

    fn is_composite(&self) -> bool {
        matches!(self.kind, kind::STRUCT | kind::UNION)
    }

    /// Whether it is another type but for a name or a qualifier.
    fn is_alias(&self) -> bool {
        matches!(self.kind, kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG)
    }
}

fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// How many words follow the first three.
fn words_behind(info: u32) -> Result<usize, BtfError> {
    let count = (info & 0xffff) as usize;
    Ok(match kind_of(info) {
        kind::INT | kind::VAR | kind::DECL_TAG => 1,
        kind::ARRAY => 3,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * 3,
        kind::ENUM | kind::FUNC_PROTO => count * 2,
        kind::PTR
        | kind::FWD
        | kind::TYPEDEF
        | kind::VOLATILE
        | kind::CONST
        | kind::RESTRICT
        | kind::FUNC
        | kind::FLOAT
        | kind::TYPE_TAG => 0,
        _ => return Err(BtfError("a kind of type that is not known")),
    })
}

/// The types of an object or a kernel.
#[derive(Debug, Clone)]
pub struct Btf {
    /// By their numbers, from 1 on.
    types: BTreeMap<u32, Type>,
    strings: Vec<u8>,
    structures: HashMap<String, u32>,
}

/// A map as an object defines it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapShape {
    /// The map.
    pub map: Map,
    /// Its type.
    pub kind: MapType,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// How many entries there may be.
    pub entries: u32,
    /// `map_flags`.
    pub flags: u32,
}

struct Words<'a>(std::slice::ChunksExact<'a, u8>);

impl Words<'_> {
    fn next(&mut self) -> Option<u32> {
        self.0.next().and_then(|c| c.try_into().ok()).map(u32::from_le_bytes)
    }

    fn take(&mut self, n: usize) -> Result<Vec<u32>, BtfError> {
        if self.0.len() < n {
            return Err(BtfError("a type is cut off"));
        }
        Ok(std::iter::from_fn(|| self.next()).take(n).collect())
    }
}

impl Btf {
    /// Reads a BTF section.
    ///
    /// # Errors
    /// If the bytes are not BTF of this machine's byte order, or of an unknown kind.
    pub fn parse(bytes: &[u8]) -> Result<Btf, BtfError> {
        let word = |at: usize| -> Option<usize> {
            let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(bytes)).ok()
        };
        let header = || Some((word(4)?, word(8)?, word(12)?, word(16)?, word(20)?));
        if bytes.get(..2) != Some(&MAGIC.to_le_bytes()) {
            return Err(BtfError("the magic number is missing"));
        }
        let (header, type_at, type_len, string_at, string_len) = header().ok_or(BtfError("cut off"))?;
        let part = |at: usize, len: usize| {
            let from = header.checked_add(at)?;
            bytes.get(from..from.checked_add(len)?)
        };
        let types = part(type_at, type_len).ok_or(BtfError("the types are cut off"))?;
        let strings = part(string_at, string_len).ok_or(BtfError("the strings are cut off"))?;
        let mut btf = Btf { types: BTreeMap::new(), strings: strings.to_vec(), structures: HashMap::new() };
        let mut words = Words(types.chunks_exact(4));
        for id in 1.. {
            let Some(name) = words.next() else { break };
            let fixed = words.take(2)?;
            let fixed = [name, fixed[0], fixed[1]];
            let rest = words.take(words_behind(fixed[1])?)?;
            btf.insert(id, Type::new(fixed, rest));
        }
        Ok(btf)
    }

    fn insert(&mut self, id: u32, ty: Type) {
        if ty.is_composite() && ty.name != 0 {
            let name = self.string(ty.name).to_owned();
            self.structures.entry(name).or_insert(id);
        }
        self.types.insert(id, ty);
    }

    /// The string at an offset; empty if there is none.
    pub fn string(&self, at: u32) -> &str {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        let text = rest.split(|b| *b == 0).next().unwrap_or_default();
        std::str::from_utf8(text).unwrap_or_default()
    }

    fn get(&self, id: u32) -> Option<&Type> {
        self.types.get(&id)
    }

    /// A type without qualifiers and other names.
    fn bare(&self, mut id: u32) -> Option<(u32, &Type)> {
        for _ in 0..DEPTH {
            let ty = self.get(id)?;
            if !ty.is_alias() {
                return Some((id, ty));
            }
            id = ty.value;
        }
        None
    }

    /// Bytes of a type.
    fn size(&self, id: u32, depth: u32) -> Option<u32> {
        let (_, ty) = self.bare(id)?;
        match ty.kind {
            kind::PTR => Some(8),
            kind::ARRAY if depth > 0 => {
                self.size(*ty.rest.first()?, depth - 1)?.checked_mul(*ty.rest.get(2)?)
            }
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => {
                Some(ty.value)
            }
            _ => None,
        }
    }

    /// Members of a structure: name, type and offset in bits.
    fn members<'b>(&'b self, ty: &'b Type) -> impl Iterator<Item = (&'b str, u32, u32)> + 'b {
        let members = ty.rest.chunks_exact(3).filter(|_| ty.is_composite());
        members.map(|m| (self.string(m[0]), m[1], if ty.flag { m[2] & 0xff_ffff } else { m[2] }))
    }

    /// The member of this name, also in anonymous structures inside: its type and offset in bits.
    fn member(&self, ty: &Type, name: &str, depth: u32) -> Option<(u32, u32)> {
        self.members(ty).find_map(|(n, id, at)| {
            if n == name {
                return Some((id, at));
            }
            let (_, inner) = self.bare(id).filter(|_| n.is_empty() && depth > 0)?;
            let (id, inside) = self.member(inner, name, depth - 1)?;
            Some((id, at.checked_add(inside)?))
        })
    }

    /// Where a field is, in bytes from the beginning of the structure that its path begins with.
    pub fn offset_of(&self, path: &str) -> Option<u32> {
        let mut steps = path.split('.');
        let (mut id, mut bits) = (*self.structures.get(steps.next()?)?, 0u32);
        for step in steps {
            let (name, index) = match step.split_once('[') {
                Some((name, index)) => (name, Some(index.strip_suffix(']')?.parse::<u32>().ok()?)),
                None => (step, None),
            };
            let (member, at) = self.member(self.bare(id)?.1, name, DEPTH)?;
            (id, bits) = (member, bits.checked_add(at)?);
            if let Some(index) = index {
                let (_, array) = self.bare(id).filter(|(_, t)| t.kind == kind::ARRAY)?;
                id = *array.rest.first()?;
                let bytes = index.checked_mul(self.size(id, DEPTH)?)?;
                bits = bits.checked_add(bytes.checked_mul(8)?)?;
            }
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// The path that an access string (`0:2:0`, member numbers and array indices) of a relocation means.
    pub fn access_path(&self, root: u32, access: &str) -> Option<String> {
        let mut numbers = access.split(':').map(|n| n.parse::<usize>().ok());
        if numbers.next()?? != 0 {
            return None;
        }
        let (mut id, ty) = self.bare(root)?;
        let mut path = self.string(ty.name).to_owned();
        for number in numbers {
            let number = number?;
            let (_, ty) = self.bare(id)?;
            if ty.kind == kind::ARRAY {
                path.push_str(&format!("[{number}]"));
                id = *ty.rest.first()?;
            } else {
                let (name, member, _) = self.members(ty).nth(number)?;
                path.push('.');
                path.push_str(name);
                id = member;
            }
        }
        Some(path)
    }

    /// The maps of the section `.maps`, in order; `None` if one is not ours.
    pub fn maps(&self) -> Option<Vec<MapShape>> {
        let is_maps = |t: &&Type| t.kind == kind::DATASEC && self.string(t.name) == ".maps";
        let section = self.types.values().find(is_maps)?;
        section.rest.chunks_exact(3).map(|v| self.map(*v.first()?)).collect()
    }

    fn map(&self, variable: u32) -> Option<MapShape> {
        let variable = self.get(variable).filter(|t| t.kind == kind::VAR)?;
        let (_, definition) = self.bare(variable.value)?;
        let number = |name: &str| -> Option<u32> {
            let (pointer, _) = self.member(definition, name, 0)?;
            let (_, pointer) = self.bare(pointer).filter(|(_, t)| t.kind == kind::PTR)?;
            let (_, array) = self.bare(pointer.value).filter(|(_, t)| t.kind == kind::ARRAY)?;
            array.rest.get(2).copied()
        };
        Some(MapShape {
            map: Map::from_name(self.string(variable.name))?,
            kind: MapType::from_number(number("type")?)?,
            key: number("key_size")?,
            value: number("value_size")?,
            entries: number("max_entries")?,
            flags: number("map_flags")?,
        })
    }
}
