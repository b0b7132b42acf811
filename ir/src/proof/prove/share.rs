//! How a proof is divided.

/// The part of a proof that is about some of the node's addresses; all parts together are the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Which part, from 0 on. What is about no address of the node is in the first.
    pub which: usize,
    /// How many there are.
    pub of: usize,
}

impl Share {
    /// The only part.
    pub const WHOLE: Share = Share { which: 0, of: 1 };

    /// Whether it is about an address of this number.
    pub(super) fn has(self, number: usize) -> bool {
        number % self.of.max(1) == self.which
    }
}
