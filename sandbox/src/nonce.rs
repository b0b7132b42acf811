//! Numbers that no other probe has.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Length of a nonce in a payload, in bytes.
pub(crate) const NONCE_LEN: usize = 8;

/// A number that differs from every other one of this process, and hardly ever equals one of another process: a
/// counter, mixed one-to-one (the finalizer of SplitMix64) from a random start.
pub(crate) fn nonce() -> u64 {
    static START: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let start = *START.get_or_init(|| RandomState::new().build_hasher().finish());
    let mut x = start.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A source port for hand-made packets, below Linux's default range of ephemeral ports (32768 and up), so that it
/// cannot meet a port that the kernel chose.
pub(crate) fn source_port(nonce: u64) -> u16 {
    10_000 + (nonce % 20_000) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_differ_and_ports_stay_in_range() {
        let nonces: std::collections::BTreeSet<u64> = (0..10_000).map(|_| nonce()).collect();
        assert_eq!(nonces.len(), 10_000);
        assert!(nonces.iter().all(|&n| (10_000..30_000).contains(&source_port(n))));
    }
}
