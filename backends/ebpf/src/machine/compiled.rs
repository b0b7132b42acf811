//! Runs a linked program as machine code: the same instructions as [`interpreter`](super::interpreter) reads one by one,
//! translated once.
//!
//! Programs come from objects that nobody vouches for, so what is compiled is narrow. Registers become values, the
//! arithmetic becomes arithmetic, jumps become jumps, all of them forward. Loads and stores at a fixed offset from the
//! frame pointer go straight to the stack, if the offset is within it, which is decided here. Everything else that
//! reaches memory calls back into [`Memory`](super::memory::Memory), whose checks are the interpreter's.
//!
//! Not compiled, and so interpreted, is a program that may read a register that was not written, one that is longer than
//! [`limits::COMPILED`], and any program on a machine that Cranelift does not know or that
//! refuses memory for code.

mod native;
mod registers;
mod translate;

pub(super) use native::Code;

use crate::insn::Insn;
use crate::limits;
use std::sync::{Arc, Mutex, PoisonError};

/// A program, and its code if it could be compiled.
type Known = (Vec<Option<Insn>>, Option<Arc<Code>>);

/// What was compiled last, the most recent at the end: the nodes of a cluster have one program between them.
static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// The code of a linked program, compiled now or earlier; `None` if it has to be interpreted.
pub(super) fn code(slots: &[Option<Insn>]) -> Option<Arc<Code>> {
    // Whoever panicked while holding the lock left the list whole: it is changed by single calls.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = known.iter().position(|k| k.0 == slots) {
        let found = known.remove(at);
        let code = found.1.clone();
        known.push(found);
        return code;
    }
    let short = slots.len() <= limits::COMPILED;
    let code = if short { native::compile(slots).map(Arc::new) } else { None };
    if known.len() >= limits::COMPILED_PROGRAMS {
        known.remove(0);
    }
    known.push((slots.to_vec(), code.clone()));
    code
}
