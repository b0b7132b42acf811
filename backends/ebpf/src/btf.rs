//! BTF, the type information of eBPF objects and kernels (Documentation/bpf/btf.rst): written for our object, read from
//! objects and from `/sys/kernel/btf/vmlinux`.
//!
//! A field is named by its path, as `nf_conn.tuplehash[0].tuple`. Our own types say where we assume it; the types of the
//! kernel that the program is loaded into say where it is.

mod local;
mod read;
mod write;

pub use local::local_offset;
pub use read::{Btf, BtfError, MapShape};

pub(crate) use local::{DEFINITION_BYTES, Local, local};

/// The magic number of a BTF section, in the byte order of its writer.
pub(crate) const MAGIC: u16 = 0xeb9f;

/// Kinds of types, by their numbers.
pub(crate) mod kind {
    pub(crate) const INT: u32 = 1;
    pub(crate) const PTR: u32 = 2;
    pub(crate) const ARRAY: u32 = 3;
    pub(crate) const STRUCT: u32 = 4;
    pub(crate) const UNION: u32 = 5;
    pub(crate) const ENUM: u32 = 6;
    pub(crate) const FWD: u32 = 7;
    pub(crate) const TYPEDEF: u32 = 8;
    pub(crate) const VOLATILE: u32 = 9;
    pub(crate) const CONST: u32 = 10;
    pub(crate) const RESTRICT: u32 = 11;
    pub(crate) const FUNC: u32 = 12;
    pub(crate) const FUNC_PROTO: u32 = 13;
    pub(crate) const VAR: u32 = 14;
    pub(crate) const DATASEC: u32 = 15;
    pub(crate) const FLOAT: u32 = 16;
    pub(crate) const DECL_TAG: u32 = 17;
    pub(crate) const TYPE_TAG: u32 = 18;
    pub(crate) const ENUM64: u32 = 19;
}
