//! Builds a BTF section.

use super::{MAGIC, kind};
use std::collections::BTreeMap;

/// Types and strings in the making. Type ids count from 1 in the order of the calls; 0 is void.
#[derive(Debug, Clone)]
pub(crate) struct Types {
    types: Vec<u8>,
    strings: Vec<u8>,
    known: BTreeMap<String, u32>,
    next: u32,
}

impl Types {
    pub(crate) fn new() -> Types {
        Types { types: Vec::new(), strings: vec![0], known: BTreeMap::new(), next: 1 }
    }

    /// The offset of a string.
    pub(crate) fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if let Some(&at) = self.known.get(text) {
            return at;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(text.bytes());
        self.strings.push(0);
        self.known.insert(text.to_owned(), at);
        at
    }

    fn push(&mut self, name: &str, kind: u32, vlen: u32, size_or_type: u32, rest: &[u32]) -> u32 {
        let name = self.string(name);
        for word in [name, kind << 24 | vlen, size_or_type].iter().chain(rest) {
            self.types.extend(word.to_le_bytes());
        }
        self.next += 1;
        self.next - 1
    }

    /// An unsigned integer of so many bytes; `signed` for a signed one.
    pub(crate) fn int(&mut self, name: &str, bytes: u32, signed: bool) -> u32 {
        self.push(name, kind::INT, 0, bytes, &[(u32::from(signed) << 24) | (bytes * 8)])
    }

    pub(crate) fn pointer(&mut self, to: u32) -> u32 {
        self.push("", kind::PTR, 0, to, &[])
    }

    pub(crate) fn array(&mut self, of: u32, index: u32, len: u32) -> u32 {
        self.push("", kind::ARRAY, 0, 0, &[of, index, len])
    }

    /// A structure; members are name, type and offset in bytes.
    pub(crate) fn structure(&mut self, name: &str, bytes: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.composite(kind::STRUCT, name, bytes, members)
    }

    /// A union.
    pub(crate) fn union(&mut self, name: &str, bytes: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.composite(kind::UNION, name, bytes, members)
    }

    fn composite(&mut self, kind: u32, name: &str, bytes: u32, members: &[(&str, u32, u32)]) -> u32 {
        let rest: Vec<u32> =
            members.iter().flat_map(|(name, ty, at)| [self.string(name), *ty, at * 8]).collect();
        self.push(name, kind, members.len() as u32, bytes, &rest)
    }

    /// A function type; parameters are name and type.
    pub(crate) fn prototype(&mut self, returns: u32, parameters: &[(&str, u32)]) -> u32 {
        let rest: Vec<u32> = parameters.iter().flat_map(|(name, ty)| [self.string(name), *ty]).collect();
        self.push("", kind::FUNC_PROTO, parameters.len() as u32, returns, &rest)
    }

    /// A global function.
    pub(crate) fn function(&mut self, name: &str, prototype: u32) -> u32 {
        self.push(name, kind::FUNC, 1, prototype, &[])
    }

    /// A global variable.
    pub(crate) fn variable(&mut self, name: &str, ty: u32) -> u32 {
        self.push(name, kind::VAR, 0, ty, &[1])
    }

    /// A section of variables; each is type, offset and bytes.
    pub(crate) fn section(&mut self, name: &str, variables: &[(u32, u32, u32)]) -> u32 {
        let bytes = variables.iter().map(|v| v.2).sum();
        let rest: Vec<u32> = variables.iter().flat_map(|v| [v.0, v.1, v.2]).collect();
        self.push(name, kind::DATASEC, variables.len() as u32, bytes, &rest)
    }

    /// The bytes of the section `.BTF`.
    pub(crate) fn finish(&self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut out = header();
        for word in [0, types, types, strings] {
            out.extend(word.to_le_bytes());
        }
        out.extend(&self.types);
        out.extend(&self.strings);
        out
    }
}

/// Magic, version, flags and length of the header, which is 24 bytes here.
fn header() -> Vec<u8> {
    let mut out = MAGIC.to_le_bytes().to_vec();
    out.extend([1, 0]);
    out.extend(24u32.to_le_bytes());
    out
}
