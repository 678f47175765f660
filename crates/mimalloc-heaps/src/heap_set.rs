//! Owns [`HeapSet`], a thread's four heaps as something that outlives the thread, and how a thread comes by one: it adopts
//! the set of a thread that has exited, else one of an ended interpreter in which nothing is left, else a new one.
//!
//! No remote free is stranded on the way. A set in the pool has no theap, so all of its pages are abandoned ones, and
//! mimalloc lets whoever frees into an abandoned page collect it at once: the last free gives the page back. Pages that the
//! next owner needs are found through the heap when it allocates.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use pymem_sync::{Node, Owned};

use crate::delayed::ThreadState;
use crate::ffi;
use crate::heap::Heap;
use crate::heap_kind::HeapKind;
use crate::registry::Registry;

/// No thread or interpreter has this number.
pub(crate) const NOBODY: u64 = 0;

/// The right to use a set, for one owner at a time; waits in an interpreter's pool between two owners.
pub(crate) type OwnedSet = Owned<'static, &'static HeapSet>;

/// Four heaps that one thread at a time allocates from. Made once, never freed.
///
/// The numbers are relaxed atomics that change under the registry's lock.
#[derive(Debug)]
pub(crate) struct HeapSet {
    heaps: [Heap; HeapKind::COUNT],
    /// The owner's thread number; [`NOBODY`] while the set waits for one.
    owner: AtomicU64,
    /// Whose interpreter's blocks are in the heaps; [`NOBODY`] once that has ended.
    interpreter: AtomicU64,
    /// The owner's side of delayed free; null without an owner.
    state: AtomicPtr<ThreadState>,
    /// (A1) The node of the one handle to this set.
    node: AtomicPtr<Node<&'static HeapSet>>,
    /// (A2) Whether the handle is out of every interpreter's and thread's hands.
    is_parked: AtomicBool,
    /// How many sets were made before this one.
    number: usize,
    /// The set that was made before this one.
    next: Option<&'static HeapSet>,
}

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
        // SAFETY: in bounds of the fresh allocation.
        let set = unsafe { &raw mut (*memory.as_ptr()).set };
        // SAFETY: fresh memory of the right size and alignment, never freed.
        unsafe {
            set.write(Self {
                heaps: core::array::from_fn(|_| Heap::new()),
                owner: AtomicU64::new(NOBODY),
                interpreter: AtomicU64::new(NOBODY),
                state: AtomicPtr::new(ptr::null_mut()),
                node: AtomicPtr::new(ptr::null_mut()),
                is_parked: AtomicBool::new(false),
                number: registry.first_set().map_or(0, |last| last.number + 1),
                next: registry.first_set(),
            });
        }
        // SAFETY: just written, never freed, and from here on only shared.
        let set: &'static Self = unsafe { &*set };
        // SAFETY: in bounds of the allocation.
        let node = unsafe { &raw mut (*memory.as_ptr()).node };
        // SAFETY: fresh memory of the right size and alignment, never freed.
        unsafe { node.write(Node::new(set)) };
        registry.add_set(set);
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

    /// The set that was made before this one.
    pub(crate) fn next(&self) -> Option<&'static Self> {
        self.next
    }

    /// The owner's thread number.
    pub(crate) fn owner(&self) -> u64 {
        self.owner.load(Ordering::Relaxed)
    }

    /// The interpreter's number.
    pub(crate) fn interpreter(&self) -> u64 {
        self.interpreter.load(Ordering::Relaxed)
    }

    /// The owner's side of delayed free; null without an owner.
    pub(crate) fn state(&self) -> *mut ThreadState {
        self.state.load(Ordering::Relaxed)
    }

    /// Makes the calling thread, with this number and state, the owner.
    pub(crate) fn begin(&self, _registry: &mut Registry, thread: u64, state: *mut ThreadState) {
        self.owner.store(thread, Ordering::Relaxed);
        self.state.store(state, Ordering::Relaxed);
    }

    /// Forgets the owner's state, which is about to be dropped.
    pub(crate) fn leave_state(&self) {
        self.state.store(ptr::null_mut(), Ordering::Relaxed);
    }

    /// Ends the calling thread's ownership: abandons its pages and frees its theaps.
    pub(crate) fn end(&self, registry: &mut Registry) {
        self.heaps.iter().for_each(|heap| heap.close(registry));
        self.owner.store(NOBODY, Ordering::Relaxed);
    }

    /// Ends the ownership of a thread that a fork has left behind, and returns the right to use the set and its state.
    ///
    /// # Safety
    ///
    /// 1. The owner does not exist in this process, and was not inside mimalloc or this crate when the process was forked.
    pub(crate) unsafe fn end_for_dead_owner(
        &self,
        registry: &mut Registry,
    ) -> (OwnedSet, *mut ThreadState) {
        for heap in &self.heaps {
            // SAFETY: (1) is the same there.
            unsafe { heap.close_for_dead_owner(registry) };
        }
        self.owner.store(NOBODY, Ordering::Relaxed);
        let state = self.state.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: (1) the owner had the one handle and does not exist.
        (unsafe { self.handle() }, state)
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
        let parked = registry.sets().find_map(|set| set.try_unpark(registry));
        let set = parked.or_else(|| Self::create(registry))?;
        set.interpreter.store(interpreter, Ordering::Relaxed);
        Some(set)
    }
}
