//! Owns [`Heap`], one mimalloc heap and the theap through which its one owner allocates from it, and [`HeapKind`].
//!
//! A theap exists from `open` to `close`, both by the owning thread and both under the registry's lock; between two owners
//! a heap has none. So no theap of ours is ever freed by another thread, which is the shape that mimalloc 3.3.2 is safe in.

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::ffi;
use crate::registry::Registry;

/// Which of a thread's four heaps a block lives in; the tag that CPython's free-threaded build keeps in each page.
///
/// | kind | holds |
/// | --- | --- |
/// | `Mem` | buffers: what no collector visits |
/// | `Object` | objects that the cycle collector does not track |
/// | `Gc` | tracked objects |
/// | `GcPre` | tracked objects with two words (managed dict, weak references) before the object |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(u8)]
pub enum HeapKind {
    /// Tag 0: buffers.
    Mem = 0,
    /// Tag 1: objects without the collector.
    Object = 1,
    /// Tag 2: objects that the collector visits.
    Gc = 2,
    /// Tag 3: objects that the collector visits, with a header before them.
    GcPre = 3,
}

impl HeapKind {
    /// How many kinds there are.
    pub const COUNT: usize = 4;
    /// Every kind, in the order of the tags.
    pub const ALL: [Self; Self::COUNT] = [Self::Mem, Self::Object, Self::Gc, Self::GcPre];

    /// The tag, from 0 to 3.
    #[inline]
    #[must_use]
    pub const fn tag(self) -> usize {
        self as usize
    }

    /// The name that reports use: `mem`, `object`, `gc`, `gc_pre`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mem => "mem",
            Self::Object => "object",
            Self::Gc => "gc",
            Self::GcPre => "gc_pre",
        }
    }
}

impl fmt::Display for HeapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One mimalloc heap, made when the first block is asked of it. Deleted only while the world is stopped.
///
/// Relaxed atomics, as others read them only with the world stopped or under the registry's lock.
#[derive(Debug)]
pub(crate) struct Heap {
    /// Null before the first `open` and after a deletion.
    heap: AtomicPtr<ffi::mi_heap_t>,
    /// (H1) The owner's theap, or the theap that serves nothing; never null, never another thread's.
    theap: AtomicPtr<ffi::mi_theap_t>,
}

impl Heap {
    /// A heap that does not exist yet.
    pub(crate) fn new() -> Self {
        Self { heap: AtomicPtr::new(ptr::null_mut()), theap: AtomicPtr::new(ffi::empty_theap()) }
    }

    /// mimalloc's heap; `None` before the first block.
    pub(crate) fn get(&self) -> Option<ptr::NonNull<ffi::mi_heap_t>> {
        ptr::NonNull::new(self.heap.load(Ordering::Relaxed))
    }

    /// The owner's theap; the one that serves nothing while the heap is closed.
    #[inline]
    pub(crate) fn theap(&self) -> *mut ffi::mi_theap_t {
        self.theap.load(Ordering::Relaxed)
    }

    /// Whether an owner can allocate from the heap.
    pub(crate) fn is_open(&self) -> bool {
        self.theap() != ffi::empty_theap()
    }

    /// Makes the calling thread's theap, and the heap itself if there is none; `None` if there is no memory.
    ///
    /// The caller owns the heap, which is closed.
    pub(crate) fn open(&self, _registry: &mut Registry) -> Option<*mut ffi::mi_theap_t> {
        debug_assert!(!self.is_open(), "a heap was opened twice");
        let mut heap = self.heap.load(Ordering::Relaxed);
        if heap.is_null() {
            // SAFETY: no preconditions; the registry's lock keeps a fork out of mimalloc's own locks.
            heap = unsafe { ffi::mi_heap_new() };
            if heap.is_null() {
                return None;
            }
            self.heap.store(heap, Ordering::Relaxed);
        }
        // SAFETY: `heap` is live. Gives the calling thread's theap, or the one that serves nothing.
        let theap = unsafe { ffi::mi_heap_theap(heap) };
        if theap.is_null() || theap == ffi::empty_theap() {
            return None;
        }
        debug_assert!(
            self.is_registered(theap),
            "the theap's thread-local key is not where 3.3.2 keeps it"
        );
        self.theap.store(theap, Ordering::Relaxed);
        Some(theap)
    }

    /// Abandons the owner's pages to the heap and frees its theap; does nothing to a closed heap.
    ///
    /// For the owner. Pages with live blocks stay in the heap, where the next owner finds them and where a free of their
    /// last block by any thread gives them back.
    pub(crate) fn close(&self, _registry: &mut Registry) {
        let theap = self.theap();
        self.theap.store(ffi::empty_theap(), Ordering::Relaxed);
        // Otherwise the heap was closed, or mimalloc's own exit handler has already freed the theap.
        if theap != ffi::empty_theap() && self.is_registered(theap) {
            // SAFETY: the calling thread's own live theap (H1, and registered with its thread). Abandons every page.
            unsafe { ffi::_mi_theap_delete(theap, true) };
            // SAFETY: a key that holds a value has a slot, so nothing is allocated. The freed theap must not be found again.
            unsafe { ffi::_mi_thread_local_set(self.key(), ptr::null_mut()) };
        }
    }

    /// Abandons the pages of an owner that a fork has left behind.
    ///
    /// # Safety
    ///
    /// 1. The owner does not exist in this process, and was not inside mimalloc when the process was forked.
    pub(crate) unsafe fn close_for_dead_owner(&self, _registry: &mut Registry) {
        let theap = self.theap();
        self.theap.store(ffi::empty_theap(), Ordering::Relaxed);
        if theap != ffi::empty_theap() {
            // SAFETY: (1) nobody else uses the theap, and it is whole. It stays allocated, on its dead thread's list: freeing
            // it would take that list's lock.
            unsafe { ffi::_mi_theap_collect_abandon(theap) };
        }
    }

    /// Frees what the owner keeps for later: empty pages, and with `force` also the last of each size.
    ///
    /// # Safety
    ///
    /// 1. The caller is the owner, or the owner is stopped outside mimalloc.
    pub(crate) unsafe fn collect(&self, force: bool) {
        if self.is_open() {
            // SAFETY: a live theap (H1) that nobody uses meanwhile (1).
            unsafe { ffi::mi_theap_collect(self.theap(), force) };
        }
    }

    /// Deletes a closed heap without blocks, whose records take some 200 KiB; the next `open` makes another one.
    ///
    /// # Safety
    ///
    /// 1. No thread is inside mimalloc with a block of the heap: the world is stopped.
    pub(crate) unsafe fn delete_if_empty(&self, _registry: &mut Registry) {
        if let Some(heap) = self.get().filter(|_| !self.is_open() && self.pages() == 0) {
            self.heap.store(ptr::null_mut(), Ordering::Relaxed);
            // SAFETY: it has no theap, as it is closed, and no page, so nobody reaches it but this call: the last free of a
            // page, which may still be at work when the count is down, is over (1).
            unsafe { ffi::mi_heap_delete(heap.as_ptr()) };
        }
    }

    /// Frees every block of a closed heap, and the heap.
    ///
    /// # Safety
    ///
    /// 1. Nobody uses a block of the heap, now or afterwards.
    pub(crate) unsafe fn destroy(&self, _registry: &mut Registry) {
        debug_assert!(!self.is_open(), "a heap is closed before its end");
        if let Some(heap) = self.get() {
            self.heap.store(ptr::null_mut(), Ordering::Relaxed);
            // SAFETY: a live heap without a theap, whose blocks nobody uses (1).
            unsafe { ffi::mi_heap_destroy(heap.as_ptr()) };
        }
    }

    /// Pages with blocks, exact once the heap is closed.
    pub(crate) fn pages(&self) -> i64 {
        let Some(heap) = self.get() else { return 0 };
        let mut stats = ffi::Stats::new();
        // SAFETY: a live heap and a structure of the size and version that mimalloc checks.
        let known = unsafe { ffi::mi_heap_stats_get(heap.as_ptr(), &raw mut stats) };
        if known { stats.pages.current } else { i64::MAX }
    }

    /// Whether `theap` is what the calling thread has under the heap's key: false once mimalloc has ended the thread.
    fn is_registered(&self, theap: *mut ffi::mi_theap_t) -> bool {
        // SAFETY: any key may be asked for; a wrong or stale one gives null or another value.
        unsafe { ffi::_mi_thread_local_get(self.key()).cast() == theap }
    }

    /// mimalloc's key for the heap's thread-local theap.
    fn key(&self) -> usize {
        let heap = self.heap.load(Ordering::Relaxed).cast::<usize>();
        // SAFETY: in bounds: a heap that has been opened is live, and has hundreds of words.
        let key = unsafe { heap.add(KEY_WORD) };
        // SAFETY: in 3.3.2, which `ffi::linked_version` has confirmed, this word is the key: written once in `mi_heap_new`,
        // read-only since.
        unsafe { key.read() }
    }
}

/// Where `mi_heap_t` keeps its key, in words: after its subprocess, number, and two links.
const KEY_WORD: usize = 4;
