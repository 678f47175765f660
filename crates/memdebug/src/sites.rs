//! Owns allocation and free sites.

use core::fmt;

/// Where a block was allocated or freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Site(core::num::NonZeroU32);

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  site {}", self.0)
    }
}
