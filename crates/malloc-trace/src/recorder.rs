//! Owns `Recorder<A>`, which records the calls of one domain in a call log, and what a recorder knows of the calling thread.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::{Domain, Malloc};

use crate::log::CallLog;
use crate::log_reader::RecordKind;

/// Serves one domain through `A` and records every call that succeeds in a [`CallLog`].
///
/// `free(None)`, failed calls and calls within a recorded call of the same thread are served and not recorded. What the obj
/// domain asks of the raw domain is thus recorded once, as the program's call.
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
    fn record(&self, kind: RecordKind, block: NonNull<u8>, size: usize) {
        self.log.append(kind, self.domain, thread_number(), block, size);
    }

    /// Records a call that may have made a block, if it did.
    #[inline]
    fn made(
        &self,
        kind: RecordKind,
        block: Option<NonNull<u8>>,
        size: usize,
    ) -> Option<NonNull<u8>> {
        if let Some(block) = block {
            self.record(kind, block, size);
        }
        block
    }
}

// SAFETY: every method answers what the same method of `A` answers (1-3, 5); the log neither unwinds nor calls `A` (4).
unsafe impl<A: Malloc> Malloc for Recorder<'_, A> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else { return self.inner.malloc(size) };
        self.made(RecordKind::Malloc, self.inner.malloc(size), size)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else { return self.inner.calloc(nelem, elsize) };
        // If the product overflows, there is no block to record.
        let size = nelem.wrapping_mul(elsize);
        self.made(RecordKind::Calloc, self.inner.calloc(nelem, elsize), size)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else {
            // SAFETY: the caller's duties 1 and 2 are those of `A::realloc`.
            return unsafe { self.inner.realloc(ptr, new_size) };
        };
        // The old address may be handed out to another thread before the call returns, so the log has it first.
        if let Some(old) = ptr {
            self.record(RecordKind::Moving, old, 0);
        }
        // SAFETY: the caller's duties 1 and 2 are those of `A::realloc`.
        let block = unsafe { self.inner.realloc(ptr, new_size) };
        match (ptr, block) {
            (None, _) => self.made(RecordKind::ReallocOfNone, block, new_size),
            (Some(old), None) => {
                self.record(RecordKind::NotMoved, old, 0);
                None
            }
            (Some(_), Some(_)) => self.made(RecordKind::Moved, block, new_size),
        }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let outermost = Outermost::enter();
        // Before the block can be handed out again.
        if let (Some(_), Some(block)) = (&outermost, ptr) {
            self.record(RecordKind::Free, block, 0);
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
