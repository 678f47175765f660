//! Owns `StaticArenas`: arenas in a buffer of fixed size, for programs without an operating system.

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;

use malloc_api::Malloc;
use pymem_sync::Lock;

use crate::config::{ARENA_BYTES, ARENA_UNITS};
use crate::source::{ArenaSource, Span};

/// `N - 1` arenas in a static buffer of `N` MiB, `N` from 2 to 65; the rest pays for alignment and the address map.
///
/// A reference to the buffer is the source: blocks lie in the buffer, so the buffer must not move.
///
/// # Examples
///
/// ```
/// use pymalloc_core::{LocalPymalloc, NoFallback, StaticArenas};
///
/// static BUFFER: StaticArenas<2> = StaticArenas::new();
/// let alloc = LocalPymalloc::with_source(NoFallback, &BUFFER);
/// ```
///
/// An allocator that owned its buffer would move its blocks:
///
/// ```compile_fail,E0277
/// use pymalloc_core::{LocalPymalloc, NoFallback, StaticArenas};
///
/// let alloc = LocalPymalloc::with_source(NoFallback, StaticArenas::<2>::new());
/// ```
pub struct StaticArenas<const N: usize> {
    buffer: UnsafeCell<[[u8; ARENA_BYTES]; N]>,
    /// Bit i is set if arena i is taken; the last bit, if the table is.
    taken: Lock<(u64, bool)>,
}

// SAFETY: the lock hands out each part of the buffer once.
unsafe impl<const N: usize> Sync for StaticArenas<N> {}

impl<const N: usize> StaticArenas<N> {
    /// A buffer with every arena free.
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(N >= 2 && N <= 65, "StaticArenas takes 2 to 65 MiB") };
        Self { buffer: UnsafeCell::new([[0; ARENA_BYTES]; N]), taken: Lock::new((0, false)) }
    }

    fn start(&self) -> NonNull<u8> {
        // SAFETY: a cell's content is not null.
        unsafe { NonNull::new_unchecked(self.buffer.get().cast()) }
    }

    /// Bytes from the buffer's start to the first arena.
    fn slack(&self) -> usize {
        self.start().addr().get().wrapping_neg() % ARENA_BYTES
    }

    fn first_arena(&self) -> NonNull<u8> {
        // SAFETY: less than an arena, and the buffer has two.
        unsafe { self.start().add(self.slack()) }
    }
}

impl<const N: usize> Default for StaticArenas<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Debug for StaticArenas<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticArenas").field("taken", &self.taken).finish_non_exhaustive()
    }
}

// SAFETY: 1: the bit under the lock gives each arena once, and aligned starts leave N - 1 in the buffer; 2: not claimed;
// 3: the buffer does not move while it is borrowed, as it is here; 4: the table is the
// larger of the two ends that no arena covers, given once; 5: the defaults do nothing; 6: a lock alone.
unsafe impl<const N: usize> ArenaSource for &StaticArenas<N> {
    fn alloc(&self, size: usize) -> Option<NonNull<u8>> {
        let mut taken = self.taken.lock();
        let index = taken.0.trailing_ones() as usize;
        if size != ARENA_BYTES || index >= N - 1 {
            return None;
        }
        taken.0 |= 1 << index;
        // SAFETY: below N - 1, so the arena ends in the buffer.
        Some(unsafe { self.first_arena().add(index * ARENA_BYTES) })
    }

    unsafe fn free(&self, arena: NonNull<u8>, _size: usize) {
        let index = (arena.addr().get() - self.first_arena().addr().get()) / ARENA_BYTES;
        self.taken.lock().0 &= !(1 << index);
    }

    fn span(&self) -> Option<Span> {
        Some(Span { base: self.first_arena(), bytes: (N - 1) * ARENA_BYTES })
    }

    fn alloc_table(&self, bytes: usize) -> Option<NonNull<u8>> {
        const { assert!(64 * ARENA_UNITS <= ARENA_BYTES / 2, "a table fits into the larger end") };
        let mut taken = self.taken.lock();
        if taken.1 || bytes > ARENA_BYTES / 2 {
            return None;
        }
        taken.1 = true;
        let table = if self.slack() >= ARENA_BYTES / 2 {
            self.start()
        } else {
            // SAFETY: the end of the last arena; more than half an arena of the buffer follows.
            unsafe { self.first_arena().add((N - 1) * ARENA_BYTES) }
        };
        // SAFETY: `bytes` is at most half an arena, and this end of the buffer is as long.
        unsafe { table.write_bytes(0, bytes) };
        Some(table)
    }

    unsafe fn free_table(&self, _table: NonNull<u8>, _bytes: usize) {
        self.taken.lock().1 = false;
    }
}

/// A fallback that has nothing: zero-size and large requests fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFallback;

// SAFETY: it gives no block, so there is none to keep promises about.
unsafe impl Malloc for NoFallback {
    fn malloc(&self, _size: usize) -> Option<NonNull<u8>> {
        None
    }

    fn calloc(&self, _nelem: usize, _elsize: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn realloc(&self, _ptr: Option<NonNull<u8>>, _new_size: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn free(&self, _ptr: Option<NonNull<u8>>) {}
}
