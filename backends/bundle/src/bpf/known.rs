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
    "e9c5c6c3d785c4175538ecc48ec4bde3e25d3c55e9dbcb4beaed9acbe4fbd7a5",
    "1725af56794d840404764db4d858c945c301d6a64bff724b4db9577887c529d2",
    // The same in audit mode.
    "87d8a61e12a39e07652d75344bbc908db1bfb6da8a0b287e303ad722d3fe1ed6",
    "aaf9e5bd7d66693959978176d28dfd4990e9c3f2dea990f6c2198b2c28966719",
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
