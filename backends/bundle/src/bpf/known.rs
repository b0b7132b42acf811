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
    "443ae67ccf86f3c301e14b292454b484c6f350a8f3c89ffe91c0d6f19ac00ee2",
    "4524e0cc5aba6e61dc9c62b1c49d523082477130d229b10f7715d325532efb5a",
    // The same in audit mode.
    "2d9305b84156d36307554cc2dc90656f45628fcdda308c03ad4a118c5b294d54",
    "a25a26402b3a670f4ddd7da0630950f108280c233b1deea35f1d0346c186e9fe",
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
