//! Owns [`HeapSet`]: a thread's four heaps, which outlive the thread. The next thread adopts them; else it takes the set of
//! an ended interpreter in which nothing is left; else a new one.
//!
//! No remote free is stranded on the way. An abandoned set has no theap, so all of its pages are abandoned ones, and
//! mimalloc lets whoever frees into an abandoned page collect it at once: the last free gives the page back. Pages that the
//! next owner needs are found through the heap when it allocates.

use core::cell::{Cell, UnsafeCell};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use core::{fmt, iter};

use crate::ffi;
use crate::heap::{Heap, HeapKind};
use crate::registry::{NOBODY, Registry};
use crate::thread_state::ThreadState;

/// The set that was made last; changes under the registry's lock.
static NEWEST: AtomicPtr<HeapSet> = AtomicPtr::new(ptr::null_mut());

/// Four heaps that one thread at a time allocates from. Made once, never freed.
///
/// The numbers are relaxed atomics that change under the registry's lock.
pub(crate) struct HeapSet {
    heaps: [Heap; HeapKind::COUNT],
    /// The owner's number, which no owner of any set had before; [`NOBODY`] while the set waits for one.
    owner: AtomicU64,
    /// Whose interpreter's blocks are in the heaps; [`NOBODY`] once that has ended.
    interpreter: AtomicU64,
    /// (A1) The owner's side of delayed free; `None` without an owner. Changed by the owner's thread, read by that thread,
    /// or by another one while the owner is stopped.
    state: UnsafeCell<Option<ThreadState>>,
    /// (A2) The next set on the list that this one is on: of the sets of its owner's thread, used by that thread alone, or of
    /// the abandoned sets of its interpreter, used under the registry's lock.
    below: Cell<Option<&'static HeapSet>>,
    /// How many sets were made before this one.
    number: usize,
    /// The set that was made before this one.
    next: Option<&'static HeapSet>,
}

// SAFETY: the fields that are not atomic have one user at a time (A1, A2), or never change. What they hold may be used and
// dropped by another thread than the one that made it: by who stops the world, and in a forked child.
unsafe impl Sync for HeapSet {}

impl fmt::Debug for HeapSet {
    /// The number alone: the rest may be somebody else's at the moment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapSet").field("number", &self.number).finish_non_exhaustive()
    }
}

impl HeapSet {
    /// A new set, owned by nobody and of no interpreter, on the list of all; `None` if there is no memory.
    fn create(registry: &mut Registry) -> Option<&'static Self> {
        // SAFETY: the alignment is a power of two. Plain mimalloc, since Rust's global allocator may be one of ours.
        let memory = unsafe { ffi::mi_zalloc_aligned(size_of::<Self>(), align_of::<Self>()) };
        let memory = NonNull::new(memory.cast::<Self>())?;
        let before = Self::all(registry).next();
        // SAFETY: fresh memory of the right size and alignment, never freed.
        unsafe {
            memory.write(Self {
                heaps: core::array::from_fn(|_| Heap::new()),
                owner: AtomicU64::new(NOBODY),
                interpreter: AtomicU64::new(NOBODY),
                state: UnsafeCell::new(None),
                below: Cell::new(None),
                number: before.map_or(0, |last| last.number + 1),
                next: before,
            });
        }
        NEWEST.store(memory.as_ptr(), Ordering::Relaxed);
        // SAFETY: just written, never freed, and from here on only shared.
        Some(unsafe { memory.as_ref() })
    }

    /// A set for a thread of `interpreter` that found none abandoned: one of an ended interpreter in which nothing is left,
    /// else a new one; `None` if there is no memory.
    pub(crate) fn for_interpreter(
        registry: &mut Registry,
        interpreter: u64,
    ) -> Option<&'static Self> {
        let empty = Self::all(registry).find(|set| {
            set.interpreter() == NOBODY && set.heaps.iter().all(|heap| heap.pages() == 0)
        });
        let set = empty.or_else(|| Self::create(registry))?;
        set.interpreter.store(interpreter, Ordering::Relaxed);
        Some(set)
    }

    /// Leaves the set, which nobody owns, to any later interpreter, once its last block has been freed.
    pub(crate) fn park(&self, _registry: &mut Registry) {
        self.interpreter.store(NOBODY, Ordering::Relaxed);
    }

    /// The heap of `kind`.
    #[inline]
    pub(crate) fn heap(&self, kind: HeapKind) -> &Heap {
        &self.heaps[kind.tag()]
    }

    /// Every heap with its kind.
    pub(crate) fn heaps(&self) -> impl Iterator<Item = (HeapKind, &Heap)> {
        HeapKind::ALL.into_iter().zip(&self.heaps)
    }

    /// How many sets were made before this one.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Every set, of any interpreter, newest first.
    pub(crate) fn all(_registry: &Registry) -> impl Iterator<Item = &'static Self> + use<> {
        // SAFETY: null or a set, which lives for ever.
        let newest = unsafe { NEWEST.load(Ordering::Relaxed).as_ref() };
        iter::successors(newest, |set| set.next)
    }

    /// Whether a thread owns the set.
    pub(crate) fn is_owned(&self) -> bool {
        self.owner() != NOBODY
    }

    /// The owner's number.
    pub(crate) fn owner(&self) -> u64 {
        self.owner.load(Ordering::Relaxed)
    }

    /// The interpreter's number.
    pub(crate) fn interpreter(&self) -> u64 {
        self.interpreter.load(Ordering::Relaxed)
    }

    /// The owner's side of delayed free; `None` without an owner.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner, or the owner is stopped, while the result lives.
    #[inline]
    pub(crate) unsafe fn state(&self) -> Option<&ThreadState> {
        // SAFETY: nobody changes it meanwhile (A1, 1).
        unsafe { &*self.state.get() }.as_ref()
    }

    /// The next set on the list that this one is on; for who may use that list (A2).
    pub(crate) fn below(&self) -> &Cell<Option<&'static Self>> {
        &self.below
    }

    /// Makes the calling thread the owner, and returns its number as that.
    ///
    /// # Safety
    ///
    /// 1. Nobody owns the set, and it is on no list from which somebody else could take it.
    pub(crate) unsafe fn begin(&self, registry: &mut Registry, state: ThreadState) -> u64 {
        let owner = registry.next_owner();
        // SAFETY: this thread is becoming the owner (A1), the only one (1).
        unsafe { self.state.get().write(Some(state)) };
        self.owner.store(owner, Ordering::Relaxed);
        owner
    }

    /// Takes the owner's state out, to drop it without the registry's lock: that may allocate.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner, or the owner does not exist in this process; nobody uses the state meanwhile.
    pub(crate) unsafe fn take_state(&self) -> Option<ThreadState> {
        // SAFETY: the owner's thread changes it, or stands for it (A1, 1).
        unsafe { self.state.get().replace(None) }
    }

    /// Ends the calling thread's ownership: abandons its pages and frees its theaps.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner, and uses neither the set's theaps nor its state afterwards.
    pub(crate) unsafe fn end(&self, registry: &mut Registry) {
        self.heaps.iter().for_each(|heap| heap.close(registry));
        self.owner.store(NOBODY, Ordering::Relaxed);
    }

    /// Ends the ownership of a thread that a fork has left behind.
    ///
    /// # Safety
    ///
    /// 1. The owner does not exist in this process, and was not inside mimalloc or this crate when the process was forked.
    pub(crate) unsafe fn end_for_dead_owner(&self, registry: &mut Registry) {
        for heap in &self.heaps {
            // SAFETY: (1) is the same there.
            unsafe { heap.close_for_dead_owner(registry) };
        }
        self.owner.store(NOBODY, Ordering::Relaxed);
    }
}
