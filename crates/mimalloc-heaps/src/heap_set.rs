//! Owns [`HeapSet`]: a thread's four heaps, which outlive the thread. The next thread adopts them; else it takes the set of
//! an ended interpreter in which nothing is left; else a new one.
//!
//! No remote free is stranded on the way. A set in the pool has no theap, so all of its pages are abandoned ones, and
//! mimalloc lets whoever frees into an abandoned page collect it at once: the last free gives the page back. Pages that the
//! next owner needs are found through the heap when it allocates.

use core::cell::{Cell, UnsafeCell};
use core::iter;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use pymem_sync::{Node, Owned};

use crate::ffi;
use crate::heap::Heap;
use crate::heap_kind::HeapKind;
use crate::registry::{NOBODY, Registry};
use crate::thread_state::ThreadState;

/// The right to use a set, for one owner at a time; waits in an interpreter's pool between two owners.
pub(crate) type OwnedSet = Owned<'static, &'static HeapSet>;

/// The set that was made last; changes under the registry's lock.
static NEWEST: AtomicPtr<HeapSet> = AtomicPtr::new(ptr::null_mut());

/// Four heaps that one thread at a time allocates from. Made once, never freed.
///
/// The numbers are relaxed atomics that change under the registry's lock.
#[derive(Debug)]
pub(crate) struct HeapSet {
    heaps: [Heap; HeapKind::COUNT],
    /// The owner's number, which no owner of any set had before; [`NOBODY`] while the set waits for one.
    owner: AtomicU64,
    /// Whose interpreter's blocks are in the heaps; [`NOBODY`] once that has ended.
    interpreter: AtomicU64,
    /// (A3) The owner's side of delayed free; `None` without an owner. Changed by the owner's thread, read by that thread,
    /// or by another one while the owner is stopped.
    state: UnsafeCell<Option<ThreadState>>,
    /// (A4) The set that the owner's thread has in another interpreter; used by that thread alone.
    next_of_thread: Cell<Option<&'static HeapSet>>,
    /// (A1) The node of the one handle to this set. The owner has the handle without holding it.
    node: AtomicPtr<Node<&'static HeapSet>>,
    /// (A2) Whether the handle is out of every interpreter's and thread's hands.
    is_parked: AtomicBool,
    /// How many sets were made before this one.
    number: usize,
    /// The set that was made before this one.
    next: Option<&'static HeapSet>,
}

// SAFETY: the fields that are not atomic have one user at a time (A3, A4), or never change. What they hold may be used and
// dropped by another thread than the one that made it: by who stops the world, and in a forked child.
unsafe impl Sync for HeapSet {}

/// A set and the node in which it waits, in one allocation.
#[repr(C)]
struct Allocation {
    node: Node<&'static HeapSet>,
    set: HeapSet,
}

impl HeapSet {
    /// A new set, owned by nobody and of no interpreter, on the registry's list; `None` if there is no memory.
    fn create(registry: &mut Registry) -> Option<OwnedSet> {
        // SAFETY: the alignment is a power of two. Plain mimalloc, since Rust's global allocator may be one of ours.
        let memory =
            unsafe { ffi::mi_zalloc_aligned(size_of::<Allocation>(), align_of::<Allocation>()) };
        let memory = NonNull::new(memory.cast::<Allocation>())?;
        let before = Self::all(registry).next();
        // SAFETY: in bounds of the fresh allocation.
        let set = unsafe { &raw mut (*memory.as_ptr()).set };
        // SAFETY: fresh memory of the right size and alignment, never freed.
        unsafe {
            set.write(Self {
                heaps: core::array::from_fn(|_| Heap::new()),
                owner: AtomicU64::new(NOBODY),
                interpreter: AtomicU64::new(NOBODY),
                state: UnsafeCell::new(None),
                next_of_thread: Cell::new(None),
                node: AtomicPtr::new(ptr::null_mut()),
                is_parked: AtomicBool::new(false),
                number: before.map_or(0, |last| last.number + 1),
                next: before,
            });
        }
        // SAFETY: just written, never freed, and from here on only shared.
        let set: &'static Self = unsafe { &*set };
        // SAFETY: in bounds of the allocation.
        let node = unsafe { &raw mut (*memory.as_ptr()).node };
        // SAFETY: fresh memory of the right size and alignment, never freed.
        unsafe { node.write(Node::new(set)) };
        NEWEST.store(ptr::from_ref(set).cast_mut(), Ordering::Relaxed);
        // SAFETY: just written, never freed, disjoint from `set`, and borrowed only here.
        let node: &'static mut Node<&'static Self> = unsafe { &mut *node };
        let handle = Owned::new(node).into_raw();
        set.node.store(handle.as_ptr(), Ordering::Relaxed);
        // SAFETY: (1) from `into_raw` just now, the first handle made of it; (2) nodes live for ever.
        Some(unsafe { Owned::from_raw(handle) })
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
        // SAFETY: nobody changes it meanwhile (A3, 1).
        unsafe { &*self.state.get() }.as_ref()
    }

    /// The set that the owner's thread has in another interpreter; for that thread.
    pub(crate) fn next_of_thread(&self) -> &Cell<Option<&'static Self>> {
        &self.next_of_thread
    }

    /// Makes the calling thread, with this number, the owner of what it has the handle of.
    pub(crate) fn begin(
        set: OwnedSet,
        registry: &mut Registry,
        state: ThreadState,
    ) -> (&'static Self, u64) {
        let this: &'static Self = *set;
        drop(set); // A handle without a drop: `end` makes it again.
        let owner = registry.next_owner();
        // SAFETY: this thread is becoming the owner (A3), and nobody else has the handle (A1).
        unsafe { this.state.get().write(Some(state)) };
        this.owner.store(owner, Ordering::Relaxed);
        (this, owner)
    }

    /// Takes the owner's state out, to drop it without the registry's lock: that may allocate.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner, or the owner does not exist in this process; nobody uses the state meanwhile.
    pub(crate) unsafe fn take_state(&self) -> Option<ThreadState> {
        // SAFETY: the owner's thread changes it, or stands for it (A3, 1).
        unsafe { self.state.get().replace(None) }
    }

    /// Ends the calling thread's ownership: abandons its pages and frees its theaps; returns the right to use the set.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the owner, and uses neither the set's theaps nor its state afterwards.
    pub(crate) unsafe fn end(&self, registry: &mut Registry) -> OwnedSet {
        self.heaps.iter().for_each(|heap| heap.close(registry));
        self.owner.store(NOBODY, Ordering::Relaxed);
        // SAFETY: (1) the owner has the one handle (A1), and is no owner any more.
        unsafe { self.handle() }
    }

    /// Ends the ownership of a thread that a fork has left behind, and returns the right to use the set.
    ///
    /// # Safety
    ///
    /// 1. The owner does not exist in this process, and was not inside mimalloc or this crate when the process was forked.
    pub(crate) unsafe fn end_for_dead_owner(&self, registry: &mut Registry) -> OwnedSet {
        for heap in &self.heaps {
            // SAFETY: (1) is the same there.
            unsafe { heap.close_for_dead_owner(registry) };
        }
        self.owner.store(NOBODY, Ordering::Relaxed);
        // SAFETY: (1) the owner had the one handle (A1) and does not exist.
        unsafe { self.handle() }
    }

    /// Leaves the set to any later interpreter, once its last block has been freed.
    pub(crate) fn park(set: OwnedSet, _registry: &mut Registry) {
        let this: &'static Self = *set;
        drop(set); // A handle without a drop: `handle` makes it again.
        this.interpreter.store(NOBODY, Ordering::Relaxed);
        this.is_parked.store(true, Ordering::Relaxed);
    }

    /// The right to use a parked set in which nothing is left; `None` if it has blocks or is in use.
    fn try_unpark(&self, _registry: &mut Registry) -> Option<OwnedSet> {
        if !self.is_parked.load(Ordering::Relaxed)
            || self.heaps.iter().any(|heap| heap.pages() != 0)
        {
            return None;
        }
        self.is_parked.store(false, Ordering::Relaxed);
        // SAFETY: (1) parked until now, so nobody had the handle (A2), and the lock keeps others from taking it too.
        Some(unsafe { self.handle() })
    }

    /// The one handle, made again.
    ///
    /// # Safety
    ///
    /// 1. Nobody else has it.
    unsafe fn handle(&self) -> OwnedSet {
        let node = self.node.load(Ordering::Relaxed);
        // SAFETY: `create` has stored the node before anybody could reach the set.
        let node = unsafe { NonNull::new_unchecked(node) };
        // SAFETY: (1) from `Owned::into_raw` (A1), and no other handle is in use (1); (2) nodes live for ever.
        unsafe { Owned::from_raw(node) }
    }

    /// A set for a thread of `interpreter` that found none in its pool; `None` if there is no memory.
    pub(crate) fn unpark_or_create(registry: &mut Registry, interpreter: u64) -> Option<OwnedSet> {
        let parked = Self::all(registry).find_map(|set| set.try_unpark(registry));
        let set = parked.or_else(|| Self::create(registry))?;
        set.interpreter.store(interpreter, Ordering::Relaxed);
        Some(set)
    }
}
