//! Owns what the fallback serves: zero bytes, requests too large for the pools, and any where these have no memory; and what of the pools
//! gives way to it.

use core::ptr::NonNull;

use malloc_api::{Malloc, ReleaseLevel};

use crate::pymalloc::Pymalloc;
use crate::source::ArenaSource;

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// Zero bytes, a large request, and any where the pools have no memory.
    #[cold]
    #[inline(never)]
    pub(crate) fn malloc_elsewhere(&mut self, size: usize) -> Option<NonNull<u8>> {
        self.fallback_block(size, |fallback| fallback.malloc(size))
    }

    /// Zero bytes, and a large request.
    #[cold]
    #[inline(never)]
    pub(crate) fn calloc_elsewhere(&mut self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let bytes = nelem.saturating_mul(elsize);
        self.fallback_block(bytes, |fallback| fallback.calloc(nelem, elsize))
    }

    /// A new block of `bytes` of the fallback; see [`or_after_release`](Self::or_after_release).
    fn fallback_block(
        &mut self,
        bytes: usize,
        call: impl Fn(&R) -> Option<NonNull<u8>>,
    ) -> Option<NonNull<u8>> {
        let block = self.with_room(bytes, call)?;
        self.fallback_blocks += 1;
        Some(block)
    }

    /// As [`or_after_release`](Self::or_after_release), for a block of `bytes`, for which free memory is given back where the process
    /// would come to hold more than ever.
    #[inline]
    fn with_room(
        &mut self,
        bytes: usize,
        call: impl Fn(&R) -> Option<NonNull<u8>>,
    ) -> Option<NonNull<u8>> {
        let may_lift = self.stock.may_lift(bytes);
        if may_lift {
            self.make_room(bytes);
        }
        let block = self.or_after_release(call);
        match block {
            None => self.stock.kept.refused(bytes),
            Some(_) if may_lift => self.stock.kept.served(bytes),
            Some(_) => {}
        }
        block
    }

    /// Gives free memory back for a block of `bytes` that may lift the process's peak.
    fn make_room(&mut self, bytes: usize) {
        if let Some(target) = self.stock.target_beside(bytes) {
            self.trim(target);
        }
    }

    /// Calls the fallback. If the fallback has no memory, gives the kept pools and arenas back and calls it once more.
    #[inline]
    fn or_after_release(
        &mut self,
        call: impl Fn(&R) -> Option<NonNull<u8>>,
    ) -> Option<NonNull<u8>> {
        let open = self.stock.open_bytes;
        match call(&self.fallback) {
            None if self.release(ReleaseLevel::Arenas) > 0 || self.stock.open_bytes < open => {
                call(&self.fallback)
            }
            block => block,
        }
    }

    /// Resizes a block of the fallback.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is a live block that the fallback made.
    /// 2. After a successful call the old pointer is dead, even where it equals the new one.
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn realloc_elsewhere(
        &mut self,
        ptr: Option<NonNull<u8>>,
        new_size: usize,
    ) -> Option<NonNull<u8>> {
        // SAFETY: 1, 2: the caller's; a call that fails leaves the block alone.
        self.with_room(new_size, |fallback| unsafe { fallback.realloc(ptr, new_size) })
    }
}
