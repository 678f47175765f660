//! Owns [`OwnHeap`]: a heap of one thread that draws on a budget and ends with all of its blocks, for an account.
//!
//! mimalloc has no place where a heap asks for more memory, so the heap takes bytes of the budget ahead, for which blocks may be made.
//! A block that is at hand was paid for when it was made, so that it costs nothing to hand it out. When what was taken is used up, all blocks
//! are counted, and the heap takes what is missing. Where the budget has not got enough, the heap becomes *tight*: each request spends of
//! four fifths of what live blocks do not have, and these are counted when that is used up.

use core::cell::Cell;
use core::ffi::c_void;
use core::fmt;
use core::ops::ControlFlow;
use core::ptr::NonNull;

use malloc_api::{Account, Malloc, Pools, ToBudget, Usage};

use crate::ffi;
use crate::free;
use crate::heap::Heap;
use crate::idle;
use crate::mi_malloc::{request, request_array};
use crate::page::{MADE_AT_ONCE, block_bytes, page_of, room_of, stays};
use crate::prepare::prepare;
use crate::registry::{self, HeapError};
use crate::theap::{self, rounded};
use crate::thread;
use crate::visit;
use crate::world::{Stopped, World};

/// A mimalloc heap of one thread, whose live blocks draw on a [`Budget`](malloc_api::Budget).
///
/// [`heap_account`] makes it.
pub struct OwnHeap<B> {
    heap: Heap,
    /// (O1) The calling thread's, as `heap` has it; one that serves nothing once the heap is torn down.
    theap: *mut ffi::mi_theap_t,
    /// Where blocks that are at hand are taken from: (O2) `theap`, or the one that serves nothing while the heap is tight.
    at_hand: Cell<*mut ffi::mi_theap_t>,
    budget: B,
    /// Bytes that are taken of the budget.
    taken: Cell<usize>,
    /// (O3) What is taken and no block was made of. While the heap is tight, four fifths of what live blocks do not have: a block has
    /// at most a quarter more than was spent for it, as [`rounded`] sizes are spent.
    unspent: Cell<usize>,
}

/// How mimalloc is asked for a block of some bytes.
type Serve = unsafe extern "C" fn(*mut ffi::mi_theap_t, usize) -> *mut c_void;

/// Bytes of blocks that are made at most for one of `size` bytes: itself, which has at most a quarter more, or some at once.
fn made_for(size: usize) -> usize {
    MADE_AT_ONCE.max(size.saturating_add(size / 4))
}

/// The thread that owns the heap, which nobody else uses: there is no one to stop.
struct Alone;

// SAFETY: 1, 2, 3: the heap and its blocks are the calling thread's, as neither `OwnHeap` nor a reference to it is `Send`.
unsafe impl World for Alone {
    fn stop(&self) {}

    unsafe fn start(&self) {}
}

/// Bytes to take ahead at least, where the budget has them: a count of the blocks takes as long as some hundred requests.
const AHEAD_BYTES: usize = 4 << 20;

/// With less ahead of the blocks that were made, the heap is tight.
const LEAST_AHEAD_BYTES: usize = 256 << 10;

/// An account for the calling thread, on a mimalloc heap of its own.
///
/// The budget counts the live blocks with what they can hold. A budget that has more gives the heap what it keeps for later requests,
/// and up to half as much again ahead, 4 MiB at least. A request that does not fit any more has the live blocks counted, so near its
/// limit an account is slower. The heap's records of some 200 KiB are not counted, nor near the limit what it keeps for later
/// requests; both come back when it ends.
///
/// # Errors
///
/// As [`InterpreterHeaps::new`](crate::InterpreterHeaps::new).
///
/// # Examples
///
/// ```
/// use malloc_api::{Budget, Malloc};
///
/// let budget = Budget::new(1 << 20);
/// let request = mimalloc_heaps::heap_account(&budget)?;
/// assert!(request.malloc(1000).is_some());
/// assert!(request.malloc(2 << 20).is_none(), "more than the budget has");
/// assert_eq!(request.usage().blocks, 1);
/// drop(request);
/// assert_eq!(budget.held(), 0);
/// # Ok::<(), mimalloc_heaps::HeapError>(())
/// ```
pub fn heap_account<B: ToBudget>(budget: B) -> Result<Account<OwnHeap<B>>, HeapError> {
    prepare()?;
    let mut registry = registry::lock();
    thread::begin(&mut registry).ok_or(HeapError::OutOfMemory)?;
    let heap = Heap::new();
    let Some(theap) = heap.open(&mut registry) else {
        // SAFETY: (1) it has no block.
        unsafe { heap.destroy(&mut registry) };
        return Err(HeapError::OutOfMemory);
    };
    let (taken, unspent) = (Cell::new(0), Cell::new(0));
    Ok(Account::new(OwnHeap { heap, theap, at_hand: Cell::new(theap), budget, taken, unspent }))
}

impl<B: ToBudget> OwnHeap<B> {
    /// Has `serve` find a block of `size` bytes, a [`rounded`] size, if the budget has them.
    #[inline(never)]
    fn within(&self, size: usize, serve: Serve) -> Option<NonNull<u8>> {
        if self.is_tight() {
            return self.within_tight(size, serve);
        }
        if self.unspent.get() < made_for(size) {
            self.refill(size)?;
            return self.within(size, serve);
        }
        // SAFETY: the calling thread's theap (O1).
        let block = NonNull::new(unsafe { serve(self.theap, size) }.cast())?;
        // SAFETY: (1) a live block.
        let made = unsafe { page_of(block) }.made_with(block);
        self.unspent.set(self.unspent.get() - made);
        Some(block)
    }

    /// As [`within`](Self::within) for a tight heap, which spends of what live blocks do not have.
    #[cold]
    #[inline(never)]
    fn within_tight(&self, size: usize, serve: Serve) -> Option<NonNull<u8>> {
        if self.unspent.get() < size {
            self.refill(size)?;
        }
        if !self.is_tight() {
            return self.within(size, serve);
        }
        self.unspent.set(self.unspent.get() - size);
        // SAFETY: the calling thread's theap (O1).
        NonNull::new(unsafe { serve(self.theap, size) }.cast())
    }

    fn is_tight(&self) -> bool {
        self.at_hand.get() != self.theap
    }

    /// Counts the blocks, and takes as much ahead as the budget allows; `None` if it has not got `size` bytes.
    #[cold]
    fn refill(&self, size: usize) -> Option<()> {
        let (live, made) = self.counted();
        let needed = made.checked_add(made_for(size))?;
        let mut ahead = AHEAD_BYTES.max(made / 2);
        while ahead >= LEAST_AHEAD_BYTES {
            if self.take_in_all(needed.checked_add(ahead)?) {
                self.unspent.set(made_for(size) + ahead);
                self.at_hand.set(self.theap);
                return Some(());
            }
            ahead /= 2;
        }
        self.at_hand.set(ffi::empty_theap());
        self.unspent.set(0);
        let needed = live.checked_add(block_bytes(size))?;
        while !self.take_in_all(needed.checked_add(ahead)?) {
            if ahead == 0 {
                return None;
            }
            ahead /= 2;
        }
        self.unspent.set(size + (ahead - ahead / 5));
        Some(())
    }

    /// Bytes of the live blocks, and of all that were made.
    fn counted(&self) -> (usize, usize) {
        let (mut live, mut made) = (0, 0);
        self.for_each_area(|area| {
            live += area.used * area.block_size;
            made += area.committed;
        });
        (live, made)
    }

    fn for_each_area(&self, mut work: impl FnMut(&ffi::mi_heap_area_t)) {
        let _all = visit::heap_areas(&Stopped::stop(&Alone), &self.heap, &mut |area| {
            work(area);
            ControlFlow::Continue(())
        });
    }

    /// Takes or gives, so that `bytes` in all are taken; `false` if the budget has not got them.
    fn take_in_all(&self, bytes: usize) -> bool {
        let taken = self.taken.get();
        match bytes.checked_sub(taken) {
            Some(more) if !self.budget.budget().take(more) => return false,
            Some(_) => {}
            None => self.budget.budget().give(taken - bytes),
        }
        self.taken.set(bytes);
        true
    }
}

// SAFETY: 1: mimalloc's blocks are exclusive and aligned, as `request` asks for `MIN_ALIGN` bytes, and live until the heap is torn
// down; 2, 3: as C's, and a block that stays where it is has room; 4: C does not unwind, nor does `B` (`ToBudget` 2), and counting
// allocates nothing; 5: the blocks are elsewhere, and the type is not `Clone`.
unsafe impl<B: ToBudget> Malloc for OwnHeap<B> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: (1) the calling thread's theap, or the one that serves nothing (O1, O2).
        match unsafe { theap::malloc(self.at_hand.get(), size) } {
            Some(block) => Some(block),
            None => self.within(rounded(request(size)?), ffi::mi_theap_malloc),
        }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = request_array(nelem, elsize)?;
        // SAFETY: (1) the calling thread's theap, or the one that serves nothing (O1, O2).
        match unsafe { theap::calloc(self.at_hand.get(), size) } {
            Some(block) => Some(block),
            None => self.within(rounded(size), ffi::mi_theap_zalloc),
        }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(block) = ptr else { return self.malloc(new_size) };
        let size = request(new_size)?;
        // SAFETY: (1) a live block (caller's 1).
        let room = unsafe { room_of(block) };
        if stays(room, size) {
            return ptr;
        }
        let Some(moved) = self.malloc(size) else { return ptr.filter(|_| size <= room) };
        // SAFETY: two live blocks with room for these bytes, of which one is new.
        unsafe { moved.copy_from_nonoverlapping(block, size.min(room)) };
        // SAFETY: (1) a live block (caller's 1), (2) not used again (2).
        unsafe { free::free(block) };
        Some(moved)
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        if let Some(block) = ptr {
            // SAFETY: (1) a live block (caller's 1), (2) not used again (2).
            unsafe { free::free(block) }
        }
    }
}

// SAFETY: 1: the type is not `Clone`.
unsafe impl<B: ToBudget> Pools for OwnHeap<B> {
    fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        self.for_each_area(|area| {
            usage.blocks += area.used;
            usage.bytes += area.used * area.block_size;
        });
        usage
    }

    unsafe fn tear_down(&mut self) {
        let mut registry = registry::lock();
        self.theap = ffi::empty_theap();
        self.at_hand.set(self.theap);
        self.heap.close(&mut registry);
        // SAFETY: (1) the caller's 1.
        unsafe { self.heap.destroy(&mut registry) };
        drop(registry);
        self.unspent.set(0);
        let taken = self.taken.take();
        idle::note_freed(taken);
        self.budget.budget().give(taken);
    }
}

impl<B> fmt::Debug for OwnHeap<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnHeap").field("taken", &self.taken.get()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use malloc_api::MIN_ALIGN;

    use super::*;

    /// Any order of requests of any size, with a heap that is tight in between.
    #[test]
    fn no_block_is_made_of_bytes_that_were_not_taken() {
        let budget = malloc_api::Budget::new(64 << 20);
        let account = heap_account(&budget).unwrap();
        let heap = account.pools();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut live = std::vec::Vec::new();
        let mut turns = [0, 0];
        for step in 0..200_000 {
            let most = if rng.u8(0..100) == 0 { 3 << 20 } else { 200_000 };
            let size = rng.usize(0..most) >> rng.u32(0..14);
            if rng.usize(0..60_000) >= live.len() {
                live.extend(account.malloc(size));
            } else {
                let block = live.swap_remove(rng.usize(..live.len()));
                // SAFETY: (1) live; (2) not used afterwards.
                unsafe { account.free(Some(block)) };
            }
            if step % 20_000 == 0 {
                budget.set_limit(if step % 40_000 == 0 { 64 << 20 } else { 1 << 30 });
            }
            if step % 50 == 0 {
                let (bytes, made) = heap.counted();
                turns[usize::from(heap.is_tight())] += 1;
                let paid = if heap.is_tight() { bytes } else { made + heap.unspent.get() };
                assert!(paid <= heap.taken.get(), "{step}: {paid} of {}", heap.taken.get());
            }
        }
        assert!(turns.iter().all(|turns| *turns > 300), "{turns:?}");
    }

    #[test]
    fn a_large_block_is_counted_with_all_that_it_has() {
        for size in (1000..9 << 20).step_by(99_991).chain([512 << 10, (512 << 10) + 1]) {
            let bytes = block_bytes(rounded(size));
            for limit in [bytes - 1, bytes] {
                let budget = malloc_api::Budget::new(limit);
                let account = heap_account(&budget).unwrap();
                assert_eq!(account.malloc(size).is_some(), limit == bytes, "{size} in {limit}");
                assert!(account.usage().bytes <= limit, "{size} in {limit}");
            }
        }
    }

    #[test]
    fn a_block_has_at_most_a_quarter_more_than_is_spent() {
        for size in (0..=70_000).chain((1 << 17..1 << 24).step_by(4093)) {
            let spent = rounded(size);
            let block = block_bytes(spent);
            assert!(
                spent >= size.max(MIN_ALIGN) && block * 4 <= spent * 5,
                "{size}: {spent}, {block}"
            );
        }
    }
}
