//! Limits of nftables, each with its source.

pub use netpolc_bundle::limits::COMMENT_BYTES;

/// Prefix lengths of one set of blocks up to which every length gets a hash lookup of its own (45-55 ns each). Beyond
/// it one interval set (325 ns at 1,000 elements) costs less.
pub const MASKED_LENGTHS: usize = 6;

/// Triples of protocol, port and peer up to which a profile gets one set of them: one lookup instead of two. Beyond it, what
/// profiles and ports share is worth more.
pub const OPEN_ELEMENTS: usize = 2048;

/// Elements of one set or map. The kernel counts elements in 32 bits (`nft_set.nelems` is an `atomic_t`); a node whose
/// sets are larger than this needs gigabytes of kernel memory, so the plan is refused long before.
pub const SET_ELEMENTS: usize = 1 << 20;

/// Elements of all sets of a node together.
pub const TOTAL_ELEMENTS: usize = 1 << 23;
