//! A plain bit set over small indices; all operands of an operation have the same length.

use smallvec::{SmallVec, smallvec};

/// A node's proof works on sets of some hundred atoms, and makes millions of them: so many words are kept without a heap.
const INLINE: usize = 4;

/// A fixed-length set of `0..len`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BitSet {
    words: SmallVec<[u64; INLINE]>,
    len: usize,
}

impl Clone for BitSet {
    fn clone(&self) -> BitSet {
        // What is derived would copy word by word.
        BitSet { words: SmallVec::from_slice(&self.words), len: self.len }
    }
}

impl BitSet {
    /// The empty set over `0..len`.
    pub fn empty(len: usize) -> BitSet {
        BitSet { words: smallvec![0; len.div_ceil(64)], len }
    }

    /// The full set over `0..len`.
    pub fn full(len: usize) -> BitSet {
        let mut set = BitSet { words: smallvec![u64::MAX; len.div_ceil(64)], len };
        if let (Some(last), rest @ 1..) = (set.words.last_mut(), len % 64) {
            *last = (1 << rest) - 1;
        }
        set
    }

    /// How many indices the set ranges over.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no index is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&w| w == 0)
    }

    /// Whether every index is in the set.
    pub fn is_full(&self) -> bool {
        self.count() == self.len
    }

    /// Puts an index in; out of range does nothing.
    pub fn insert(&mut self, index: usize) {
        if index < self.len {
            self.words[index / 64] |= 1 << (index % 64);
        }
    }

    /// Takes an index out.
    pub fn remove(&mut self, index: usize) {
        if index < self.len {
            self.words[index / 64] &= !(1 << (index % 64));
        }
    }

    /// Whether an index is in the set.
    pub fn contains(&self, index: usize) -> bool {
        index < self.len && self.words[index / 64] >> (index % 64) & 1 == 1
    }

    /// How many indices are in the set.
    pub fn count(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// The indices, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            std::iter::successors((word != 0).then_some(word), |w| Some(w & (w - 1)).filter(|&w| w != 0))
                .map(move |w| i * 64 + w.trailing_zeros() as usize)
        })
    }

    /// What is in both.
    pub fn and(&self, other: &BitSet) -> BitSet {
        let mut both = self.clone();
        both.and_with(other);
        both
    }

    /// What is in either.
    pub fn or(&self, other: &BitSet) -> BitSet {
        let mut either = self.clone();
        either.or_with(other);
        either
    }

    /// What is in this set and not in `other`.
    pub fn minus(&self, other: &BitSet) -> BitSet {
        let mut rest = self.clone();
        rest.remove_all(other);
        rest
    }

    /// Adds all of `other`.
    pub fn or_with(&mut self, other: &BitSet) {
        debug_assert_eq!(self.len, other.len);
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a |= b;
        }
    }

    /// Keeps what is in `other` too.
    pub fn and_with(&mut self, other: &BitSet) {
        debug_assert_eq!(self.len, other.len);
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a &= b;
        }
    }

    /// Takes out all of `other`.
    pub fn remove_all(&mut self, other: &BitSet) {
        debug_assert_eq!(self.len, other.len);
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a &= !b;
        }
    }

    /// Adds what is in both `a` and `b`.
    pub fn or_with_and(&mut self, a: &BitSet, b: &BitSet) {
        debug_assert!(self.len == a.len && self.len == b.len);
        for (word, (a, b)) in self.words.iter_mut().zip(a.words.iter().zip(&b.words)) {
            *word |= a & b;
        }
    }

    /// Becomes what is in both `a` and `b`.
    pub fn set_to_and(&mut self, a: &BitSet, b: &BitSet) {
        debug_assert!(self.len == a.len && self.len == b.len);
        for (word, (a, b)) in self.words.iter_mut().zip(a.words.iter().zip(&b.words)) {
            *word = a & b;
        }
    }

    /// The first index that is in one of the two sets only.
    pub fn first_difference(&self, other: &BitSet) -> Option<usize> {
        let i = self.words.iter().zip(&other.words).position(|(a, b)| a != b)?;
        Some(i * 64 + (self.words[i] ^ other.words[i]).trailing_zeros() as usize)
    }
}

impl FromIterator<(usize, bool)> for BitSet {
    /// From `(index, present)` pairs with ascending indices from 0.
    fn from_iter<T: IntoIterator<Item = (usize, bool)>>(iter: T) -> BitSet {
        let mut set = BitSet::default();
        for (_, present) in iter {
            if set.len % 64 == 0 {
                set.words.push(0);
            }
            set.len += 1;
            if present {
                set.insert(set.len - 1);
            }
        }
        set
    }
}
