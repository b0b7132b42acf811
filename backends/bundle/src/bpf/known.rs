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
    "a05054f6794330635b6761bbe5eee58301f11d46cd7121526ce8619a7d147b26",
    "90281c602a5f677e836a7ba378d575cf7f479ce7a8fd4c7f963e79c114d340b3",
    // The same in audit mode.
    "e0cfeb69b7647418605cefb47312a6b946cc24139cb3bce10f5e729160000c80",
    "c42cfe0f279a572fd8fe05f6ecb3b2b31ffea5b485a7bb9aa356971fa7bdd5ab",
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
