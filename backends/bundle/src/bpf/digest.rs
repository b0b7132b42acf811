//! The version of an artifact: a digest of all that decides about packets.
//!
//! The contents of maps count as the entries that the kernel holds, so that the same number can be computed from maps in a
//! kernel; the names of rows, which are for people, do not count. Zeros in an array are no entries: they are what an array
//! begins with.

use super::contents::Entry;
use super::layout::{Map, MapType};
use super::object::{Artifact, Program};
use crate::nft::Version;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// The two programs for the same contents.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The one that judges packets of established connections too.
    pub cut: Artifact,
    /// The one that lets them pass.
    pub keep: Artifact,
}

/// The version of an artifact.
pub fn digest(pair: &Pair) -> Version {
    digest_with(pair, contents_digest(pair.cut.contents.entries()))
}

/// The version of an artifact whose [`contents_digest`] is known.
pub fn digest_with(pair: &Pair, contents: Version) -> Version {
    let mut hash = Sha256::new();
    hash.update(b"netpolc ebpf 1");
    for artifact in [&pair.cut, &pair.keep] {
        hash_program(&mut hash, &artifact.program);
    }
    hash.update(contents.to_string());
    Version::from_hash(&hash.finalize())
}

/// The digest of what maps hold, in any order. Entries of [`Map::Interfaces`] do not count: they are the loader's.
pub fn contents_digest(entries: impl Iterator<Item = Entry>) -> Version {
    let counts = |entry: &Entry| {
        let zeros = entry.map.shape().0 == MapType::Array && entry.value.iter().all(|byte| *byte == 0);
        entry.map != Map::Interfaces && !zeros
    };
    let sorted: BTreeSet<Entry> = entries.filter(counts).collect();
    let mut hash = Sha256::new();
    for Entry { map, key, value } in sorted {
        hash.update([map as u8]);
        hash.update(key);
        hash.update(value);
    }
    Version::from_hash(&hash.finalize())
}

pub(super) fn hash_program(hash: &mut Sha256, program: &Program) {
    let mut bytes = Vec::with_capacity(program.slots.len() * 8);
    program.slots.iter().flatten().for_each(|insn| insn.encode(&mut bytes));
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
    for (slot, map) in &program.maps {
        hash.update((*slot as u64).to_le_bytes());
        hash.update(map.name());
    }
    for (slot, field) in &program.fields {
        hash.update((*slot as u64).to_le_bytes());
        hash.update(field.path());
    }
}
