//! Owns [`World`], how a visitor asks every other thread to stand still, and [`BarrierWorld`], a plain way to do so.

use core::cell::Cell;
use core::hint;
use core::marker::PhantomData;
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
    ///
    /// # Safety
    ///
    /// 1. The calling thread has called [`stop`](Self::stop) on `self`, and has not started the world since.
    unsafe fn start(&self);

    /// In the child of a fork that happened while the world was stopped: only the caller exists.
    ///
    /// # Safety
    ///
    /// 1. As for [`start`](Self::start), where the calling thread stands for the one that forked.
    unsafe fn start_in_child(&self) {
        // SAFETY: (1) is ours.
        unsafe { self.start() };
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
        // SAFETY: (1) stopped when this was made.
        unsafe { self.0.start() };
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
        let (runs, ran) = (Cell::new(false), Cell::new(false));
        let thread = WorldThread { world: self, runs, ran, _not_send: PhantomData };
        thread.resume();
        thread
    }

    fn lock(&self) -> LockGuard<'_, usize> {
        self.running.lock()
    }
}

/// A thread in a [`BarrierWorld`]; stops that world for visits by the same thread.
#[derive(Debug)]
#[must_use = "the thread leaves the world when this is dropped"]
pub struct WorldThread<'w> {
    world: &'w BarrierWorld,
    /// Whether the world counts this thread among those that run. Used by the thread that joined.
    runs: Cell<bool>,
    /// Whether it did when it stopped the world.
    ran: Cell<bool>,
    /// What stands still is the thread that joined.
    _not_send: PhantomData<*mut ()>,
}

impl WorldThread<'_> {
    /// Stands still while somebody stops the world. One relaxed load while nobody wants to.
    ///
    /// Does nothing inside [`blocking`](Self::blocking), and nothing in a visitor.
    #[inline]
    pub fn checkpoint(&self) {
        if self.world.stoppers.load(Ordering::Relaxed) != 0 {
            self.blocking(thread::yield_now);
        }
    }

    /// Calls `work`, which uses no heap and no block, without holding up a stop; then waits while the world is stopped.
    ///
    /// Nests.
    pub fn blocking<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Resume<'a>(&'a WorldThread<'a>);
        impl Drop for Resume<'_> {
            fn drop(&mut self) {
                self.0.resume();
            }
        }
        let _resume = self.pause().then(|| Resume(self));
        work()
    }

    /// The calling thread comes to stand still; false if it did already.
    fn pause(&self) -> bool {
        let ran = self.runs.replace(false);
        if ran {
            *self.world.lock() -= 1;
        }
        ran
    }

    /// The calling thread, which stands still, runs again as soon as the world does.
    fn resume(&self) {
        *self.world.lock() += 1;
        self.runs.set(true);
    }

    /// Gives the lock back that `stop` has kept, the thread as it was before.
    ///
    /// # Safety
    ///
    /// 1. The calling thread has stopped the world, and not started it since.
    unsafe fn restart(&self) {
        self.world.stoppers.fetch_sub(1, Ordering::Relaxed);
        self.runs.set(self.ran.get());
        // A stopped world has no other running thread.
        // SAFETY: `stop` has kept the lock for this thread (1), so nobody else reads or writes the value.
        unsafe { self.world.running.as_ptr().write(usize::from(self.ran.get())) };
        // SAFETY: (1) kept since `stop` (1), and the value is not touched below.
        unsafe { self.world.running.raw().unlock() };
    }
}

impl Drop for WorldThread<'_> {
    fn drop(&mut self) {
        self.pause();
    }
}

// SAFETY: 1: `stop` returns when no joined thread runs, and `join` (its 1) says that others use nothing; running again needs
// the lock, which the stopper keeps, and a thread counts once, however its calls nest. 2: through the lock. 3: `join` (its 2).
unsafe impl World for WorldThread<'_> {
    fn stop(&self) {
        self.world.stoppers.fetch_add(1, Ordering::Relaxed);
        // Stands still itself, for another stopper that may come first.
        self.ran.set(self.pause());
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

    unsafe fn start(&self) {
        // SAFETY: (1) is ours.
        unsafe { self.restart() };
    }

    unsafe fn start_in_child(&self) {
        self.world.stoppers.store(1, Ordering::Relaxed);
        // SAFETY: (1) is ours.
        unsafe { self.restart() };
    }
}
