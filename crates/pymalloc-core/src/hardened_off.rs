//! The checks of feature `hardened`, switched off: the same names, no code.

use malloc_api::Malloc;

use crate::pymalloc::Pymalloc;
use crate::source::ArenaSource;

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// Nothing.
    #[inline(always)]
    pub(crate) fn check_live(&self, _block: *mut u8) {}
}
