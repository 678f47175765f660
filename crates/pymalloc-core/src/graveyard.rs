//! Owns the graveyard: allocators that ended with live blocks, which can still be freed.

use core::fmt;
use core::ptr::NonNull;

use malloc_api::Malloc;
use pymem_sync::Lock;

use crate::pymalloc::Pymalloc;
use crate::source::ArenaSource;

/// Allocators that ended before their blocks did.
///
/// A sub-interpreter's state is buried when the interpreter ends. Its blocks stay valid, and when the last one is freed
/// its arenas go back.
pub struct Graveyard<R: Malloc, S: ArenaSource> {
    graves: Lock<Graves<R, S>>,
}

struct Graves<R: Malloc, S: ArenaSource> {
    first: Option<NonNull<Grave<R, S>>>,
}

/// Invariant 1: lives in a block of its own allocator's fallback, and is in one graveyard's list.
struct Grave<R: Malloc, S: ArenaSource> {
    next: Option<NonNull<Self>>,
    core: Pymalloc<R, S>,
}

// SAFETY: the list leads to allocators that it owns, which may change threads if their parts may.
unsafe impl<R: Malloc + Send, S: ArenaSource + Send> Send for Graves<R, S> {}

impl<R: Malloc, S: ArenaSource> Graveyard<R, S> {
    /// An empty graveyard.
    #[must_use]
    pub const fn new() -> Self {
        Self { graves: Lock::new(Graves { first: None }) }
    }

    /// Takes an allocator that has ended; returns the number of its live blocks.
    ///
    /// With 0 it is dropped at once. If there is no memory for its grave, its arenas stay for ever.
    pub fn bury(&self, core: Pymalloc<R, S>) -> usize {
        let live = core.allocated_blocks();
        if live == 0 {
            return 0;
        }
        let Some(place) = core.raw().malloc(size_of::<Grave<R, S>>()) else {
            core::mem::forget(core);
            return live;
        };
        let place = place.cast::<Grave<R, S>>();
        let mut graves = self.graves.lock();
        // SAFETY: a block of this size, aligned to `MIN_ALIGN`, which is enough (asserted in `free`).
        unsafe { place.write(Grave { next: graves.first, core }) };
        graves.first = Some(place);
        live
    }

    /// Frees `ptr` if it is in a pool of a buried allocator; `false` if it is not, and then nothing has happened.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is a live block, of a buried allocator or of any other.
    /// 2. If it is freed, it is not used afterwards.
    pub unsafe fn free(&self, ptr: NonNull<u8>) -> bool {
        const { assert!(align_of::<Grave<R, S>>() <= malloc_api::MIN_ALIGN) };
        let mut graves = self.graves.lock();
        let mut before: Option<NonNull<Grave<R, S>>> = None;
        let mut next = graves.first;
        while let Some(mut place) = next {
            // SAFETY: invariant 1, and the lock is held.
            let grave = unsafe { place.as_mut() };
            next = grave.next;
            if !grave.core.owns(ptr.as_ptr()) {
                before = Some(place);
                continue;
            }
            // SAFETY: 1 and 2: a live block of this allocator.
            unsafe { grave.core.free(Some(ptr)) };
            if grave.core.is_empty() {
                match before {
                    None => graves.first = next,
                    Some(mut before) => {
                        // SAFETY: invariant 1, and the lock is held.
                        unsafe { before.as_mut() }.next = next;
                    }
                }
                // SAFETY: invariant 1; the list does not lead to it any more.
                let grave = unsafe { place.read() };
                // SAFETY: `bury` got the block from this fallback, and its content has moved out.
                unsafe { grave.core.raw().free(Some(place.cast())) };
            }
            return true;
        }
        false
    }

    /// Number of live blocks of all buried allocators.
    #[must_use]
    pub fn allocated_blocks(&self) -> usize {
        let graves = self.graves.lock();
        let mut blocks = 0;
        let mut next = graves.first;
        while let Some(place) = next {
            // SAFETY: invariant 1, and the lock is held.
            let grave = unsafe { place.as_ref() };
            blocks += grave.core.allocated_blocks();
            next = grave.next;
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
