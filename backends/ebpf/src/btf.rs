//! BTF, the type information of eBPF objects and kernels (Documentation/bpf/btf.rst): written for our object, read from
//! objects and from `/sys/kernel/btf/vmlinux`.
//!
//! A field is named by its path, as `nf_conn.tuplehash[0].tuple`. Our own types say where we assume it; the types of the
//! kernel that the program is loaded into say where it is.

mod local;
mod write;

pub use local::local_offset;
pub use netpolc_bundle::bpf::btf::{Btf, BtfError, MapShape};
pub(crate) use netpolc_bundle::bpf::btf::{MAGIC, kind};

pub(crate) use local::{DEFINITION_BYTES, Local, local};
