//! Owns [`ThreadHeaps`]: one thread's four heaps, from attach to detach, and the order of things at thread exit.
//!
//! At exit Rust's thread-local destructors run first, ours among them, which lets mimalloc end the thread as soon as its last
//! `ThreadHeaps` is gone: under the registry's lock, so that no fork meets mimalloc's own locks taken. mimalloc's exit handler
//! comes later and mostly finds nothing to do. If a C host drops a `ThreadHeaps` even later, that finds its theaps gone and
//! only gives its set back.

use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};

use malloc_api::MIN_ALIGN;

use crate::adopt::{HeapSet, NOBODY, OwnedSet};
use crate::delayed::ThreadState;
use crate::heap::Heap;
use crate::heap_kind::HeapKind;
use crate::interpreter::Interpreter;
use crate::mi_malloc::{as_c, request, request_array};
use crate::{HeapError, ffi, heap_index, registry};

thread_local! {
    /// The calling thread's number; [`NOBODY`] before its first attach. No destructor, so it works until the very end.
    static NUMBER: Cell<u64> = const { Cell::new(NOBODY) };
    /// The state of the thread's last attach, which links to the one before.
    static STATES: Cell<*const ThreadState> = const { Cell::new(ptr::null()) };
    /// Whether the destructor of `EXIT` has run.
    static IS_EXITING: Cell<bool> = const { Cell::new(false) };
    static EXIT: Exit = const { Exit };
}

/// Its destructor says that the thread is ending.
struct Exit;

impl Drop for Exit {
    fn drop(&mut self) {
        IS_EXITING.set(true);
        end_thread_if_exiting();
    }
}

/// Lets mimalloc end an exiting thread without heaps; it begins again should the thread allocate once more.
fn end_thread_if_exiting() {
    // SAFETY: no preconditions.
    if IS_EXITING.get() && STATES.get().is_null() && !unsafe { ffi::_mi_is_main_thread() } {
        let _registry = registry::lock();
        // SAFETY: (1) no theap of ours is left on this thread. The lock keeps a fork out of mimalloc's own locks.
        unsafe { ffi::end_thread() };
    }
}

/// The calling thread's number; [`NOBODY`] if it has never attached.
pub(crate) fn number() -> u64 {
    NUMBER.get()
}

/// Every state of the calling thread, one for each interpreter that it is attached to.
fn states() -> impl Iterator<Item = NonNull<ThreadState>> {
    core::iter::successors(NonNull::new(STATES.get().cast_mut()), |state| {
        // SAFETY: a state is on the list from its attach to its detach, both by this thread, and lives for as long.
        let next = unsafe { state.as_ref() }.next.get();
        NonNull::new(next.cast_mut())
    })
}

/// The calling thread's state in the interpreter of this number.
pub(crate) fn state_in(interpreter: u64) -> Option<NonNull<ThreadState>> {
    states().find(|state| {
        // SAFETY: as in `states`.
        unsafe { state.as_ref() }.interpreter == interpreter
    })
}

/// One thread's heaps in one interpreter: what [`InterpreterHeaps::attach`](crate::InterpreterHeaps::attach) gives.
///
/// Sizes are in bytes; a request of 0 is a distinct block; every block is aligned to [`MIN_ALIGN`](malloc_api::MIN_ALIGN).
/// Only this thread allocates from its heaps, hence without a lock; blocks may be freed and resized by any thread, with or
/// without heaps of its own. Dropping it detaches the thread: live blocks stay live, the heaps go to the next thread that
/// attaches, and retired blocks are handed over. Keep it in a thread-local, or on the stack of the thread's main function.
///
/// # Examples
///
/// ```
/// use mimalloc_heaps::{HeapKind, InterpreterHeaps};
///
/// let interpreter = InterpreterHeaps::new()?;
/// let heaps = interpreter.attach()?;
/// let block = heaps.calloc(HeapKind::Mem, 10, 8).expect("80 zeroed bytes");
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { heaps.free(Some(block)) };
/// # Ok::<(), mimalloc_heaps::HeapError>(())
/// ```
#[derive(Debug)]
pub struct ThreadHeaps {
    /// (T1) The owner's theap, as the set's heap has it; null until the first block of the kind.
    theaps: [Cell<*mut ffi::mi_theap_t>; HeapKind::COUNT],
    /// The kind of calls that name none.
    pub(crate) current: Cell<HeapKind>,
    /// Taken out by `drop` alone.
    set: ManuallyDrop<OwnedSet>,
    /// (T2) From `ThreadState::into_raw`; freed by `drop`, or in a forked child that the thread does not live in.
    state: NonNull<ThreadState>,
    pub(crate) interpreter: &'static Interpreter,
    /// Theaps belong to their thread.
    _not_send: PhantomData<*mut ()>,
}

impl ThreadHeaps {
    /// Attaches the calling thread to `interpreter`.
    pub(crate) fn attach(interpreter: &'static Interpreter) -> Result<Self, HeapError> {
        if state_in(interpreter.id()).is_some() {
            return Err(HeapError::AlreadyAttached);
        }
        // An error says that the thread is ending already, which `IS_EXITING` says too.
        let _ending = EXIT.try_with(|_| ());
        let state = ThreadState::new(interpreter, STATES.get())?.into_raw()?;
        let set = match Self::begin(interpreter, state) {
            Ok(set) => set,
            Err(error) => {
                // SAFETY: from `into_raw` just now, and known to nobody else.
                drop(unsafe { ThreadState::from_raw(state.as_ptr()) });
                return Err(error);
            }
        };
        STATES.set(state.as_ptr());
        // SAFETY: (T2).
        unsafe { state.as_ref() }.participant.attach();
        Ok(Self {
            theaps: [const { Cell::new(ptr::null_mut()) }; HeapKind::COUNT],
            current: Cell::new(HeapKind::Object),
            set: ManuallyDrop::new(set),
            state,
            interpreter,
            _not_send: PhantomData,
        })
    }

    /// Takes a set for the calling thread, and a handle to the interpreter.
    fn begin(
        interpreter: &'static Interpreter,
        state: NonNull<ThreadState>,
    ) -> Result<OwnedSet, HeapError> {
        let mut registry = registry::lock();
        // Also for a thread that only ever frees: mimalloc keeps the blocks that it frees better together then.
        // SAFETY: no preconditions; the lock keeps a fork out of mimalloc's own locks.
        unsafe { ffi::mi_thread_init() };
        let set = match interpreter.pool.take() {
            Some(set) => set,
            None => HeapSet::unpark_or_create(&mut registry, interpreter.id())
                .ok_or(HeapError::OutOfMemory)?,
        };
        if NUMBER.get() == NOBODY {
            NUMBER.set(registry.next_thread());
        }
        set.begin(&mut registry, NUMBER.get(), state.as_ptr());
        interpreter.retain(&mut registry);
        Ok(set)
    }

    pub(crate) fn state(&self) -> &ThreadState {
        // SAFETY: (T2): alive until `drop`.
        unsafe { self.state.as_ref() }
    }

    #[inline]
    fn theap(&self, kind: HeapKind) -> *mut ffi::mi_theap_t {
        self.theaps[kind.tag()].get()
    }

    /// Allocates `size` bytes of `kind` with undefined content.
    ///
    /// 0 gives a distinct block that must be freed. `None` means out of memory, or more than
    /// [`MAX_REQUEST`](malloc_api::MAX_REQUEST).
    #[inline]
    pub fn malloc(&self, kind: HeapKind, size: usize) -> Option<NonNull<u8>> {
        // The call to mimalloc comes last on both paths, so that it is a jump.
        let theap = self.theap(kind);
        if theap.is_null() {
            return self.malloc_first(kind, size);
        }
        let block = if size <= ffi::MI_SMALL_SIZE_MAX {
            // SAFETY: the calling thread's theap (T1; not `Send`), and a small size.
            unsafe { ffi::mi_theap_malloc_small(theap, size.max(MIN_ALIGN)) }
        } else {
            let size = request(size)?;
            // SAFETY: the calling thread's theap (T1; not `Send`).
            unsafe { ffi::mi_theap_malloc(theap, size) }
        };
        NonNull::new(block.cast())
    }

    /// The first block of a kind makes the thread's part of its heap.
    #[cold]
    fn malloc_first(&self, kind: HeapKind, size: usize) -> Option<NonNull<u8>> {
        self.open(kind)?;
        self.malloc(kind, size)
    }

    /// Allocates `nelem * elsize` zeroed bytes of `kind`.
    ///
    /// A product of 0 gives a distinct block that must be freed. `None` means out of memory, or a product that overflows or
    /// exceeds [`MAX_REQUEST`](malloc_api::MAX_REQUEST).
    #[inline]
    pub fn calloc(&self, kind: HeapKind, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = request_array(nelem, elsize)?;
        let theap = self.theap(kind);
        if theap.is_null() {
            return self.calloc_first(kind, size);
        }
        // SAFETY: the calling thread's theap (T1; not `Send`).
        let block = unsafe { ffi::mi_theap_zalloc(theap, size) };
        NonNull::new(block.cast())
    }

    /// As [`malloc_first`](Self::malloc_first).
    #[cold]
    fn calloc_first(&self, kind: HeapKind, size: usize) -> Option<NonNull<u8>> {
        self.open(kind)?;
        self.calloc(kind, 1, size)
    }

    /// Allocates `size` bytes of `kind`, aligned to `align`, with undefined content.
    ///
    /// `None` also if `align` is not a power of two. Such blocks are freed like others; [`realloc`](Self::realloc) does not
    /// keep the alignment.
    pub fn malloc_aligned(&self, kind: HeapKind, size: usize, align: usize) -> Option<NonNull<u8>> {
        let size = request(size)?;
        if !align.is_power_of_two() {
            return None;
        }
        if !self.is_open(kind) {
            self.open(kind)?;
        }
        // SAFETY: the calling thread's theap (T1; not `Send`), and a power of two.
        let block = unsafe { ffi::mi_theap_malloc_aligned(self.theap(kind), size, align) };
        NonNull::new(block.cast())
    }

    /// Resizes the block at `ptr` to `new_size` bytes, keeping the first `min(old, new)` bytes.
    ///
    /// `ptr = None` acts as `malloc`; `new_size = 0` does not free. A block that moves, moves to this thread's heap of `kind`.
    /// `None` means that the request could not be met; the old block is then untouched.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is `None` or a live block of any heap of the process.
    /// 2. After a successful call the old pointer is dead, even where it equals the new one.
    #[inline]
    pub unsafe fn realloc(
        &self,
        kind: HeapKind,
        ptr: Option<NonNull<u8>>,
        new_size: usize,
    ) -> Option<NonNull<u8>> {
        let size = request(new_size)?;
        let theap = self.theap(kind);
        if theap.is_null() {
            // SAFETY: (1), (2).
            return unsafe { self.realloc_first(kind, ptr, size) };
        }
        // SAFETY: the calling thread's theap (T1; not `Send`), and null or a live block (1) that is not used again (2).
        let block = unsafe { ffi::mi_theap_realloc(theap, as_c(ptr), size) };
        NonNull::new(block.cast())
    }

    /// As [`malloc_first`](Self::malloc_first).
    ///
    /// # Safety
    ///
    /// As [`realloc`](Self::realloc).
    #[cold]
    unsafe fn realloc_first(
        &self,
        kind: HeapKind,
        ptr: Option<NonNull<u8>>,
        size: usize,
    ) -> Option<NonNull<u8>> {
        self.open(kind)?;
        // SAFETY: (1), (2) are the caller's.
        unsafe { self.realloc(kind, ptr, size) }
    }

    /// Frees the block at `ptr`, of any heap and thread of the process; `None` does nothing.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is `None` or a live block of any heap of the process.
    /// 2. The block is not used afterwards.
    #[inline]
    pub unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: null or a live block (1) that is not used again (2); mimalloc takes it back on any thread.
        unsafe { ffi::mi_free(as_c(ptr)) };
    }

    /// Bytes that the live block at `ptr` really has, at least what was asked for.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is a live block of any heap of the process.
    #[must_use]
    pub unsafe fn usable_size(&self, ptr: NonNull<u8>) -> usize {
        // SAFETY: (1).
        unsafe { ffi::mi_usable_size(ptr.as_ptr().cast()) }
    }

    /// The heap of `kind`.
    pub(crate) fn heap(&self, kind: HeapKind) -> &'static Heap {
        let set: &'static HeapSet = **self.set;
        set.heap(kind)
    }

    fn is_open(&self, kind: HeapKind) -> bool {
        !self.theap(kind).is_null()
    }

    /// Makes the heap of `kind`, or this thread's part of it; `None` if that exists already, or there is no memory.
    #[cold]
    fn open(&self, kind: HeapKind) -> Option<()> {
        if self.is_open(kind) {
            return None;
        }
        let heap = self.heap(kind);
        let mut registry = registry::lock();
        let is_new = heap.get().is_none();
        let theap = heap.open(&mut registry)?;
        if is_new {
            heap_index::insert(&mut registry, heap.get()?, **self.set);
        }
        self.theaps[kind.tag()].set(theap);
        Some(())
    }
}

impl Drop for ThreadHeaps {
    fn drop(&mut self) {
        let state = self.state();
        // Offline first: this thread holds back none of its own retired blocks.
        state.participant.detach();
        unlink(state);
        // SAFETY: this is the drop: taken out once, and not used afterwards.
        let set = unsafe { ManuallyDrop::take(&mut self.set) };
        set.leave_state();
        // SAFETY: (T2), and nobody reaches it any more: not this thread's list, not the set.
        drop(unsafe { ThreadState::from_raw(self.state.as_ptr()) });
        set.end(&mut registry::lock());
        self.interpreter.pool.give(set);
        let is_last = self.interpreter.release(&mut registry::lock());
        if is_last {
            self.interpreter.end();
        }
        end_thread_if_exiting();
    }
}

/// Takes `state` off the calling thread's list.
fn unlink(state: &ThreadState) {
    let next = state.next.get();
    if ptr::eq(STATES.get(), state) {
        STATES.set(next);
    }
    for other in states() {
        // SAFETY: as in `states`.
        let link = &unsafe { other.as_ref() }.next;
        if ptr::eq(link.get(), state) {
            link.set(next);
        }
    }
}
