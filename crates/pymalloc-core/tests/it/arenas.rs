//! Arenas: sources of every alignment, records swapped at run time, limits, and the way back to the system.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr::NonNull;

use malloc_api::annotate::RED_ZONE_BYTES;
use malloc_api::testing::conformance;
use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::{
    ARENA_BYTES, ArenaAllocator, ArenaSource, LocalPymalloc, NoFallback, POOL_BYTES, ReleaseLevel,
    Span, Supply,
};
use rstest::rstest;

/// Arenas that begin `offset` bytes after a multiple of their size.
#[derive(Default)]
struct Shifted {
    offset: usize,
    live: Cell<usize>,
    left: Cell<usize>,
    /// The longest range that was about to be written.
    populated: Cell<usize>,
}

fn layout() -> Layout {
    Layout::from_size_align(2 * ARENA_BYTES, ARENA_BYTES).unwrap()
}

// SAFETY: 1: each arena is an allocation of its own, long enough for the offset; 2-5: defaults; 6: std's heap.
unsafe impl ArenaSource for Shifted {
    fn alloc(&self, size: usize) -> Option<NonNull<u8>> {
        assert_eq!(size, ARENA_BYTES);
        self.left.set(self.left.get().checked_sub(1)?);
        self.live.set(self.live.get() + 1);
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc(layout()) }).unwrap();
        // SAFETY: the allocation is twice as long as an arena.
        unsafe { start.write_bytes(0xA5, 2 * ARENA_BYTES) };
        // SAFETY: the offset is less than an arena.
        Some(unsafe { start.add(self.offset) })
    }

    fn alloc_for(&self, size: usize, held: usize, _: usize) -> Option<(NonNull<u8>, Supply)> {
        let supply = if held < 4 * ARENA_BYTES { Supply::Sparse } else { Supply::Ahead };
        Some((self.alloc(size)?, supply))
    }

    unsafe fn free(&self, arena: NonNull<u8>, size: usize) {
        assert_eq!(size, ARENA_BYTES);
        self.live.set(self.live.get() - 1);
        // SAFETY: `alloc` added the offset.
        let start = unsafe { arena.sub(self.offset) };
        // SAFETY: `alloc` made it with this layout.
        unsafe { dealloc(start.as_ptr(), layout()) };
    }

    unsafe fn populate(&self, _start: NonNull<u8>, bytes: usize) {
        assert!(self.live.get() > 4, "an arena of which pages come one by one");
        self.populated.set(self.populated.get().max(bytes));
    }
}

#[test]
fn records_are_equal_if_all_three_words_are() {
    let (source, other) = (Shifted::default(), Shifted::default());
    let record = ArenaAllocator::of(&source);
    assert_eq!(record, ArenaAllocator::of(&source));
    let another = ArenaAllocator { alloc: counted_alloc, free: counted_free, ..record };
    let others = [
        ArenaAllocator::of(&other),
        ArenaAllocator { alloc: another.alloc, ..record },
        ArenaAllocator { free: another.free, ..record },
    ];
    assert!(others.iter().all(|other| *other != record), "{others:?}");
}

#[rstest]
fn arenas_anywhere_serve_blocks(
    #[values(0, 1, 16, 4096, 16384, 524_288, ARENA_BYTES - 1)] offset: usize,
) {
    let source = Shifted { offset, left: Cell::new(usize::MAX), ..Shifted::default() };
    let alloc = LocalPymalloc::with_source(LibcMalloc, &source);
    conformance(&alloc);
    let blocks: Vec<_> = (0..50_000).map(|i| alloc.malloc(1 + i % 700).unwrap()).collect();
    alloc.check_invariants();
    assert!(source.live.get() >= 8);
    assert_eq!(alloc.stats().arenas_current, source.live.get());
    assert_eq!(source.populated.get(), 128 << 10, "pages that follow a pool come with it");
    for (index, block) in blocks.iter().enumerate() {
        if index % 3 != 0 {
            // SAFETY: live, and not used again.
            unsafe { alloc.free(Some(*block)) };
        }
    }
    alloc.check_invariants();
    for block in blocks.into_iter().step_by(3) {
        // SAFETY: live, and forgotten.
        unsafe { alloc.free(Some(block)) };
    }
    alloc.check_invariants();
    assert!(source.live.get() > 0, "hot blocks are kept");
    drop(alloc);
    assert_eq!(source.live.get(), 0);
}

#[test]
fn the_address_test_is_exact_at_an_arenas_edges() {
    let source = Shifted { offset: 16_400, left: Cell::new(1), ..Shifted::default() };
    let alloc = LocalPymalloc::with_source(LibcMalloc, &source);
    let first = alloc.malloc(16).unwrap();
    let arena = first.addr().get() & !(16_384 - 1);
    for address in [0, 1, 16, arena - 16_384, arena - 1, usize::MAX, usize::MAX >> 1] {
        assert!(!alloc.owns(std::ptr::without_provenance(address)), "{address:#x}");
    }
    assert!(alloc.owns(first.as_ptr()));
    // SAFETY: live, and forgotten.
    unsafe { alloc.free(Some(first)) };
}

#[test]
fn without_arenas_requests_go_to_the_fallback() {
    let source = Shifted { left: Cell::new(1), ..Shifted::default() };
    let alloc = LocalPymalloc::with_source(LibcMalloc, &source);
    let blocks: Vec<_> = (0..5_000).map(|_| alloc.malloc(512 - RED_ZONE_BYTES).unwrap()).collect();
    alloc.check_invariants();
    let stats = alloc.stats();
    assert_eq!(stats.arenas_current, 1);
    assert_eq!(stats.fallback_blocks, 5_000 - (63 * 32 + 24), "and 24 beside the records");
    assert_eq!(alloc.allocated_blocks(), 5_000);
    for block in blocks {
        // SAFETY: live, and forgotten.
        unsafe { alloc.free(Some(block)) };
    }
    assert_eq!(alloc.allocated_blocks(), 0);
    alloc.check_invariants();
}

#[test]
fn a_memory_limit_stops_new_arenas() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    alloc.set_memory_limit(2 * ARENA_BYTES);
    let blocks: Vec<_> = (0..10_000).map(|_| alloc.malloc(512).unwrap()).collect();
    assert_eq!(alloc.stats().arenas_current, 2);
    assert_eq!(alloc.allocated_blocks(), 10_000);
    for block in blocks {
        // SAFETY: live, and forgotten.
        unsafe { alloc.free(Some(block)) };
    }
    alloc.check_invariants();
}

/// What the swapped-in record counts.
#[derive(Default)]
struct Calls {
    allocs: Cell<usize>,
    frees: Cell<usize>,
    inner: Option<ArenaAllocator>,
}

unsafe extern "C" fn counted_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the tests set a `Calls` as context.
    let calls = unsafe { &*ctx.cast::<Calls>() };
    calls.allocs.set(calls.allocs.get() + 1);
    let inner = calls.inner.unwrap();
    // SAFETY: the record of a live allocator.
    unsafe { (inner.alloc)(inner.ctx, size) }
}

unsafe extern "C" fn counted_free(ctx: *mut c_void, ptr: *mut c_void, size: usize) {
    // SAFETY: the tests set a `Calls` as context.
    let calls = unsafe { &*ctx.cast::<Calls>() };
    calls.frees.set(calls.frees.get() + 1);
    let inner = calls.inner.unwrap();
    // SAFETY: the record of a live allocator made the arena.
    unsafe { (inner.free)(inner.ctx, ptr, size) };
}

#[test]
fn a_record_set_at_run_time_takes_old_arenas_too() {
    let alloc = LocalPymalloc::new(LibcMalloc);
    let old: Vec<_> = (0..5_000).map(|_| alloc.malloc(512).unwrap()).collect();
    let before = alloc.stats().arenas_current;
    let inner = alloc.arena_allocator();
    let calls = Calls { inner: Some(inner), ..Calls::default() };
    let ctx = (&raw const calls).cast_mut().cast();
    let record = ArenaAllocator { ctx, alloc: counted_alloc, free: counted_free };
    // SAFETY: the record forwards to the one it replaces.
    unsafe { alloc.set_arena_allocator(record) };
    assert_eq!(alloc.arena_allocator(), record);
    let new: Vec<_> = (0..5_000).map(|_| alloc.malloc(512).unwrap()).collect();
    let arenas = alloc.stats().arenas_current;
    assert_eq!(calls.allocs.get(), arenas - before);
    alloc.check_invariants();
    for block in old.into_iter().chain(new) {
        // SAFETY: live, and forgotten.
        unsafe { alloc.free(Some(block)) };
    }
    alloc.release(ReleaseLevel::Arenas);
    assert_eq!(calls.frees.get(), arenas);
    // SAFETY: the record that stands for the source.
    unsafe { alloc.set_arena_allocator(inner) };
    assert_eq!(alloc.arena_allocator(), inner);
}

/// A mapping that stays, of which the system has memory for what is touched alone.
#[cfg(unix)]
fn addresses(bytes: usize) -> NonNull<u8> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place of the system's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    NonNull::new(start.cast()).expect("a mapping")
}

/// A span of 5 GiB, with an arena here and there.
#[cfg(unix)]
struct Scattered {
    base: NonNull<u8>,
    /// Numbers of the free arenas, the next one last.
    free: RefCell<Vec<usize>>,
    tables: Cell<usize>,
}

#[cfg(unix)]
impl Scattered {
    const BYTES: usize = 5 << 30;

    fn new(numbers: &[usize]) -> Self {
        let start = addresses(Self::BYTES + ARENA_BYTES);
        let slack = start.addr().get().wrapping_neg() % ARENA_BYTES;
        // SAFETY: less than the arena by which the mapping is longer.
        let base = unsafe { start.add(slack) };
        Self { base, free: RefCell::new(numbers.to_vec()), tables: Cell::new(0) }
    }
}

// SAFETY: 1: each number is given out once at a time; 2: not claimed; 3: the mapping stays, and arenas are aligned; 4: zeroed
// memory of the C library; 5: defaults; 6: nothing unwinds but a failing test.
#[cfg(unix)]
unsafe impl ArenaSource for Scattered {
    fn alloc(&self, _size: usize) -> Option<NonNull<u8>> {
        let number = self.free.borrow_mut().pop()?;
        // SAFETY: in the span.
        Some(unsafe { self.base.add(number * ARENA_BYTES) })
    }

    unsafe fn free(&self, arena: NonNull<u8>, _size: usize) {
        let offset = arena.addr().get() - self.base.addr().get();
        self.free.borrow_mut().push(offset / ARENA_BYTES);
    }

    fn span(&self) -> Option<Span> {
        Some(Span { base: self.base, bytes: Self::BYTES })
    }

    fn alloc_table(&self, bytes: usize) -> Option<NonNull<u8>> {
        self.tables.set(self.tables.get() + 1);
        LibcMalloc.calloc(1, bytes)
    }

    unsafe fn free_table(&self, table: NonNull<u8>, _bytes: usize) {
        self.tables.set(self.tables.get() - 1);
        // SAFETY: 1, 2: the caller's.
        unsafe { LibcMalloc.free(Some(table)) };
    }
}

/// The map of addresses grows with the place of the last arena, keeps what it knew, and recedes when that arena goes.
#[cfg(unix)]
#[test]
fn a_span_is_covered_as_far_as_its_arenas_reach() {
    let numbers = [700, 4_900, 3, 1_030, 1_023, 0];
    let source = Scattered::new(&numbers);
    let alloc = LocalPymalloc::with_source(NoFallback, &source);
    for _ in 0..2 {
        let mut blocks = Vec::new();
        while let Some(block) = alloc.malloc(8_000) {
            blocks.push(block);
            if blocks.len() % 100 == 0 {
                alloc.check_invariants();
            }
        }
        assert_eq!(alloc.stats().arenas_current, numbers.len());
        assert_eq!(source.tables.get(), 1, "older tables went back");
        fastrand::Rng::with_seed(5).shuffle(&mut blocks);
        for block in blocks {
            assert!(alloc.owns(block.as_ptr()));
            // SAFETY: live, and not used again.
            unsafe { alloc.free(Some(block)) };
        }
        alloc.release(ReleaseLevel::Arenas);
        alloc.check_invariants();
        assert_eq!(alloc.stats().map_tables, [0, 0]);
    }
    drop(alloc);
    assert_eq!(source.tables.get(), 0);
}

/// Arenas that never come back at the same address.
#[cfg(unix)]
struct Wandering(NonNull<u8>, Cell<usize>);

// SAFETY: 1: each piece of the mapping, which stays, is given out once; 2-5: defaults; 6: nothing unwinds.
#[cfg(unix)]
unsafe impl ArenaSource for Wandering {
    fn alloc(&self, _size: usize) -> Option<NonNull<u8>> {
        let number = self.1.replace(self.1.get() + 1);
        // SAFETY: the test asks for no more than the mapping has.
        Some(unsafe { self.0.add(number * ARENA_BYTES) })
    }

    unsafe fn free(&self, _arena: NonNull<u8>, _size: usize) {}
}

/// The table of arenas outside of a span has room for those that there are, not for those that there were.
#[cfg(unix)]
#[test]
fn arenas_that_come_and_go_leave_no_room_behind() {
    const ROUNDS: usize = 200;
    let source = Wandering(addresses(2 * ROUNDS * ARENA_BYTES), Cell::new(0));
    let alloc = LocalPymalloc::with_source(LibcMalloc, &source);
    for _ in 0..ROUNDS {
        let block = alloc.malloc(100);
        assert!(block.is_some());
        // SAFETY: live, and not used again.
        unsafe { alloc.free(block) };
        alloc.release(ReleaseLevel::Arenas);
    }
    assert!(source.1.get() >= ROUNDS, "each round has an arena of its own");
    let table = alloc.stats().map_bytes[2];
    assert!((1..8 << 10).contains(&table), "{table} bytes");
}

/// Of two arenas the one that lacks less has no memory at hand, the other one has.
#[test]
fn a_pool_opens_where_memory_is() {
    const BLOCK: usize = 2048 - RED_ZONE_BYTES;
    const POOL_BLOCKS: usize = POOL_BYTES / 2048;
    const POOLS: usize = ARENA_BYTES / POOL_BYTES;
    let source = Shifted { left: Cell::new(2), ..Shifted::default() };
    let alloc = LocalPymalloc::with_source(LibcMalloc, &source);
    let arena_of = |block: NonNull<u8>| block.addr().get() / ARENA_BYTES;
    // The pool with the header lacks some blocks.
    let mut blocks = Vec::new();
    while blocks.last().is_none_or(|last| arena_of(*last) == arena_of(blocks[0])) {
        blocks.push(alloc.malloc(BLOCK).unwrap());
    }
    let first_arena = blocks.len() - 1;
    blocks.extend((0..POOLS / 2 * POOL_BLOCKS).map(|_| alloc.malloc(BLOCK).unwrap()));
    for block in blocks.drain(POOL_BLOCKS..first_arena) {
        // SAFETY: 1, 2: a live block, which is not used again.
        unsafe { alloc.free(Some(block)) };
    }
    let known = arena_of(blocks[0]);
    for _ in 0..POOLS / 4 * POOL_BLOCKS {
        blocks.push(alloc.malloc(BLOCK).unwrap());
    }
    let last = *blocks.last().unwrap();
    assert_eq!(arena_of(last), known, "the other arena has no memory there");
    for block in blocks {
        // SAFETY: 1, 2: a live block, which is not used again.
        unsafe { alloc.free(Some(block)) };
    }
}
