//! Owns the seam to the system: where arenas come from (`ArenaSource`), and CPython's record of two functions that
//! can replace that at run time (`ArenaAllocator`).

use core::ffi::c_void;
use core::ptr::NonNull;

use crate::config::ARENA_BYTES;

/// A range of addresses in which the arenas of a source may lie.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// First address, aligned to [`ARENA_BYTES`](crate::ARENA_BYTES).
    pub base: NonNull<u8>,
    /// Length in bytes, a multiple of [`ARENA_BYTES`](crate::ARENA_BYTES).
    pub bytes: usize,
}

/// How the memory of a new arena comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supply {
    /// A page at a time, when it is touched.
    Sparse,
    /// Ahead of need, through [`ArenaSource::populate`].
    Ahead,
    /// All of it is resident.
    Resident,
}

/// Where arenas come from: memory in pieces of [`ARENA_BYTES`](crate::ARENA_BYTES).
///
/// Sizes are in bytes. Only `alloc` and `free` are required; the rest makes address tests and page faults cheaper.
///
/// # Safety
///
/// An implementation promises that
///
/// 1. what `alloc` and `alloc_for` return is valid for reads and writes of `size` bytes, overlaps nothing else in use, and stays
///    so until it is given to `free`; its alignment is free to choose;
/// 2. if `IS_ZEROED`, it holds zero bytes;
/// 3. `span` always answers the same; an arena inside of it is aligned to its own size; and from its base to the end of an
///    arena in use lies nothing but arenas of sources that report this very span, or memory that no pool allocator sees;
/// 4. `alloc_table` returns zeroed memory that overlaps nothing else in use, until `free_table`;
/// 5. `populate` and `regrow` keep every byte, and `purge` changes no byte outside of the range it is given; units that were offered are
///    left alone once `take_back` has returned, or `waiting` has not named them;
/// 6. no method unwinds or allocates through the allocator that uses the source.
pub unsafe trait ArenaSource {
    /// Does `alloc` return zero bytes?
    const IS_ZEROED: bool = false;

    /// An arena of `size` bytes; `None` when there is none.
    fn alloc(&self, size: usize) -> Option<NonNull<u8>>;

    /// An arena of `size` bytes for an allocator that holds `held` bytes of arenas already, and has given back `missed` bytes that it had
    /// and did not need again so far; and how its memory comes. `None` when there is none. As `alloc` in everything else.
    fn alloc_for(&self, size: usize, held: usize, missed: usize) -> Option<(NonNull<u8>, Supply)> {
        let _ = (held, missed);
        Some((self.alloc(size)?, Supply::Sparse))
    }

    /// Takes an arena back.
    ///
    /// # Safety
    ///
    /// 1. `alloc(size)` or `alloc_for(size, _, _)` of this source returned `arena`, and it is not used afterwards.
    unsafe fn free(&self, arena: NonNull<u8>, size: usize);

    /// Takes an arena of [`ARENA_BYTES`](crate::ARENA_BYTES) back, as `free` does; the memory may go after the call has returned.
    ///
    /// Beyond `units`, whose bits are those of [`offer`](Self::offer), the arena is as it came. The allocator ends, and gives
    /// `spare_bytes` of arenas back, this one included.
    ///
    /// # Safety
    ///
    /// 1. That of [`free`](Self::free).
    /// 2. What has been written to lies in `units`, and none of these is offered.
    unsafe fn free_later(&self, arena: NonNull<u8>, units: u64, spare_bytes: usize) {
        let _ = (units, spare_bytes);
        // SAFETY: 1: the caller's 1.
        unsafe { self.free(arena, ARENA_BYTES) };
    }

    /// The range of addresses in which arenas may lie, if there is one; asked once, before the first arena.
    ///
    /// Arenas outside of it are still found, by a slower way.
    fn span(&self) -> Option<Span> {
        None
    }

    /// `bytes` zero bytes for a table, at most one for each 16 KiB of the span; `None` when there is no memory.
    fn alloc_table(&self, bytes: usize) -> Option<NonNull<u8>> {
        let _ = bytes;
        None
    }

    /// Takes a table back.
    ///
    /// # Safety
    ///
    /// 1. `alloc_table(bytes)` of this source returned `table`, and it is not used afterwards.
    unsafe fn free_table(&self, table: NonNull<u8>, bytes: usize) {
        let _ = (table, bytes);
    }

    /// Advice: the pages of this range are about to be written.
    ///
    /// # Safety
    ///
    /// 1. The range lies in one arena of this source.
    unsafe fn populate(&self, start: NonNull<u8>, bytes: usize) {
        let _ = (start, bytes);
    }

    /// Advice: most of `arena`, whose memory has gone in part, is about to be written, and of its neighbour in a huge page, if the
    /// caller `has_both`. Returns whether all of both is resident now; bytes stay as they are, and what had gone reads as zero.
    ///
    /// # Safety
    ///
    /// 1. `arena` is one of this source, and if `has_both` so is the other one in its two aligned [`ARENA_BYTES`](crate::ARENA_BYTES).
    unsafe fn regrow(&self, arena: NonNull<u8>, has_both: bool) -> bool {
        let _ = (arena, has_both);
        false
    }

    /// Gives the memory behind the whole pages of this range back to the system, and keeps the addresses.
    ///
    /// Returns the bytes given back, 0 where the source cannot do that. The range's content is then unspecified.
    ///
    /// # Safety
    ///
    /// 1. The range lies in one arena of this source, and nothing in it is in use.
    unsafe fn purge(&self, start: NonNull<u8>, bytes: usize) -> usize {
        let _ = (start, bytes);
        0
    }

    /// Lets the memory behind `units` go back when the source likes; bit u of `units` stands for unit u of the arena, [`POOL_BYTES`](crate::POOL_BYTES)
    /// long, at u times that many bytes from the arena's aligned start.
    ///
    /// Unit 0 has the records of all. Bit 0 stands for the unit without the page of the records, which is page a / 2 % 4 of the four for arena number a of the address space
    /// (address by [`ARENA_BYTES`](crate::ARENA_BYTES)).
    ///
    /// The allocator has `spare_bytes` of such memory, these included. The default keeps all of it.
    ///
    /// # Safety
    ///
    /// 1. The units are in an arena of this source, and nothing in them is in use until [`take_back`](Self::take_back) has
    ///    returned.
    unsafe fn offer(&self, arena: NonNull<u8>, units: u64, spare_bytes: usize) {
        let _ = (arena, units, spare_bytes);
    }

    /// Takes `units`, which were offered, back; returns those whose memory is still there. That of the others reads as zero.
    ///
    /// The source leaves all of them alone from the return on.
    fn take_back(&self, arena: NonNull<u8>, units: u64) -> u64 {
        let _ = arena;
        units
    }

    /// Of `units`, which were offered, those whose memory is still there; the source is done with the others.
    fn waiting(&self, arena: NonNull<u8>, units: u64) -> u64 {
        let _ = arena;
        units
    }

    /// The most bytes that the process ever had resident; 0 where nobody knows.
    ///
    /// Where this grows while the fallback is asked for large blocks, free pools give way to them.
    fn peak_bytes(&self) -> usize {
        0
    }

    /// Whether a pool of `bytes` may be opened; each yes is followed by a [`close_pools`](Self::close_pools).
    fn open_pool(&self, bytes: usize) -> bool {
        let _ = bytes;
        true
    }

    /// Says that open pools of `bytes` together are closed.
    fn close_pools(&self, bytes: usize) {
        let _ = bytes;
    }
}

/// The methods of a source that are those of the source at `$source`, a place expression of `$self`.
macro_rules! forward_source {
    ($self:ident => $source:expr, $S:ident) => {
        const IS_ZEROED: bool = $S::IS_ZEROED;

        fn alloc(&$self, size: usize) -> Option<NonNull<u8>> {
            $source.alloc(size)
        }

        fn alloc_for(
            &$self,
            size: usize,
            held: usize,
            missed: usize,
        ) -> Option<(NonNull<u8>, Supply)> {
            $source.alloc_for(size, held, missed)
        }

        unsafe fn free(&$self, arena: NonNull<u8>, size: usize) {
            // SAFETY: the caller's duty is that of `S::free`.
            unsafe { $source.free(arena, size) };
        }

        unsafe fn free_later(&$self, arena: NonNull<u8>, units: u64, spare_bytes: usize) {
            // SAFETY: the caller's duties are those of `S::free_later`.
            unsafe { $source.free_later(arena, units, spare_bytes) };
        }

        fn span(&$self) -> Option<Span> {
            $source.span()
        }

        fn alloc_table(&$self, bytes: usize) -> Option<NonNull<u8>> {
            $source.alloc_table(bytes)
        }

        unsafe fn free_table(&$self, table: NonNull<u8>, bytes: usize) {
            // SAFETY: the caller's duty is that of `S::free_table`.
            unsafe { $source.free_table(table, bytes) };
        }

        unsafe fn populate(&$self, start: NonNull<u8>, bytes: usize) {
            // SAFETY: the caller's duty is that of `S::populate`.
            unsafe { $source.populate(start, bytes) };
        }

        unsafe fn regrow(&$self, arena: NonNull<u8>, has_both: bool) -> bool {
            // SAFETY: the caller's duty is that of `S::regrow`.
            unsafe { $source.regrow(arena, has_both) }
        }

        unsafe fn purge(&$self, start: NonNull<u8>, bytes: usize) -> usize {
            // SAFETY: the caller's duty is that of `S::purge`.
            unsafe { $source.purge(start, bytes) }
        }

        unsafe fn offer(&$self, arena: NonNull<u8>, units: u64, spare_bytes: usize) {
            // SAFETY: the caller's duty is that of `S::offer`.
            unsafe { $source.offer(arena, units, spare_bytes) };
        }

        fn take_back(&$self, arena: NonNull<u8>, units: u64) -> u64 {
            $source.take_back(arena, units)
        }

        fn waiting(&$self, arena: NonNull<u8>, units: u64) -> u64 {
            $source.waiting(arena, units)
        }

        fn peak_bytes(&$self) -> usize {
            $source.peak_bytes()
        }
    };
}
pub(crate) use forward_source;

// SAFETY: each method forwards to the same method of `S`, which keeps promises 1-6.
unsafe impl<S: ArenaSource> ArenaSource for &S {
    forward_source!(self => (**self), S);

    fn open_pool(&self, bytes: usize) -> bool {
        (**self).open_pool(bytes)
    }

    fn close_pools(&self, bytes: usize) {
        (**self).close_pools(bytes);
    }
}

/// CPython's `PyObjectArenaAllocator`: a context and the two functions that get and return arenas.
///
/// Three words in the order of the C structure. Set with `set_arena_allocator`; arenas that exist by then are later
/// given to the new `free`, which must cope with them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ArenaAllocator {
    /// First argument of both functions.
    pub ctx: *mut c_void,
    /// Returns `size` bytes at any alignment, or null.
    pub alloc: unsafe extern "C" fn(ctx: *mut c_void, size: usize) -> *mut c_void,
    /// Takes back what an `alloc` returned.
    pub free: unsafe extern "C" fn(ctx: *mut c_void, ptr: *mut c_void, size: usize),
}

impl PartialEq for ArenaAllocator {
    /// Equal if all three words are.
    fn eq(&self, other: &Self) -> bool {
        self.ctx == other.ctx
            && core::ptr::fn_addr_eq(self.alloc, other.alloc)
            && core::ptr::fn_addr_eq(self.free, other.free)
    }
}

impl Eq for ArenaAllocator {}

impl ArenaAllocator {
    /// The record that stands for `source`: its functions call `source`'s.
    ///
    /// The record is usable as long as `source` stays where it is.
    #[must_use]
    pub fn of<S: ArenaSource>(source: &S) -> Self {
        Self {
            ctx: core::ptr::from_ref(source).cast_mut().cast(),
            alloc: source_alloc::<S>,
            free: source_free::<S>,
        }
    }
}

/// # Safety
///
/// 1. `ctx` points to an `S`.
unsafe extern "C" fn source_alloc<S: ArenaSource>(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: 1.
    let source = unsafe { &*ctx.cast::<S>().cast_const() };
    source.alloc(size).map_or(core::ptr::null_mut(), |arena| arena.as_ptr().cast())
}

/// # Safety
///
/// 1. `ctx` points to an `S`.
/// 2. `ptr` is null, or `alloc(size)` of it returned `ptr`, which is not used afterwards.
unsafe extern "C" fn source_free<S: ArenaSource>(ctx: *mut c_void, ptr: *mut c_void, size: usize) {
    // SAFETY: 1.
    let source = unsafe { &*ctx.cast::<S>().cast_const() };
    if let Some(arena) = NonNull::new(ptr.cast::<u8>()) {
        // SAFETY: 2 is the duty of `ArenaSource::free`.
        unsafe { source.free(arena, size) };
    }
}
