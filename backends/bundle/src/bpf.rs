//! The eBPF artifacts: an object for each way to treat established connections, and the contents of its maps.
//!
//! The compiler's emitter writes an ELF [`object`] and the text of the [`contents`]; [`object::decode`] reads both back
//! and is strict: what passes is a program over our own maps, to be linked with a kernel's types ([`btf`]). Whether the
//! kernel may run the program is for the kernel's verifier to say.

mod block;
pub mod btf;
pub mod contents;
mod field;
pub mod insn;
mod known;
pub mod layout;
pub mod object;
pub mod run;

mod digest;

pub use block::{Block, NoBlock};
pub use digest::{Pair, contents_digest, digest, digest_with};
pub use field::{Field, TUPLES_APART, tuples_together};

/// `BPF_PROG_TYPE_NETFILTER`, include/uapi/linux/bpf.h.
pub const PROGRAM_TYPE: u32 = 32;
/// `BPF_NETFILTER`, the attach type.
pub const ATTACH_TYPE: u32 = 45;
