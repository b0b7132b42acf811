//! Maps as the kernel keeps them: byte strings under byte strings.

use crate::btf::MapShape;
use crate::layout::{Map, MapType};
use netpolc_bundle::limits;
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// Bytes of a key of the one trie.
const LPM_KEY: usize = Map::Blocks.shape().1 as usize;

#[derive(Debug)]
struct Store {
    shape: MapShape,
    /// Where the value of a key is, in values; not for arrays.
    index: FxHashMap<Vec<u8>, usize>,
    /// Values one after another.
    values: Vec<u8>,
    /// Prefix lengths that occur.
    lengths: BTreeSet<u32>,
}

/// All maps of an artifact.
#[derive(Debug)]
pub(super) struct Maps(Vec<Store>);

impl Maps {
    pub(super) fn new(shapes: &[MapShape]) -> Maps {
        let store = |shape: &MapShape| {
            // The decoder has held the sizes of arrays against the contents, which are within these limits.
            let entries = (shape.entries as usize).min(limits::BPF_PAIRS);
            let array = shape.kind == MapType::Array;
            // Nobody reads counters in a run, so there is no memory for them.
            let kept = array && shape.map != Map::Denied;
            let values = if kept { vec![0; entries * shape.value as usize] } else { Vec::new() };
            Store { shape: *shape, index: FxHashMap::default(), values, lengths: BTreeSet::new() }
        };
        Maps(shapes.iter().map(store).collect())
    }

    fn store(&self, map: Map) -> Option<&Store> {
        self.0.iter().find(|s| s.shape.map == map)
    }

    /// All values of a map, one after another.
    pub(super) fn memory(&self, map: Map) -> &[u8] {
        self.store(map).map_or(&[], |s| &s.values)
    }

    /// Bytes of a key.
    pub(super) fn key_bytes(&self, map: Map) -> usize {
        self.store(map).map_or(0, |s| s.shape.key as usize)
    }

    /// The keys of a hash or a trie, in no order.
    pub(super) fn keys(&self, map: Map) -> impl Iterator<Item = &[u8]> {
        self.store(map).into_iter().flat_map(|s| s.index.keys().map(Vec::as_slice))
    }

    /// All values of a map, and those of entries that were taken out.
    pub(super) fn values(&self, map: Map) -> impl Iterator<Item = &[u8]> {
        self.store(map).into_iter().flat_map(|s| s.values.chunks_exact((s.shape.value as usize).max(1)))
    }

    /// Where the value of a key is in [`Maps::memory`].
    pub(super) fn find(&self, map: Map, key: &[u8]) -> Option<usize> {
        let store = self.store(map)?;
        let bytes = store.shape.value as usize;
        let at = match store.shape.kind {
            MapType::Hash => *store.index.get(key)?,
            MapType::Array => u32::from_le_bytes(key.try_into().ok()?) as usize,
            MapType::Lpm => {
                let most = u32::from_le_bytes(*key.first_chunk()?);
                // From the longest on, so the key only ever becomes shorter.
                let mut prefix = <[u8; LPM_KEY]>::try_from(key).ok()?;
                let mut hit = |len: &u32| {
                    mask(&mut prefix, *len);
                    store.index.get(&prefix[..]).copied()
                };
                store.lengths.range(..=most).rev().find_map(&mut hit)?
            }
        };
        let start = at.checked_mul(bytes)?;
        let end = match map {
            Map::Denied => (store.shape.entries as usize).checked_mul(bytes)?,
            _ => store.values.len(),
        };
        (start.checked_add(bytes)? <= end).then_some(start)
    }

    /// The key of the counter whose eight bytes are at this offset from the first.
    pub(super) fn counter(&self, at: usize) -> Option<u32> {
        let key = u32::try_from(at / 8).ok().filter(|_| at.is_multiple_of(8))?;
        self.find(Map::Denied, &key.to_le_bytes()).map(|_| key)
    }

    pub(super) fn get(&self, map: Map, key: &[u8]) -> Option<&[u8]> {
        let store = self.store(map)?;
        let at = self.find(map, key)?;
        store.values.get(at..at + store.shape.value as usize)
    }

    pub(super) fn insert(&mut self, map: Map, key: &[u8], value: &[u8]) {
        let old = match map.shape().0 {
            MapType::Array => self.find(map, key),
            MapType::Hash | MapType::Lpm => self.exact(map, key),
        };
        let Some(store) = self.0.iter_mut().find(|s| s.shape.map == map) else { return };
        if key.len() != store.shape.key as usize || value.len() != store.shape.value as usize {
            return;
        }
        match old {
            Some(at) => {
                if let Some(place) = store.values.get_mut(at..at + value.len()) {
                    place.copy_from_slice(value);
                }
            }
            None if store.shape.kind == MapType::Array => {}
            None => {
                let at = store.values.len() / value.len().max(1);
                store.values.extend(value);
                if let (MapType::Lpm, Some(len)) = (store.shape.kind, key.first_chunk()) {
                    store.lengths.insert(u32::from_le_bytes(*len));
                }
                store.index.insert(stored(store.shape.kind, key), at);
            }
        }
    }

    pub(super) fn remove(&mut self, map: Map, key: &[u8]) {
        if map.shape().0 == MapType::Array {
            let zeros = vec![0; map.shape().2 as usize];
            return self.insert(map, key, &zeros);
        }
        if let Some(store) = self.0.iter_mut().find(|s| s.shape.map == map) {
            store.index.remove(&stored(store.shape.kind, key));
        }
    }

    fn exact(&self, map: Map, key: &[u8]) -> Option<usize> {
        let store = self.store(map)?;
        let at = store.index.get(&stored(store.shape.kind, key))?;
        at.checked_mul(store.shape.value as usize)
    }
}

/// A key as it is kept: what lies behind a prefix does not count.
fn stored(kind: MapType, key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    if let (MapType::Lpm, Some(len)) = (kind, key.first_chunk().copied()) {
        mask(&mut key, u32::from_le_bytes(len));
    }
    key
}

/// Cuts a key of a trie to a prefix length, no longer than the one it had.
fn mask(key: &mut [u8], len: u32) {
    let Some((length, data)) = key.split_first_chunk_mut::<4>() else { return };
    *length = len.to_le_bytes();
    for (i, byte) in (0u32..).zip(data) {
        match len.saturating_sub(i * 8) {
            0 => *byte = 0,
            rest @ 1..8 => *byte &= !(0xff >> rest),
            _ => {}
        }
    }
}
