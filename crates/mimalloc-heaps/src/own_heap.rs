//! Owns [`OwnHeap`]: a heap of one thread that draws on a budget and ends with all of its blocks, for an account.
//!
//! mimalloc has no place where a heap asks for more memory, so the heap takes bytes of the budget ahead, and each request spends of
//! four fifths of them. When they are spent, the live blocks are counted, and the heap takes what is missing.

use core::cell::Cell;
use core::fmt;
use core::ops::ControlFlow;
use core::ptr::NonNull;

use malloc_api::{Account, MIN_ALIGN, Malloc, Pools, ToBudget, Usage};

use crate::ffi;
use crate::free;
use crate::heap::Heap;
use crate::mi_malloc::{as_c, request, request_array};
use crate::registry::{self, HeapError};
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
    budget: B,
    /// Bytes that are taken of the budget.
    taken: Cell<usize>,
    /// (O2) Four fifths of what live blocks do not have of these. A block has at most a quarter more than was spent for it, as
    /// [`rounded`] sizes are spent.
    unspent: Cell<usize>,
}

/// What is asked for and spent for a block of `size` bytes: no less than [`MIN_ALIGN`], and a multiple of that. Sizes of mimalloc's
/// blocks are at most a quarter apart there.
#[inline]
fn rounded(size: usize) -> usize {
    (size + (MIN_ALIGN - 1) + usize::from(size == 0)) & !(MIN_ALIGN - 1)
}

/// How a block of some bytes is made, once these are spent.
type Serve<B> = fn(&OwnHeap<B>, usize) -> Option<NonNull<u8>>;

/// The thread that owns the heap, which nobody else uses: there is no one to stop.
struct Alone;

// SAFETY: 1, 2, 3: the heap and its blocks are the calling thread's, as neither `OwnHeap` nor a reference to it is `Send`.
unsafe impl World for Alone {
    fn stop(&self) {}

    unsafe fn start(&self) {}
}

/// Bytes to take ahead at least, where the budget has them: a count of the blocks takes as long as some hundred requests.
const AHEAD_BYTES: usize = 4 << 20;

/// An account for the calling thread, on a mimalloc heap of its own.
///
/// The budget counts the live blocks with what they can hold; of a budget that has more, the heap takes up to half as much again ahead,
/// 4 MiB at least. A request that does not fit any more has the live blocks counted, so near its limit an account is slower. What
/// the heap keeps for later requests is not counted, nor its records of some 200 KiB, which come back when it ends.
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
    registry::prepare()?;
    let mut registry = registry::lock();
    thread::begin(&mut registry).ok_or(HeapError::OutOfMemory)?;
    let heap = Heap::new();
    let Some(theap) = heap.open(&mut registry) else {
        // SAFETY: (1) it has no block.
        unsafe { heap.destroy(&mut registry) };
        return Err(HeapError::OutOfMemory);
    };
    let (taken, unspent) = (Cell::new(0), Cell::new(0));
    Ok(Account::new(OwnHeap { heap, theap, budget, taken, unspent }))
}

impl<B: ToBudget> OwnHeap<B> {
    /// Spends `size` bytes, a [`rounded`] size, for a block; were there less?
    #[inline]
    fn overspends(&self, size: usize) -> bool {
        // Written before it is looked at: one instruction does both.
        let (left, is_over) = self.unspent.get().overflowing_sub(size);
        self.unspent.set(left);
        is_over
    }

    /// Has `serve` make a block of `size` bytes if the budget has them.
    #[inline]
    fn within(&self, size: usize, serve: Serve<B>) -> Option<NonNull<u8>> {
        // Each a call at the end, for which nothing is kept on the stack.
        if self.overspends(size) { self.refill_for(size, serve) } else { serve(self, size) }
    }

    #[cold]
    #[inline(never)]
    fn refill_for(&self, size: usize, serve: Serve<B>) -> Option<NonNull<u8>> {
        self.refill(size)?;
        serve(self, size)
    }

    /// After [`overspends`](Self::overspends): counts what live blocks have, and takes as much ahead as the budget allows; `None` if it
    /// has not got `size` bytes.
    #[cold]
    fn refill(&self, size: usize) -> Option<()> {
        self.unspent.set(0);
        // SAFETY: no preconditions.
        let needed = unsafe { ffi::mi_good_size(size) };
        let live = self.usage().bytes;
        let needed = live.checked_add(needed)?;
        let mut ahead = AHEAD_BYTES.max(live / 2);
        while !self.take_in_all(needed.checked_add(ahead)?) {
            if ahead == 0 {
                return None;
            }
            ahead /= 2;
        }
        self.unspent.set(ahead - ahead / 5);
        Some(())
    }

    #[inline]
    fn uncounted_small(&self, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the calling thread's theap (O1), and a small size.
        NonNull::new(unsafe { ffi::mi_theap_malloc_small(self.theap, size) }.cast())
    }

    #[inline]
    fn uncounted(&self, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the calling thread's theap (O1).
        NonNull::new(unsafe { ffi::mi_theap_malloc(self.theap, size) }.cast())
    }

    #[inline]
    fn uncounted_zeroed(&self, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the calling thread's theap (O1).
        NonNull::new(unsafe { ffi::mi_theap_zalloc(self.theap, size) }.cast())
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
        // A multiple of `MIN_ALIGN` itself, so that a rounded size is small where `size` is.
        if size <= ffi::MI_SMALL_SIZE_MAX {
            return self.within(rounded(size), Self::uncounted_small);
        }
        self.within(rounded(request(size)?), Self::uncounted)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.within(rounded(request_array(nelem, elsize)?), Self::uncounted_zeroed)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let size = rounded(request(new_size)?);
        // SAFETY: null or a live block (caller's 1).
        let room = unsafe { ffi::mi_usable_size(as_c(ptr)) };
        // mimalloc leaves the block where it is, and nothing is spent. Without a block there is no room, and `size` is not 0.
        if (room / 2..=room).contains(&size) {
            return ptr;
        }
        if self.overspends(size) && self.refill(size).is_none() {
            return ptr.filter(|_| size <= room);
        }
        // SAFETY: the calling thread's theap (O1), and null or a live block (caller's 1) that is not used again (2).
        NonNull::new(unsafe { ffi::mi_theap_realloc(self.theap, as_c(ptr), size) }.cast())
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
        let _all = visit::heap_areas(&Stopped::stop(&Alone), &self.heap, &mut |area| {
            usage.blocks += area.used;
            usage.bytes += area.used * area.block_size;
            ControlFlow::Continue(())
        });
        usage
    }

    unsafe fn tear_down(&mut self) {
        let mut registry = registry::lock();
        self.theap = ffi::empty_theap();
        self.heap.close(&mut registry);
        // SAFETY: (1) the caller's 1.
        unsafe { self.heap.destroy(&mut registry) };
        drop(registry);
        self.unspent.set(0);
        self.budget.budget().give(self.taken.take());
    }
}

const _: () = assert!(ffi::MI_SMALL_SIZE_MAX % MIN_ALIGN == 0);

impl<B> fmt::Debug for OwnHeap<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnHeap").field("taken", &self.taken.get()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_at_most_a_quarter_more_than_is_spent() {
        for size in (0..=70_000).chain((1 << 17..1 << 24).step_by(4093)) {
            let spent = rounded(size);
            // SAFETY: no preconditions.
            let block = unsafe { ffi::mi_good_size(spent) };
            assert!(
                spent >= size.max(MIN_ALIGN) && block * 4 <= spent * 5,
                "{size}: {spent}, {block}"
            );
        }
    }
}
