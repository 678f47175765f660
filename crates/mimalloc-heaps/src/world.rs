//! Owns [`World`], how a visitor asks every other thread to stand still, and [`BarrierWorld`], a plain way to do so.

use core::cell::Cell;
use core::hint;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use pymem_sync::{Lock, LockGuard};

/// Every thread that uses an interpreter's heaps, as something that can be stopped.
///
/// A runtime has such a thing already (CPython's stop-the-world); [`BarrierWorld`] is one for programs without.
///
/// # Safety
///
/// An implementation promises that
///
/// 1. when `stop` returns, no thread but the caller is inside a function of this crate or of mimalloc that touches a block
///    or a heap of the interpreters in question, and none enters one until the caller's `start` (or, in a forked child,
///    `start_in_child`): also threads that only free, that attach, or that detach;
/// 2. what the other threads did before is visible to the caller, and what the caller did is visible to them afterwards;
/// 3. when `stop` returns, no other thread holds a reference to a block that was passed to a delayed free.
pub unsafe trait World {
    /// Waits until every other thread stands still. Stops do not nest; a second caller waits for the first.
    fn stop(&self);

    /// Lets the other threads go on.
    fn start(&self);

    /// In the child of a fork that happened while the world was stopped: only the caller exists.
    fn start_in_child(&self) {
        self.start();
    }
}

/// The world stopped, until dropped; also when a visitor unwinds.
pub(crate) struct Stopped<'w, W: World + ?Sized>(&'w W);

impl<'w, W: World + ?Sized> Stopped<'w, W> {
    pub(crate) fn stop(world: &'w W) -> Self {
        world.stop();
        Self(world)
    }
}

impl<W: World + ?Sized> Drop for Stopped<'_, W> {
    fn drop(&mut self) {
        self.0.start();
    }
}

/// A world of threads that join it and pass a [`checkpoint`](WorldThread::checkpoint) now and then.
///
/// Each thread that uses the interpreter's heaps or blocks does so between [`join`](Self::join) and the drop of what that
/// returned, and not inside [`blocking`](WorldThread::blocking); that is the duty behind the `unsafe` of `join`. Stopping
/// waits until every joined thread is at a checkpoint or blocking.
///
/// # Examples
///
/// ```
/// use mimalloc_heaps::{BarrierWorld, HeapKind, InterpreterHeaps};
///
/// let interpreter = InterpreterHeaps::new()?;
/// let world = BarrierWorld::new();
/// // SAFETY: (1) the heaps are used below only, between checkpoints, and (2) dropped before `thread`.
/// let thread = unsafe { world.join() };
/// let heaps = interpreter.attach()?;
/// let block = heaps.malloc(HeapKind::Gc, 100).expect("100 bytes");
/// assert_eq!(interpreter.count_blocks(&thread, HeapKind::Gc), 1);
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { heaps.free(Some(block)) };
/// drop(heaps);
/// # Ok::<(), mimalloc_heaps::HeapError>(())
/// ```
#[derive(Debug, Default)]
pub struct BarrierWorld {
    /// Joined threads that are neither at a checkpoint nor blocking. Whoever stops the world keeps the lock until the start,
    /// so nobody runs again meanwhile, and a fork by the stopper leaves the child a lock that the child holds.
    running: Lock<usize>,
    /// Threads that want to stop the world, the one that has stopped it included. A hint, hence relaxed.
    stoppers: AtomicUsize,
}

/// How often a waiter looks before it begins to sleep.
const SPINS: u32 = 100;
/// How long it then sleeps between two looks.
const NAP: Duration = Duration::from_micros(50);

fn wait(round: u32) {
    match round {
        0..SPINS => hint::spin_loop(),
        _ => thread::sleep(NAP),
    }
}

impl BarrierWorld {
    /// A world without threads, running.
    #[must_use]
    pub const fn new() -> Self {
        Self { running: Lock::new(0), stoppers: AtomicUsize::new(0) }
    }

    /// Adds the calling thread; waits while the world is stopped.
    ///
    /// # Safety
    ///
    /// 1. While it exists, this thread uses blocks and heaps of the interpreters that this world is stopped for only between
    ///    `join` and the drop of the result, and not inside [`WorldThread::blocking`]; no thread uses them without joining.
    /// 2. What lock-free readers of this thread hold, they drop before each checkpoint and each `blocking`.
    pub unsafe fn join(&self) -> WorldThread<'_> {
        self.resume();
        WorldThread { world: self, _not_sync: Cell::new(()) }
    }

    fn lock(&self) -> LockGuard<'_, usize> {
        self.running.lock_with(wait)
    }

    /// The calling thread, which is running, comes to stand still.
    fn pause(&self) {
        *self.lock() -= 1;
    }

    /// The calling thread, which stands still, runs again as soon as the world does.
    fn resume(&self) {
        *self.lock() += 1;
    }
}

/// A thread in a [`BarrierWorld`]; stops that world for visits by the same thread.
#[derive(Debug)]
#[must_use = "the thread leaves the world when this is dropped"]
pub struct WorldThread<'w> {
    world: &'w BarrierWorld,
    /// Used by the thread that joined.
    _not_sync: Cell<()>,
}

impl WorldThread<'_> {
    /// Stands still while somebody stops the world. One relaxed load while nobody wants to.
    #[inline]
    pub fn checkpoint(&self) {
        if self.world.stoppers.load(Ordering::Relaxed) != 0 {
            self.blocking(thread::yield_now);
        }
    }

    /// Calls `work`, which uses no heap and no block, without holding up a stop; then waits while the world is stopped.
    pub fn blocking<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Resume<'w>(&'w BarrierWorld);
        impl Drop for Resume<'_> {
            fn drop(&mut self) {
                self.0.resume();
            }
        }
        self.world.pause();
        let _resume = Resume(self.world);
        work()
    }
}

impl Drop for WorldThread<'_> {
    fn drop(&mut self) {
        self.world.pause();
    }
}

// SAFETY: 1: `stop` returns when no joined thread runs, and `join` (its 1) says that others use nothing; running again needs
// the lock, which the stopper keeps. 2: through the lock. 3: `join` (its 2).
unsafe impl World for WorldThread<'_> {
    fn stop(&self) {
        self.world.stoppers.fetch_add(1, Ordering::Relaxed);
        // Stands still itself, for another stopper that may come first.
        self.world.pause();
        for round in 0.. {
            let running = self.world.lock();
            if *running == 0 {
                core::mem::forget(running);
                return;
            }
            drop(running);
            wait(round);
        }
    }

    fn start(&self) {
        self.restart(|running| running + 1);
    }

    fn start_in_child(&self) {
        self.world.stoppers.store(1, Ordering::Relaxed);
        self.restart(|_| 1);
    }
}

impl WorldThread<'_> {
    /// Gives the lock back that `stop` has kept, with this thread running.
    fn restart(&self, running: impl FnOnce(usize) -> usize) {
        self.world.stoppers.fetch_sub(1, Ordering::Relaxed);
        let count = self.world.running.as_ptr();
        // SAFETY: `stop` has kept the lock for this thread, so nobody else reads or writes the value.
        let before = unsafe { count.read() };
        // SAFETY: as above.
        unsafe { count.write(running(before)) };
        // SAFETY: (1) kept since `stop`, and the value is not touched below.
        unsafe { self.world.running.raw().unlock() };
    }
}
