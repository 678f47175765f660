//! Owns [`InterpreterHeaps`]: what the threads of one interpreter share, and the interpreter's beginning and end.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::LazyLock;

use pymem_sync::AbandonedPool;
use pymem_sync::qsbr::{Domain, Limits};

use crate::adopt::{HeapSet, NOBODY};
use crate::delayed::RetiredBlock;
use crate::registry::{self, Registry};
use crate::thread::ThreadHeaps;
use crate::{HeapError, HeapKind, ffi, heap_index};

/// What the threads of one interpreter share. Made once and used again by a later interpreter, never freed.
#[derive(Debug)]
pub(crate) struct Interpreter {
    /// Differs for each interpreter that has used this record; [`NOBODY`] between two.
    id: AtomicU64,
    /// How many [`InterpreterHeaps`] and [`ThreadHeaps`] refer to it; changes under the registry's lock.
    handles: AtomicUsize,
    /// The sets whose threads have exited.
    pub(crate) pool: AbandonedPool<'static, &'static HeapSet>,
    /// Delayed free.
    pub(crate) domain: Domain<RetiredBlock>,
    limit_items: AtomicUsize,
    limit_bytes: AtomicUsize,
    /// The record that was made before this one.
    next: Option<&'static Interpreter>,
}

impl Interpreter {
    /// A new record on the registry's list, as after an end; `None` if there is no memory.
    fn create(registry: &mut Registry) -> Option<&'static Self> {
        // SAFETY: the alignment is a power of two. Plain mimalloc, since Rust's global allocator may be one of ours.
        let memory = unsafe { ffi::mi_zalloc_aligned(size_of::<Self>(), align_of::<Self>()) };
        let memory = NonNull::new(memory.cast::<Self>())?;
        // SAFETY: fresh memory of the right size and alignment, never freed.
        unsafe {
            memory.write(Self {
                id: AtomicU64::new(NOBODY),
                handles: AtomicUsize::new(0),
                pool: AbandonedPool::new(),
                domain: Domain::new(),
                limit_items: AtomicUsize::new(0),
                limit_bytes: AtomicUsize::new(0),
                next: registry.first_interpreter(),
            });
        }
        // SAFETY: just written, never freed, and only shared.
        let interpreter: &'static Self = unsafe { memory.as_ref() };
        registry.add_interpreter(interpreter);
        Some(interpreter)
    }

    /// Whether a later interpreter can use the record: its last handle is gone, and `end` is done.
    fn is_ended(&self) -> bool {
        self.id() == NOBODY
    }

    /// Starts a new interpreter with one handle.
    fn begin(&self, registry: &mut Registry) {
        self.set_limits(Limits::default());
        self.id.store(registry.next_interpreter(), Ordering::Relaxed);
        self.retain(registry);
    }

    fn set_limits(&self, limits: Limits) {
        self.limit_items.store(limits.items, Ordering::Relaxed);
        self.limit_bytes.store(limits.bytes, Ordering::Relaxed);
    }

    /// The interpreter's number.
    pub(crate) fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    /// The record that was made before this one.
    pub(crate) fn next(&self) -> Option<&'static Self> {
        self.next
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

    /// One handle less; true for the last one, whose holder then calls [`end`](Self::end) without the lock.
    #[must_use]
    pub(crate) fn release(&self, _registry: &mut Registry) -> bool {
        let left = self.handles.load(Ordering::Relaxed) - 1;
        self.handles.store(left, Ordering::Relaxed);
        left == 0
    }

    /// Ends the interpreter: reclaims what waits, and leaves its sets to later interpreters.
    ///
    /// For the holder of the last handle, so no thread is attached. Live blocks stay live and can be freed by any thread; a
    /// set that has some is used again when the last of them is gone.
    pub(crate) fn end(&self) {
        while self.domain.has_abandoned() {
            // SAFETY: (1) no thread is attached, and `ThreadHeaps::free_delayed` asks that detached threads hold no references (2).
            unsafe { self.domain.reclaim_all() };
        }
        let mut registry = registry::lock();
        while let Some(set) = self.pool.take() {
            HeapSet::park(set, &mut registry);
        }
        self.id.store(NOBODY, Ordering::Relaxed);
    }
}

/// The heaps of one interpreter: a pool of heap sets, and what delayed free needs to know about its threads.
///
/// Interpreters of one process stay apart: no block of one is ever handed out by, visited in or counted in another, not even
/// after its end. Dropping it ends the interpreter as soon as no thread is attached: blocks that wait for a delayed free are
/// freed; live blocks stay live, and any thread may still free them.
///
/// # Examples
///
/// ```
/// use mimalloc_heaps::{HeapKind, InterpreterHeaps};
///
/// let interpreter = InterpreterHeaps::new()?;
/// let heaps = interpreter.attach()?;
/// let block = heaps.malloc(HeapKind::Object, 100).expect("100 bytes");
/// assert_eq!(interpreter.kind_of(block), Some(HeapKind::Object));
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { heaps.free(Some(block)) };
/// # Ok::<(), mimalloc_heaps::HeapError>(())
/// ```
#[derive(Debug)]
pub struct InterpreterHeaps {
    pub(crate) interpreter: &'static Interpreter,
}

impl InterpreterHeaps {
    /// The heaps of a new interpreter.
    ///
    /// # Errors
    ///
    /// [`HeapError::Version`] if another mimalloc is linked; [`HeapError::ForkHandlers`] if those could not be registered;
    /// [`HeapError::OutOfMemory`].
    pub fn new() -> Result<Self, HeapError> {
        registry::prepare()?;
        let mut registry = registry::lock();
        let ended = registry.interpreters().find(|interpreter| interpreter.is_ended());
        let interpreter = match ended {
            Some(interpreter) => interpreter,
            None => Interpreter::create(&mut registry).ok_or(HeapError::OutOfMemory)?,
        };
        interpreter.begin(&mut registry);
        Ok(Self { interpreter })
    }

    /// The heaps that threads use which were never told of an interpreter; never ends.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), at the first call and the same ever after.
    pub fn main() -> Result<&'static Self, HeapError> {
        static MAIN: LazyLock<Result<InterpreterHeaps, HeapError>> =
            LazyLock::new(InterpreterHeaps::new);
        MAIN.as_ref().map_err(|error| *error)
    }

    /// Gives the calling thread four heaps of its own, adopted from a thread that has exited or fresh.
    ///
    /// Cheap: a heap that is fresh is made when the first block is asked of it. The thread counts as attached, also for
    /// delayed free, until it drops the result.
    ///
    /// # Errors
    ///
    /// [`HeapError::AlreadyAttached`], [`HeapError::OutOfMemory`].
    pub fn attach(&self) -> Result<ThreadHeaps, HeapError> {
        ThreadHeaps::attach(self.interpreter)
    }

    /// Which heap of this interpreter the block at `ptr` lives in; `None` for any other address.
    ///
    /// Any address may be asked for, but a block must stay live during the call.
    #[must_use]
    pub fn kind_of(&self, ptr: NonNull<u8>) -> Option<HeapKind> {
        let (set, kind) = heap_index::find(ptr)?;
        (set.interpreter() == self.interpreter.id()).then_some(kind)
    }

    /// A number that no other interpreter of the process has, before or after.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.interpreter.id()
    }

    /// The limits of delayed free for threads that attach from now on.
    pub fn set_delayed_limits(&self, limits: Limits) {
        self.interpreter.set_limits(limits);
    }
}

impl Drop for InterpreterHeaps {
    fn drop(&mut self) {
        let is_last = self.interpreter.release(&mut registry::lock());
        if is_last {
            self.interpreter.end();
        }
    }
}
