//! Owns the checks of feature `hardened`: every pointer that comes back is looked at before it is used.

use malloc_api::{MIN_ALIGN, Malloc};

use crate::fatal::{Misuse, fatal};
use crate::pymalloc::Pymalloc;
use crate::source::ArenaSource;

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// Aborts with a message unless `block` may be a live block.
    ///
    /// For addresses in our pools the answer is certain, up to a block that has a new owner by now: not the start of a
    /// block, free in its pool, or in the magazine. Of other addresses only the alignment is checked: they are the
    /// fallback's to judge.
    #[inline]
    pub(crate) fn check_live(&self, block: *mut u8) {
        let address = block.addr();
        let Some(class) = self.map.class_of(address) else {
            if address % MIN_ALIGN != 0 {
                fatal(Misuse::NotABlock, block);
            }
            return;
        };
        // SAFETY: it has a class.
        let arena = unsafe { self.map.arena_of_block(address) };
        let Some(unit) = arena.unit_of(address) else { fatal(Misuse::NotABlock, block) };
        let pool = arena.pool(arena.pool_unit(unit));
        let offset = address - pool.base().addr();
        let index = class.geometry().block_at(offset);
        if index * class.size() != offset || index >= class.blocks_per_pool() {
            fatal(Misuse::NotABlock, block);
        }
        if pool.is_free(index) || self.magazines.blocks(class).contains(&block) {
            fatal(Misuse::DoubleFree, block);
        }
    }
}
