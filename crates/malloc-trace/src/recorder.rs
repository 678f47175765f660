//! Owns `Recorder<A>`, which tells a call log of the calls of one domain, and what a recorder knows of the calling thread.
//! Leaves the log to `log.rs`.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::{Domain, Malloc};

use crate::log::CallLog;
use crate::log_reader::Told;

/// Serves one domain through `A` and tells a [`CallLog`] of every call that succeeds.
///
/// Calls of `free(None)` and calls that fail are served, and not told. So are calls within a recorded call of the same
/// thread: what the obj domain asks of the raw domain is recorded once, as the call of the program.
#[derive(Debug)]
pub struct Recorder<'a, A> {
    inner: A,
    domain: Domain,
    log: &'a CallLog,
}

impl<'a, A> Recorder<'a, A> {
    /// Wraps `inner`, which serves `domain`.
    #[must_use]
    pub const fn new(inner: A, domain: Domain, log: &'a CallLog) -> Self {
        Self { inner, domain, log }
    }

    /// The wrapped allocator.
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    #[inline]
    fn tell(&self, told: Told, block: NonNull<u8>, size: usize) {
        self.log.append(told, self.domain, thread_number(), block, size);
    }

    /// Tells of a call that made a block, if the call did.
    #[inline]
    fn made(&self, told: Told, block: Option<NonNull<u8>>, size: usize) -> Option<NonNull<u8>> {
        if let Some(block) = block {
            self.tell(told, block, size);
        }
        block
    }
}

// SAFETY: every method answers what the same method of `A` answers (1-3, 5); the log neither unwinds nor calls `A` (4).
unsafe impl<A: Malloc> Malloc for Recorder<'_, A> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else { return self.inner.malloc(size) };
        self.made(Told::Malloc, self.inner.malloc(size), size)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else { return self.inner.calloc(nelem, elsize) };
        // A product that overflows is told of nobody: then there is no block.
        let size = nelem.wrapping_mul(elsize);
        self.made(Told::Calloc, self.inner.calloc(nelem, elsize), size)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else {
            // SAFETY: the caller's duties 1 and 2 are those of `A::realloc`.
            return unsafe { self.inner.realloc(ptr, new_size) };
        };
        // The old address may be handed out to another thread before the call returns, so the log has it first.
        if let Some(old) = ptr {
            self.tell(Told::Moving, old, 0);
        }
        // SAFETY: the caller's duties 1 and 2 are those of `A::realloc`.
        let block = unsafe { self.inner.realloc(ptr, new_size) };
        match (ptr, block) {
            (None, _) => self.made(Told::ReallocOfNone, block, new_size),
            (Some(old), None) => {
                self.tell(Told::NotMoved, old, 0);
                None
            }
            (Some(_), Some(_)) => self.made(Told::Moved, block, new_size),
        }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let outermost = Outermost::enter();
        // Before the block can be handed out again.
        if let (Some(_), Some(block)) = (&outermost, ptr) {
            self.tell(Told::Free, block, 0);
        }
        // SAFETY: the caller's duties 1 and 2 are those of `A::free`.
        unsafe { self.inner.free(ptr) };
        drop(outermost);
    }
}

struct Caller {
    /// Whether the thread is in a recorded call, or in what records one.
    inside: Cell<bool>,
    /// The number of the thread, one more than in events; 0 if it has none yet.
    number: Cell<u16>,
}

thread_local! {
    // Without a destructor and an initialiser, the value works at any time in a thread's life, and allocates nothing.
    static CALLER: Caller = const { Caller { inside: Cell::new(false), number: Cell::new(0) } };
}

/// Threads of the process that were numbered so far.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// The outermost recorded call of a thread, until dropped.
struct Outermost(());

impl Outermost {
    /// `None` within a recorded call: a call that an allocator or the recording itself makes is no call of the program.
    #[inline]
    fn enter() -> Option<Self> {
        CALLER.with(|caller| (!caller.inside.replace(true)).then(|| Self(())))
    }
}

impl Drop for Outermost {
    #[inline]
    fn drop(&mut self) {
        CALLER.with(|caller| caller.inside.set(false));
    }
}

/// The number of the calling thread, in the order in which threads were first seen; all after the 65,535th share one.
#[inline]
fn thread_number() -> u16 {
    CALLER.with(|caller| match caller.number.get() {
        0 => first_number(caller),
        number => number - 1,
    })
}

#[cold]
fn first_number(caller: &Caller) -> u16 {
    let next = THREADS.fetch_add(1, Relaxed).saturating_add(1);
    let number = u16::try_from(next).unwrap_or(u16::MAX);
    caller.number.set(number);
    number - 1
}
