//! How much a look looks at, and what was seen before it.

use crate::apply::Beside;
use crate::nftables::observe::Early;

/// What was seen without the lock, before a look.
#[derive(Debug, Default)]
pub struct Before {
    /// The rules of nftables.
    pub early: Option<Early>,
    /// What else there is.
    pub beside: Option<Beside>,
}

/// How much [`Enforcer::look`](super::enforcer::Enforcer::look) looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// At everything.
    Whole,
    /// At what this daemon has changed: whether the kernel has made of it what it should be, and what is left over. What
    /// other backends would have is for another look.
    Changes,
}
