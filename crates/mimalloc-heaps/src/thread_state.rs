//! Owns delayed free: blocks that lock-free readers may still see wait in the thread's queue until every attached thread
//! has been quiescent. The queue and its rules are `pymem_sync::qsbr`'s; here is what reclaiming means: `mi_free`.

use core::cell::Cell;
use core::ptr::NonNull;
use std::alloc::{Layout, alloc};

use pymem_sync::qsbr::{Delayed, Limits, OutOfMemory, Participant, Pending, Reclaim};

use crate::interpreter::Interpreter;
use crate::registry;
use crate::thread::ThreadHeaps;
use crate::world::{Stopped, World};
use crate::{HeapError, InterpreterHeaps, ffi};

/// A retired block.
#[derive(Debug)]
pub(crate) struct RetiredBlock {
    /// (D1) A live block of mimalloc that the queue alone may free.
    block: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the block is the queue's alone (D1), and mimalloc takes back a block on any thread.
unsafe impl Send for RetiredBlock {}

impl RetiredBlock {
    /// A block for the queue.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of mimalloc, and nobody else frees or resizes it.
    pub(crate) unsafe fn new(block: NonNull<u8>) -> Self {
        // SAFETY: (1) live.
        let bytes = unsafe { ffi::mi_usable_size(block.as_ptr().cast()) };
        Self { block, bytes }
    }
}

impl Reclaim for RetiredBlock {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn reclaim(self) {
        // SAFETY: (D1); the caller of `free_delayed` has promised that no reader can see it once the goal is reached.
        unsafe { ffi::mi_free(self.block.as_ptr().cast()) };
    }
}

/// A thread's side of delayed free, at an address that does not move while the thread is attached.
#[derive(Debug)]
pub(crate) struct ThreadState {
    /// Dropped first: hands the queue over.
    pub(crate) delayed: Delayed<'static, RetiredBlock>,
    pub(crate) participant: Participant<'static>,
    /// The number of the interpreter that the thread is attached to.
    pub(crate) interpreter: u64,
    /// The state of another interpreter that the same thread is attached to.
    pub(crate) next: Cell<*const ThreadState>,
}

impl ThreadState {
    /// Registers the calling thread, offline.
    pub(crate) fn new(
        interpreter: &'static Interpreter,
        next: *const Self,
    ) -> Result<Self, HeapError> {
        let participant = Participant::register(interpreter.domain.collector())
            .map_err(|_| HeapError::OutOfMemory)?;
        let delayed = Delayed::new(&interpreter.domain, interpreter.limits());
        Ok(Self {
            delayed: delayed.ok_or(HeapError::OutOfMemory)?,
            participant,
            interpreter: interpreter.id(),
            next: Cell::new(next),
        })
    }

    /// The state on the heap; an error if there is no memory, and then the thread is no longer registered.
    pub(crate) fn into_raw(self) -> Result<NonNull<Self>, HeapError> {
        // `Box::new` would end the process. A state is not zero-sized.
        // SAFETY: the layout's size is not zero.
        let place = unsafe { alloc(Layout::new::<Self>()) };
        let place = NonNull::new(place.cast::<Self>()).ok_or(HeapError::OutOfMemory)?;
        // SAFETY: fresh memory of the layout of a state.
        unsafe { place.write(self) };
        Ok(place)
    }

    /// The state, to drop it.
    ///
    /// # Safety
    ///
    /// 1. `state` came out of [`into_raw`](Self::into_raw), and nobody else uses it any more.
    pub(crate) unsafe fn from_raw(state: *mut Self) -> Box<Self> {
        // SAFETY: (1) from the global allocator with a state's layout, and written.
        unsafe { Box::from_raw(state) }
    }
}

impl ThreadHeaps {
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
        queued.map_err(|OutOfMemory(block)| block.block)
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
}

impl InterpreterHeaps {
    /// Frees every block that waits for a delayed free, of every thread, and returns how many; stops the world meanwhile.
    ///
    /// For a collector, before it visits. Every thread of a stopped world is quiescent, so all blocks are due.
    pub fn reclaim_delayed<W: World + ?Sized>(&self, world: &W) -> usize {
        let _stopped = Stopped::stop(world);
        let mut reclaimed = 0;
        let mut set = registry::lock().first_set();
        while let Some(this) = set {
            // SAFETY: an owner's state lives until it detaches, and it is stopped or the caller's own.
            let state = unsafe { this.state().as_ref() };
            if let Some(state) = state.filter(|_| this.interpreter() == self.id()) {
                // SAFETY: (1) `World` promises that no reader holds a reference to a retired block (3).
                reclaimed += unsafe { state.delayed.reclaim_all() };
            }
            set = this.next();
        }
        // SAFETY: (1) as above.
        reclaimed + unsafe { self.interpreter.domain.reclaim_all() }
    }
}
