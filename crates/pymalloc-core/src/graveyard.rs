//! Owns the graveyard: allocators that ended with live blocks, which can still be freed.

use core::fmt;
use core::ptr::NonNull;

use malloc_api::{Malloc, aligned_free, aligned_malloc};
use pymem_sync::Lock;

use crate::access::LocalPymalloc;
use crate::pymalloc::Pymalloc;
use crate::source::ArenaSource;

/// Allocators that ended before their blocks did.
///
/// A sub-interpreter's allocator is buried when the interpreter ends. The blocks in its pools stay valid. When the last
/// of them is freed, its arenas go back. Blocks of its fallback are the fallback's: free them there.
pub struct Graveyard<R: Malloc, S: ArenaSource> {
    graves: Lock<Link<R, S>>,
}

/// The next grave of a list, if there is one.
struct Link<R: Malloc, S: ArenaSource>(Option<NonNull<Grave<R, S>>>);

/// Invariant 1: lives in a block of its own allocator's fallback, and is in one graveyard's list.
struct Grave<R: Malloc, S: ArenaSource> {
    next: Link<R, S>,
    core: Pymalloc<R, S>,
}

// SAFETY: the list leads to allocators that it owns, which may change threads if their parts may.
unsafe impl<R: Malloc + Send, S: ArenaSource + Send> Send for Link<R, S> {}

impl<R: Malloc, S: ArenaSource> Graveyard<R, S> {
    /// An empty graveyard.
    #[must_use]
    pub const fn new() -> Self {
        Self { graves: Lock::new(Link(None)) }
    }

    /// Takes an allocator that has ended; returns the number of live blocks in its pools.
    ///
    /// With 0 the allocator is dropped at once. If there is no memory for its grave, its arenas stay for ever.
    pub fn bury(&self, ended: LocalPymalloc<R, S>) -> usize {
        let core = ended.into_inner();
        let live = core.pooled_blocks();
        if live == 0 {
            return 0;
        }
        let (align, size) = (align_of::<Grave<R, S>>(), size_of::<Grave<R, S>>());
        let Some(place) = aligned_malloc(&core.fallback, align, size) else {
            core::mem::forget(core);
            return live;
        };
        let place = place.cast::<Grave<R, S>>();
        let mut graves = self.graves.lock();
        let next = Link(graves.0.replace(place));
        // SAFETY: a block of this size and alignment, and the list is locked until the grave is whole.
        unsafe { place.write(Grave { next, core }) };
        live
    }

    /// Frees `ptr` if it is in a pool of a buried allocator; `false` if it is not, and then nothing has happened.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is a live block, of a buried allocator or of any other.
    /// 2. If it is freed, it is not used afterwards.
    pub unsafe fn free(&self, ptr: NonNull<u8>) -> bool {
        let mut graves = self.graves.lock();
        let mut link = &mut *graves;
        while let Some(place) = link.0 {
            // SAFETY: invariant 1, and the lock is held.
            let grave = unsafe { &mut *place.as_ptr() };
            if !grave.core.owns(ptr.as_ptr()) {
                link = &mut grave.next;
                continue;
            }
            // SAFETY: 1, 2: a live block of this allocator.
            unsafe { grave.core.free(Some(ptr)) };
            if grave.core.pooled_blocks() == 0 {
                link.0 = grave.next.0.take();
                // SAFETY: invariant 1; the list does not lead to the grave any more.
                let grave = unsafe { place.read() };
                let align = align_of::<Grave<R, S>>();
                // SAFETY: 1: `bury` got the block from this fallback, for this alignment; 2: its content has moved out.
                unsafe { aligned_free(&grave.core.fallback, Some(place.cast()), align) };
            }
            return true;
        }
        false
    }

    /// Number of live blocks in the pools of all buried allocators.
    #[must_use]
    pub fn allocated_blocks(&self) -> usize {
        let graves = self.graves.lock();
        let mut blocks = 0;
        let mut next = graves.0;
        while let Some(place) = next {
            // SAFETY: invariant 1, and the lock is held.
            let grave = unsafe { &*place.as_ptr() };
            blocks += grave.core.pooled_blocks();
            next = grave.next.0;
        }
        blocks
    }
}

impl<R: Malloc, S: ArenaSource> Default for Graveyard<R, S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: Malloc, S: ArenaSource> fmt::Debug for Graveyard<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graveyard")
            .field("allocated_blocks", &self.allocated_blocks())
            .finish_non_exhaustive()
    }
}
