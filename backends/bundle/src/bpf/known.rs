//! The programs that a loader loads: those of its own version and no others.
//!
//! The kernel's verifier sees to it that a program ends and stays within its bounds, not that it does what ours do: with the
//! helpers that ours need, another one could read any memory of the kernel. Whoever may write to the loader's socket is trusted
//! with the node's policies, and not with that.

use super::digest::hash_program;
use super::object::Program;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// SHA-256 of each program, its maps and its fields, and of what audit mode makes of it. Whoever changes the programs changes
/// these: tests of the eBPF backend and of the loader say what to.
const KNOWN: [&str; 4] = [
    // Every packet is judged; what is established passes.
    "9b1cc5e5ca9c45b8dfab83abe046b2c4f30cda357366fb5b49be328596877ce0",
    "2d4134889a1d6b3bb42fa12dbbef45bfc1dc70cf05d9d558debdb9f848338bf4",
    // The same in audit mode.
    "fb774de39c6a39ccb8bef2bdc0cff2646c5011a8ebd485fc3b44e61a4de9e745",
    "f95857d9dab8ccb8776f550751e07f8b059ec34a79257bee8da933dd5ed3563d",
];

impl Program {
    /// SHA-256 of what it does: its instructions, and which of them are about which map and which field.
    pub fn identity(&self) -> String {
        let mut hash = Sha256::new();
        hash_program(&mut hash, self);
        hash.finalize().iter().fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Whether it is one that this version of netpolc makes, or its audit mode makes of that.
    pub fn is_ours(&self) -> bool {
        KNOWN.contains(&self.identity().as_str())
    }
}
