//! Notes beside pools: each block's own, while pools open and close and change their blocks' size.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;

use heap_profile::{NotedProfiler, Notes, Pools, Profile};
use malloc_api::testing::conformance;
use malloc_api::{Domain, LibcMalloc, Malloc};
use rstest::rstest;

use crate::script::{Script, profile, run, serialized};

const UNIT: usize = 16 << 10;
const UNITS: usize = 32;
/// What is larger comes from the C library.
const LARGEST: usize = 3_000;

/// Pools of one unit each, for every multiple of 16 up to 512 and of 48 above.
struct FewPools {
    start: NonNull<u8>,
    units: Mutex<[Unit; UNITS]>,
}

/// A unit's block size, 0 for none, and which blocks are live.
#[derive(Clone, Default)]
struct Unit {
    bytes: usize,
    live: Vec<bool>,
}

// SAFETY: the memory belongs to the value, and the lock to who changes it.
unsafe impl Sync for FewPools {}
// SAFETY: as above.
unsafe impl Send for FewPools {}

const LAYOUT: Layout = match Layout::from_size_align(UNIT * UNITS, UNIT) {
    Ok(layout) => layout,
    Err(_) => panic!(),
};

impl FewPools {
    fn leaked() -> &'static Self {
        // SAFETY: the layout is not of zero bytes.
        let start = NonNull::new(unsafe { alloc(LAYOUT) }).unwrap();
        Box::leak(Box::new(Self { start, units: Mutex::default() }))
    }

    fn class(size: usize) -> usize {
        if size <= 512 { size.next_multiple_of(16) } else { size.next_multiple_of(48) }
    }

    /// The unit of a block, and where in the unit the block is.
    fn position(&self, block: NonNull<u8>) -> Option<(usize, usize)> {
        let offset = block.addr().get().wrapping_sub(self.start.addr().get());
        (offset < UNIT * UNITS).then_some((offset / UNIT, offset % UNIT))
    }
}

impl Drop for FewPools {
    fn drop(&mut self) {
        // SAFETY: from `alloc` with this layout.
        unsafe { dealloc(self.start.as_ptr(), LAYOUT) };
    }
}

impl Pools for FewPools {
    fn block_bytes(&self, block: NonNull<u8>) -> Option<usize> {
        let (unit, _) = self.position(block)?;
        let bytes = self.units.lock().unwrap()[unit].bytes;
        (bytes > 0).then_some(bytes)
    }
}

/// [`FewPools`] as an allocator.
struct Heap(&'static FewPools);

// SAFETY: 1: blocks of a unit lie side by side, at multiples of 16, and each is handed out once; 2 and 3: by way of a copy; 4:
// nothing unwinds; 5: the pools live for ever.
unsafe impl Malloc for Heap {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        if size == 0 || size > LARGEST {
            return LibcMalloc.malloc(size);
        }
        let class = FewPools::class(size);
        let mut units = self.0.units.lock().unwrap();
        let is_free = |unit: &Unit| unit.bytes == class && unit.live.contains(&false);
        let open = units.iter().position(is_free);
        let open = open.or_else(|| units.iter().rposition(|unit| unit.bytes == 0));
        let Some(at) = open else { return LibcMalloc.malloc(size) };
        let unit = &mut units[at];
        if unit.bytes == 0 {
            *unit = Unit { bytes: class, live: vec![false; UNIT / class] };
        }
        let index = unit.live.iter().position(|live| !live)?;
        unit.live[index] = true;
        // SAFETY: within the pools.
        Some(unsafe { self.0.start.add(at * UNIT + index * class) })
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = nelem.checked_mul(elsize)?;
        let block = self.malloc(size)?;
        // SAFETY: a block of that size.
        unsafe { block.write_bytes(0, size) };
        Some(block)
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(old) = ptr else { return self.malloc(new_size) };
        let Some(bytes) = self.0.block_bytes(old) else {
            // SAFETY: no pool's block is the C library's; the caller's duties.
            return unsafe { LibcMalloc.realloc(ptr, new_size) };
        };
        if new_size > 0 && new_size <= bytes && 4 * new_size > 3 * bytes {
            return ptr;
        }
        let new = self.malloc(new_size)?;
        // SAFETY: both are live, and distinct.
        unsafe { new.copy_from_nonoverlapping(old, bytes.min(new_size)) };
        // SAFETY: the caller's duties.
        unsafe { self.free(ptr) };
        Some(new)
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let Some(block) = ptr else { return };
        let Some((at, offset)) = self.0.position(block) else {
            // SAFETY: no pool's block is the C library's; the caller's duties.
            return unsafe { LibcMalloc.free(ptr) };
        };
        let unit = &mut self.0.units.lock().unwrap()[at];
        let index = offset / unit.bytes;
        unit.live[index] = false;
        if !unit.live.contains(&true) {
            *unit = Unit::default();
        }
    }
}

#[rstest]
fn a_profiler_beside_pools_is_an_allocator_like_any_other(
    #[values(profile(32).1, serialized().1)] profile: &'static Profile<&'static Script>,
) {
    let pools = FewPools::leaked();
    let notes = Notes::new(pools).expect("memory");
    conformance(&NotedProfiler::new(Heap(pools), profile, Domain::Mem, notes));
    assert_eq!(profile.live_bytes(), 0, "what the suite freed is still counted");
}

#[rstest]
fn each_line_holds_what_it_holds_while_pools_change_their_sizes(
    #[values(profile(32).1, serialized().1)] profile: &'static Profile<&'static Script>,
) {
    let pools = FewPools::leaked();
    let notes = Notes::new(pools).expect("memory");
    let heaps = [Domain::Mem, Domain::Obj]
        .map(|domain| NotedProfiler::new(Heap(pools), profile, domain, notes));
    let mut live: Vec<(NonNull<u8>, usize, usize, usize)> = Vec::new();
    let mut random = 7_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        (random >> 33) as usize % below
    };
    for step in 0..60_000 {
        // Each phase has sizes of its own, so that pools close and open for others.
        let phase = step / 3_000;
        let largest = [40, 700, 90, 4_000][phase % 4];
        match next(5) {
            0 | 1 if !live.is_empty() => {
                let (block, _, _, of) = live.swap_remove(next(live.len()));
                // SAFETY: (1) live; (2) not used again.
                unsafe { heaps[of].free(Some(block)) };
            }
            2 if !live.is_empty() => {
                let at = next(live.len());
                let (block, line, _, of) = live[at];
                let size = next(largest);
                // SAFETY: (1) live; (2) the old one is not used again.
                let moved = run(&[line], || unsafe { heaps[of].realloc(Some(block), size) });
                live[at] = (moved.unwrap(), line, size, of);
            }
            _ => {
                let (line, size, of) = (101 + next(50), next(largest), next(2));
                live.push((run(&[line], || heaps[of].malloc(size)).unwrap(), line, size, of));
            }
        }
        if step % 3_000 == 2_999 {
            let mut expected: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
            for &(_, line, size, _) in &live {
                let of_line = expected.entry(line as u32).or_default();
                *of_line = (of_line.0 + size as u64, of_line.1 + 1);
            }
            let mut seen: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
            for site in profile.snapshot().sites.iter().filter(|site| site.live.blocks > 0) {
                let of_line = seen.entry(site.stack[0].line).or_default();
                *of_line = (of_line.0 + site.live.bytes, of_line.1 + site.live.blocks);
            }
            assert_eq!(seen, expected, "after {step} steps");
            // Most go, so that whole pools close.
            for (block, _, _, of) in live.split_off(live.len() / 50) {
                // SAFETY: (1) live; (2) not used again.
                unsafe { heaps[of].free(Some(block)) };
            }
        }
    }
    for (block, _, _, of) in live {
        // SAFETY: (1) live; (2) not used again.
        unsafe { heaps[of].free(Some(block)) };
    }
    let snapshot = profile.snapshot();
    assert_eq!((snapshot.live().bytes, snapshot.live().blocks), (0, 0));
}

#[rstest]
fn a_live_block_tells_who_allocated_it(
    #[values(profile(32).1, serialized().1)] profile: &'static Profile<&'static Script>,
) {
    let pools = FewPools::leaked();
    let notes = Notes::new(pools).expect("memory");
    let heap = NotedProfiler::new(Heap(pools), profile, Domain::Obj, notes);
    let lines = |block| heap.traceback_of(block).map(|stack| stack[0].line);
    // In a pool, in one of blocks with wide notes, and in none.
    let blocks = [(40, 101), (40, 102), (1_000, 103), (LARGEST + 1, 104)]
        .map(|(size, line)| (run(&[line], || heap.malloc(size)).unwrap(), line));
    for (block, line) in blocks {
        assert_eq!(lines(block), Some(line as u32));
    }
    // SAFETY: (1) live; (2) not used again.
    blocks.into_iter().for_each(|(block, _)| unsafe { heap.free(Some(block)) });
    assert!(blocks.into_iter().all(|(block, _)| lines(block).is_none()));
    assert_eq!(lines(NonNull::<u64>::dangling().cast()), None);
}

#[rstest]
fn a_note_goes_with_its_block(
    #[values(profile(32).1, serialized().1)] profile: &'static Profile<&'static Script>,
) {
    let pools = FewPools::leaked();
    let notes = Notes::new(pools).expect("memory");
    let heap = NotedProfiler::new(Heap(pools), profile, Domain::Obj, notes);
    // The first free looks for a peak, which takes it off the short way, and so does the first change of a site after that.
    for _ in 0..2 {
        let first = run(&[101], || heap.malloc(40));
        // SAFETY: (1) live; (2) not used again.
        unsafe { heap.free(first) };
    }
    let kept = run(&[101], || heap.malloc(40));
    let gone = run(&[101], || heap.malloc(40));
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(gone) };
    profile.set_recording(false);
    let unrecorded = run(&[101], || heap.malloc(40));
    assert_eq!(unrecorded, gone, "the test counts on its address");
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(unrecorded) };
    assert_eq!(profile.live_bytes(), 40);
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(kept) };
}
