//! Owns [`Interpreter`]: what the threads of one interpreter share, and the interpreter's beginning and end.

use core::iter;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use pymem_sync::qsbr::{Domain, Limits};

use crate::ffi;
use crate::heap_set::HeapSet;
use crate::registry::{self, NOBODY, Registry};
use crate::thread_state::RetiredBlock;

/// The record that was made last; changes under the registry's lock.
static NEWEST: AtomicPtr<Interpreter> = AtomicPtr::new(ptr::null_mut());

/// What the threads of one interpreter share. A record is never freed; a later interpreter uses it again.
#[derive(Debug)]
pub(crate) struct Interpreter {
    /// Differs for each interpreter that has used this record; [`NOBODY`] between two.
    id: AtomicU64,
    /// How many `InterpreterHeaps` and attached threads refer to it; changes under the registry's lock.
    handles: AtomicUsize,
    /// The set that was abandoned last, by a thread that detached; each leads to the one before.
    abandoned: AtomicPtr<HeapSet>,
    /// Delayed free.
    pub(crate) domain: Domain<RetiredBlock>,
    limit_items: AtomicUsize,
    limit_bytes: AtomicUsize,
    /// The record that was made before this one.
    next: Option<&'static Interpreter>,
}

impl Interpreter {
    /// Starts an interpreter with one handle, in the record of an ended one if there is one; `None` if there is no memory.
    pub(crate) fn start(registry: &mut Registry) -> Option<&'static Self> {
        let ended = Self::all(registry).find(|interpreter| interpreter.id() == NOBODY);
        let interpreter = ended.or_else(|| Self::create(registry))?;
        interpreter.set_limits(Limits::default());
        interpreter.id.store(registry.next_interpreter(), Ordering::Relaxed);
        interpreter.retain(registry);
        Some(interpreter)
    }

    /// Every record, live or ended, newest first.
    pub(crate) fn all(_registry: &Registry) -> impl Iterator<Item = &'static Self> + use<> {
        // SAFETY: null or a record, which lives for ever.
        let newest = unsafe { NEWEST.load(Ordering::Relaxed).as_ref() };
        iter::successors(newest, |interpreter| interpreter.next)
    }

    /// A new record, as after an end; `None` if there is no memory.
    fn create(registry: &mut Registry) -> Option<&'static Self> {
        // SAFETY: the alignment is a power of two. Plain mimalloc, since Rust's global allocator may be one of ours.
        let memory = unsafe { ffi::mi_zalloc_aligned(size_of::<Self>(), align_of::<Self>()) };
        let memory = NonNull::new(memory.cast::<Self>())?;
        // SAFETY: fresh memory of the right size and alignment, never freed.
        unsafe {
            memory.write(Self {
                id: AtomicU64::new(NOBODY),
                handles: AtomicUsize::new(0),
                abandoned: AtomicPtr::new(ptr::null_mut()),
                domain: Domain::new(),
                limit_items: AtomicUsize::new(0),
                limit_bytes: AtomicUsize::new(0),
                next: Self::all(registry).next(),
            });
        }
        // SAFETY: just written, never freed, and only shared.
        let interpreter: &'static Self = unsafe { memory.as_ref() };
        NEWEST.store(memory.as_ptr(), Ordering::Relaxed);
        Some(interpreter)
    }

    /// Changes the limits of delayed free for threads that attach from now on.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.limit_items.store(limits.items, Ordering::Relaxed);
        self.limit_bytes.store(limits.bytes, Ordering::Relaxed);
    }

    /// The interpreter's number.
    pub(crate) fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    /// The limits of delayed free for threads that attach from now on.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            items: self.limit_items.load(Ordering::Relaxed),
            bytes: self.limit_bytes.load(Ordering::Relaxed),
        }
    }

    /// One more handle.
    pub(crate) fn retain(&self, _registry: &mut Registry) {
        self.handles.store(self.handles.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Keeps `set`, which nobody owns, for the next thread that attaches.
    pub(crate) fn abandon(&self, _registry: &mut Registry, set: &'static HeapSet) {
        // SAFETY: null or a set, which lives for ever.
        set.below().set(unsafe { self.abandoned.load(Ordering::Relaxed).as_ref() });
        self.abandoned.store(ptr::from_ref(set).cast_mut(), Ordering::Relaxed);
    }

    /// The set that was abandoned last, which is then on no list.
    pub(crate) fn adopt(&self, _registry: &mut Registry) -> Option<&'static HeapSet> {
        // SAFETY: null or a set, which lives for ever.
        let set: &'static HeapSet = unsafe { self.abandoned.load(Ordering::Relaxed).as_ref() }?;
        let below = set.below().take().map_or(ptr::null_mut(), |set| ptr::from_ref(set).cast_mut());
        self.abandoned.store(below, Ordering::Relaxed);
        Some(set)
    }

    /// One handle less; the last one ends the interpreter.
    pub(crate) fn leave(&self) {
        let registry = registry::lock();
        let left = self.handles.load(Ordering::Relaxed) - 1;
        self.handles.store(left, Ordering::Relaxed);
        drop(registry);
        if left == 0 {
            self.end();
        }
    }

    /// Ends the interpreter: reclaims what waits, and leaves its sets to later interpreters.
    ///
    /// No handle is left, so no thread is attached. Live blocks stay live and can be freed by any thread; a
    /// set that has some is used again when the last of them is gone.
    fn end(&self) {
        while self.domain.has_abandoned() {
            // SAFETY: (1) no thread is attached, and `ThreadHeaps::free_delayed` asks that detached threads hold no references (2).
            unsafe { self.domain.reclaim_all() };
        }
        let mut registry = registry::lock();
        while let Some(set) = self.adopt(&mut registry) {
            set.park(&mut registry);
        }
        self.id.store(NOBODY, Ordering::Relaxed);
    }
}
