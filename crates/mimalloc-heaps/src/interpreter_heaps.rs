//! Owns [`InterpreterHeaps`], the face of one interpreter: it attaches threads, and visits, counts and releases what they have.

use core::ops::ControlFlow;
use std::sync::LazyLock;

use malloc_api::ReleaseLevel;
use pymem_sync::qsbr::Limits;

use crate::heap::HeapKind;
use crate::heap_set::HeapSet;
use crate::interpreter::Interpreter;
use crate::prepare::prepare;
use crate::registry::{self, HeapError};
use crate::release;
use crate::stats::{self, Statistics};
use crate::thread_heaps::ThreadHeaps;
use crate::visit::{self, Area, Block};
use crate::world::{Stopped, World};

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
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { heaps.free(Some(block)) };
/// # Ok::<(), mimalloc_heaps::HeapError>(())
/// ```
#[derive(Debug)]
pub struct InterpreterHeaps {
    interpreter: &'static Interpreter,
}

impl InterpreterHeaps {
    /// The heaps of a new interpreter.
    ///
    /// # Errors
    ///
    /// [`HeapError::Version`] if another mimalloc is linked; [`HeapError::ForkHandlers`] if those could not be registered;
    /// [`HeapError::OutOfMemory`].
    pub fn new() -> Result<Self, HeapError> {
        prepare()?;
        let interpreter = Interpreter::start(&mut registry::lock());
        Ok(Self { interpreter: interpreter.ok_or(HeapError::OutOfMemory)? })
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

    /// A number that no other interpreter of the process has, before or after.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.interpreter.id()
    }

    /// The limits of delayed free for threads that attach from now on.
    pub fn set_delayed_limits(&self, limits: Limits) {
        self.interpreter.set_limits(limits);
    }

    /// What the heaps hold, exactly; stops the world meanwhile.
    #[must_use]
    pub fn statistics<W: World + ?Sized>(&self, world: &W) -> Statistics {
        stats::count(&Stopped::stop(world), self.id())
    }

    /// Calls `visitor` for every live block of `kind`, of every thread and of those that have exited; it can break off.
    ///
    /// Stops the world meanwhile, and holds a lock of the process's: a `visitor` waits for ever that attaches, detaches or forks, that takes
    /// its thread's first block of a kind, of any interpreter, that makes or ends an account, or that visits, counts or releases heaps. Blocks
    /// that wait for a delayed free are live, and it may write to the blocks' contents.
    ///
    /// # Safety
    ///
    /// 1. `visitor` allocates nothing from this interpreter's heaps, and frees and resizes no block of them.
    pub unsafe fn visit_blocks<W: World + ?Sized>(
        &self,
        world: &W,
        kind: HeapKind,
        mut visitor: impl FnMut(Block) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        visit::blocks(&Stopped::stop(world), self.id(), kind, &mut visitor)
    }

    /// How many live blocks of `kind` there are, exactly; stops the world meanwhile.
    #[must_use]
    pub fn count_blocks<W: World + ?Sized>(&self, world: &W, kind: HeapKind) -> usize {
        let mut blocks = 0;
        let _all = visit::areas(&Stopped::stop(world), self.id(), &mut |area| {
            blocks += if area.kind == kind { area.used_blocks } else { 0 };
            ControlFlow::Continue(())
        });
        blocks
    }

    /// Every area of every heap, with an exact count of its blocks; stops the world meanwhile, more than once where areas come.
    #[must_use]
    pub fn areas<W: World + ?Sized>(&self, world: &W) -> Vec<Area> {
        let mut areas = Vec::new();
        loop {
            let mut count = 0;
            // During the walk nothing may be allocated, as the global allocator may be one of ours.
            let _all = visit::areas(&Stopped::stop(world), self.id(), &mut |area| {
                count += 1;
                if areas.len() < areas.capacity() {
                    areas.push(area);
                }
                ControlFlow::Continue(())
            });
            if areas.len() == count {
                return areas;
            }
            areas.clear();
            areas.reserve(count + count / 4 + 64);
        }
    }

    /// Frees every block that waits for a delayed free, of every thread, and returns how many; stops the world meanwhile.
    ///
    /// For a collector, before it visits. Every thread of a stopped world is quiescent, so all blocks are due.
    pub fn reclaim_delayed<W: World + ?Sized>(&self, world: &W) -> usize {
        let _stopped = Stopped::stop(world);
        let mut reclaimed = 0;
        // Not under the registry's lock: a free may need it. No set is added while the world is stopped.
        let sets = HeapSet::all(&registry::lock());
        for set in sets.filter(|set| set.interpreter() == self.id()) {
            // SAFETY: (1) the owner is the caller, or stopped.
            if let Some(state) = unsafe { set.state() } {
                // SAFETY: (1) `World` promises that no reader holds a reference to a retired block (3).
                reclaimed += unsafe { state.delayed.reclaim_all() };
            }
        }
        // SAFETY: (1) as above.
        reclaimed + unsafe { self.interpreter.domain.reclaim_all() }
    }

    /// Gives memory of every thread's heaps back to the system, and returns how many bytes; stops the world meanwhile.
    ///
    /// At [`ReleaseLevel::Pages`], blocks that wait for a delayed free are freed before, and empty heaps without an owner are
    /// deleted after: one heap's records take some 200 KiB.
    pub fn release<W: World + ?Sized>(&self, world: &W, level: ReleaseLevel) -> usize {
        if release::is_forced(level) {
            self.reclaim_delayed(world);
        }
        release::all(&Stopped::stop(world), self.id(), level)
    }
}

impl Drop for InterpreterHeaps {
    fn drop(&mut self) {
        self.interpreter.leave();
    }
}
