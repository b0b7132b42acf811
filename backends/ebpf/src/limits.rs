//! Limits of the eBPF backend, each with its source, and what a node's maps weigh.
//!
//! Kernel memory of a node's maps, in bytes: 72 for an address (32 of element header, 20 of key, 16 of value, rounded
//! up; `struct htab_elem`), doubled for room to grow; about 64 for a prefix (`struct lpm_trie_node`, with one node
//! between for each); 16 for a pair of profile and column (8 of verdict, 8 of counter); 8,192 for a set of ports.

/// Addresses in the map of pods: 150 MB of kernel memory.
pub const PODS: usize = 1 << 20;

/// Prefixes in the map of blocks: 32 MB of kernel memory.
pub const BLOCKS: usize = 1 << 18;

/// Pairs of a profile and a column: 64 MiB of kernel memory.
pub const PAIRS: usize = 1 << 22;

/// Distinct sets of ports that are neither empty nor full: 32 MiB of kernel memory.
pub const PORT_SETS: usize = 1 << 12;

/// Interfaces of local pods, for the check of spoofed sources.
pub const INTERFACES: u32 = 1 << 12;

/// The smallest size of the map of pods, so that a few more never need a new map.
pub const PODS_ROOM: u32 = 1 << 10;

/// Bytes of an object that is read back. Ours have less than 8 KiB.
pub const OBJECT_BYTES: usize = 1 << 20;

/// Bytes of a contents file that is read back. The largest plan within the limits above needs less.
pub const CONTENTS_BYTES: usize = 1 << 29;

/// Instructions that a program of ours may have (the kernel's limit is 1,000,000: `BPF_COMPLEXITY_LIMIT_INSNS`).
pub const INSTRUCTIONS: usize = 1 << 14;

/// Slots of a program that is compiled before it is run; a longer one is interpreted. Ours has fewer than 300.
pub const COMPILED: usize = 1 << 10;

/// Compiled programs that are kept for the next artifact.
pub const COMPILED_PROGRAMS: usize = 8;
