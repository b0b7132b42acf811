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
    "4722d51f7913a7e74092164b91ae5797966e6b9dfa09337958b66d079189275d",
    "efc7590be4db6648af9725795fb296fbbd8aefd8ca15bba3ce95917686ff0b7d",
    // The same in audit mode.
    "e3c672e464b33a95b9cccabc53bf5eca767135c59b86451766a5f66d0c2153d1",
    "4a525c2c160c20cf866f915a37fdbdf4bb1c357591d930fb72cec563e5bda76c",
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
