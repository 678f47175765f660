//! Owns [`ThreadHeaps`]: one thread's four heaps, from attach to detach.

use core::cell::Cell;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use malloc_api::{Malloc as _, ReleaseLevel};
use pymem_sync::qsbr::{Limits, OutOfMemory, Participant, Pending};

use crate::ffi;
use crate::heap::HeapKind;
use crate::heap_set::HeapSet;
use crate::interpreter::Interpreter;
use crate::mi_malloc::{MiMalloc, as_c, request, request_array};
use crate::page::{room_of, stays};
use crate::registry::{self, HeapError};
use crate::thread_state::{RetiredBlock, ThreadState};
use crate::{idle, release, theap, thread};

thread_local! {
    /// The heaps that this thread's calls without a handle use; null for none. No destructor.
    pub(crate) static CURRENT: Cell<*const ThreadHeaps> = const { Cell::new(ptr::null()) };
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
    /// (T1) The owner's theap, as the set's heap has it; the one that serves nothing until the first block of the kind.
    theaps: [Cell<*mut ffi::mi_theap_t>; HeapKind::COUNT],
    /// The kind of calls that name none.
    current: Cell<HeapKind>,
    /// (T2) The calling thread's, from attach to drop.
    set: &'static HeapSet,
    /// The number under which this thread owns the set.
    owner: u64,
    interpreter: &'static Interpreter,
    /// Theaps belong to their thread.
    _not_send: PhantomData<*mut ()>,
}

impl ThreadHeaps {
    /// Attaches the calling thread to `interpreter`.
    pub(crate) fn attach(interpreter: &'static Interpreter) -> Result<Self, HeapError> {
        if thread::set_in(interpreter.id()).is_some() {
            return Err(HeapError::AlreadyAttached);
        }
        // Before the lock, and dropped after it in case of an error: both may allocate.
        let state = ThreadState::new(&interpreter.domain, interpreter.limits());
        let state = state.ok_or(HeapError::OutOfMemory)?;
        let mut registry = registry::lock();
        thread::begin(&mut registry).ok_or(HeapError::OutOfMemory)?;
        let set = match interpreter.adopt(&mut registry) {
            Some(set) => set,
            None => HeapSet::for_interpreter(&mut registry, interpreter.id())
                .ok_or(HeapError::OutOfMemory)?,
        };
        // SAFETY: (1) abandoned, or new to this interpreter; on no list, and the lock is held.
        let owner = unsafe { set.begin(&mut registry, state) };
        interpreter.retain(&mut registry);
        drop(registry);
        thread::add(set);
        let heaps = Self {
            theaps: core::array::from_fn(|_| Cell::new(ffi::empty_theap())),
            current: Cell::new(HeapKind::Object),
            set,
            owner,
            interpreter,
            _not_send: PhantomData,
        };
        heaps.state().participant.attach();
        Ok(heaps)
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
        // SAFETY: (1) the calling thread's theap (T1; not `Send`), or the one that serves nothing.
        match unsafe { theap::malloc(self.theap(kind), size) } {
            Some(block) => Some(block),
            None => self.malloc_generic(kind, size),
        }
    }

    /// Has mimalloc look for a block. The first one of a kind makes the thread's part of its heap.
    #[inline(never)]
    fn malloc_generic(&self, kind: HeapKind, size: usize) -> Option<NonNull<u8>> {
        let size = request(size)?;
        // SAFETY: the calling thread's theap (T1; not `Send`).
        NonNull::new(unsafe { ffi::mi_theap_malloc(self.opened(kind)?, size) }.cast())
    }

    /// Allocates `nelem * elsize` zeroed bytes of `kind`.
    ///
    /// A product of 0 gives a distinct block that must be freed. `None` means out of memory, or a product that overflows or
    /// exceeds [`MAX_REQUEST`](malloc_api::MAX_REQUEST).
    #[inline]
    pub fn calloc(&self, kind: HeapKind, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = request_array(nelem, elsize)?;
        // SAFETY: (1) the calling thread's theap (T1; not `Send`), or the one that serves nothing.
        match unsafe { theap::calloc(self.theap(kind), size) } {
            Some(block) => Some(block),
            None => self.calloc_generic(kind, size),
        }
    }

    /// As [`malloc_generic`](Self::malloc_generic).
    #[inline(never)]
    fn calloc_generic(&self, kind: HeapKind, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the calling thread's theap (T1; not `Send`).
        NonNull::new(unsafe { ffi::mi_theap_zalloc(self.opened(kind)?, size) }.cast())
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
        let theap = self.opened(kind)?;
        // SAFETY: the calling thread's theap (T1; not `Send`), and a power of two.
        let block = unsafe { ffi::mi_theap_malloc_aligned(theap, size, align) };
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
        // SAFETY: (1) a live block (1).
        let room = ptr.map_or(0, |block| unsafe { room_of(block) });
        if ptr.is_some() && stays(room, size) {
            return ptr;
        }
        let theap = self.opened(kind)?;
        // SAFETY: the calling thread's theap (T1; not `Send`), and null or a live block (1) that is not used again (2).
        let block = unsafe { ffi::mi_theap_realloc(theap, as_c(ptr), size) };
        idle::note_moved(room);
        NonNull::new(block.cast())
    }

    /// Frees the block at `ptr`, of any heap and thread of the process; `None` does nothing.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is `None` or a live block of any heap of the process.
    /// 2. The block is not used afterwards.
    #[inline]
    pub unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: (1) a live block of mimalloc (1), (2) not used again (2); mimalloc takes it back on any thread.
        unsafe { MiMalloc.free(ptr) };
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

    /// This thread's part of the heap of `kind`, which the first block makes; `None` if there is no memory.
    #[inline]
    fn opened(&self, kind: HeapKind) -> Option<*mut ffi::mi_theap_t> {
        let theap = self.theap(kind);
        if theap == ffi::empty_theap() { self.open(kind) } else { Some(theap) }
    }

    /// After [`opened`](Self::opened).
    #[cold]
    fn open(&self, kind: HeapKind) -> Option<*mut ffi::mi_theap_t> {
        let theap = self.set.heap(kind).open(&mut registry::lock())?;
        self.theaps[kind.tag()].set(theap);
        Some(theap)
    }

    /// Calls `work`, during which this thread's [`ThreadMalloc`](crate::ThreadMalloc) calls use these heaps.
    ///
    /// Nests; what was used before is used again afterwards, also when `work` unwinds.
    pub fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        let _restore = Restore { cell: &CURRENT, before: CURRENT.replace(self) };
        work()
    }

    /// The kind that [`ThreadMalloc::CURRENT`](crate::ThreadMalloc::CURRENT) calls on these heaps get; [`HeapKind::Object`] at first.
    #[inline]
    #[must_use]
    pub fn current_kind(&self) -> HeapKind {
        self.current.get()
    }

    /// Changes the kind that [`ThreadMalloc::CURRENT`](crate::ThreadMalloc::CURRENT) calls get, and returns the one before.
    ///
    /// For C callers, which set a kind, allocate, and set the old one again. In Rust pass the kind to each call.
    pub fn set_current_kind(&self, kind: HeapKind) -> HeapKind {
        self.current.replace(kind)
    }

    /// Calls `work`, during which [`ThreadMalloc::CURRENT`](crate::ThreadMalloc::CURRENT) calls on these heaps get `kind`; nests, also when `work` unwinds.
    pub fn with_kind<R>(&self, kind: HeapKind, work: impl FnOnce() -> R) -> R {
        struct Back<'a>(&'a ThreadHeaps, HeapKind);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                self.0.set_current_kind(self.1);
            }
        }
        let _back = Back(self, self.set_current_kind(kind));
        work()
    }

    #[inline]
    fn state(&self) -> &ThreadState {
        // SAFETY: (1) this thread owns the set (T2).
        let state = unsafe { self.set.state() };
        // SAFETY: there from attach to drop (T2).
        unsafe { state.unwrap_unchecked() }
    }

    /// Frees the block at `ptr` once no lock-free reader can see it; `None` does nothing.
    ///
    /// The block waits in this thread's queue, at most as many and as much as the limits say before this thread asks for a
    /// new grace period and frees what is due. It may be of any heap and thread of the process.
    ///
    /// # Errors
    ///
    /// The block, still live and not queued, if there is no memory for the queue: stop the world and free it, or try again.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is `None` or a live block of any heap of the process, which nobody else frees or resizes.
    /// 2. It has been unlinked: nobody who attaches or is quiescent after this call can reach it.
    /// 3. Those who still can are attached to this interpreter, and drop their references before they are
    ///    [quiescent](Self::quiescent), [offline](Self::offline) or detached.
    #[inline]
    pub unsafe fn free_delayed(&self, ptr: Option<NonNull<u8>>) -> Result<(), NonNull<u8>> {
        let Some(block) = ptr else { return Ok(()) };
        // SAFETY: (1).
        let block = unsafe { RetiredBlock::new(block) };
        // SAFETY: (1) and (2) are (2) and (3) here; (3): no handle is left when the domain is dropped, so nobody is
        // attached.
        let queued = unsafe { self.state().delayed.retire(block) };
        queued.map_err(|OutOfMemory(block)| block.into_block())
    }

    /// Frees the blocks that are due, of this thread and of those that have exited, and returns how many.
    ///
    /// Call it after a quiescent state when [`should_process`](Self::should_process) says so.
    pub fn process_delayed(&self) -> usize {
        self.state().delayed.process()
    }

    /// Asks for a new grace period for what waits, then frees what is due, and returns how many: before a long wait.
    pub fn flush_delayed(&self) -> usize {
        self.state().delayed.flush()
    }

    /// Whether blocks wait that have a goal: [`process_delayed`](Self::process_delayed) may find some due.
    #[must_use]
    pub fn should_process(&self) -> bool {
        self.state().delayed.should_process()
    }

    /// How many blocks wait in this thread's queue, and their bytes.
    #[must_use]
    pub fn pending_delayed(&self) -> Pending {
        self.state().delayed.pending()
    }

    /// The limits of this thread's queue.
    #[must_use]
    pub fn delayed_limits(&self) -> Limits {
        self.state().delayed.limits()
    }

    /// Changes the limits of this thread's queue from the next block on.
    pub fn set_delayed_limits(&self, limits: Limits) {
        self.state().delayed.set_limits(limits);
    }

    /// Reports that this thread holds no reference, from before this call, to anything that others may retire.
    #[inline]
    pub fn quiescent(&self) {
        self.state().participant.quiescent_state();
    }

    /// Calls `work`, during which nobody waits for this thread to be quiescent, such as a blocking system call.
    ///
    /// Neither before nor during it may the thread hold references to what others may retire. Nests.
    pub fn offline<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Online<'a>(Option<&'a Participant<'static>>);
        impl Drop for Online<'_> {
            fn drop(&mut self) {
                if let Some(participant) = self.0 {
                    participant.attach();
                }
            }
        }
        let participant = &self.state().participant;
        let _online = Online(participant.is_attached().then_some(participant));
        participant.detach();
        work()
    }

    /// Gives memory back to the system, and returns how many bytes.
    ///
    /// At [`ReleaseLevel::Pages`] every page without a block goes back; below that, what mimalloc's timers say is due.
    /// Collects the calling thread's heaps alone: empty pages that other threads keep are theirs to release, or
    /// [`InterpreterHeaps::release`](crate::InterpreterHeaps::release)'s. Freed memory in mimalloc's arenas is the process's,
    /// so it goes back whoever freed it.
    pub fn release(&self, level: ReleaseLevel) -> usize {
        if release::is_forced(level) {
            self.flush_delayed();
        }
        // SAFETY: (1) this thread owns the set (T2).
        unsafe { release::own(self.set, level) }
    }
}

impl Drop for ThreadHeaps {
    fn drop(&mut self) {
        // A C host may drop the heaps after the thread's end has detached them.
        if self.set.owner() == self.owner {
            // SAFETY: (1) this thread owns the set (T2), and these heaps end here.
            unsafe { thread::detach(self.set, self.interpreter) };
        }
    }
}

/// Puts the old heaps back.
struct Restore {
    cell: &'static std::thread::LocalKey<Cell<*const ThreadHeaps>>,
    before: *const ThreadHeaps,
}

impl Drop for Restore {
    fn drop(&mut self) {
        self.cell.set(self.before);
    }
}
