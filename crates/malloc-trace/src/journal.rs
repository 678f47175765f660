//! Owns `Journal`, what recorders tell of a program's calls, and `Recorder<A>`, which tells those of one domain.
//! Leaves what becomes of them to `record.rs` (a trace, as the calls come) and `log.rs` (a log, made a trace afterwards).

use std::ptr::NonNull;

use malloc_api::Malloc;

use crate::caller::Outermost;
use crate::op::{DOMAINS, OpKind};

/// Where recorders send the calls of a program.
///
/// Each method is called in the thread of the call, at a moment at which no other thread can be told of the same address:
/// after a block was made, and before it is given up. A domain is 0 raw, 1 mem, 2 obj; sizes are in bytes.
///
/// No method may panic, nor allocate from an allocator that is recorded and takes no nested calls.
pub trait Journal {
    /// What is kept of a block while it is resized.
    type Moving;

    /// A block of `size` bytes was made: by `malloc`, `calloc`, or `realloc` of `None`.
    fn made(&self, kind: OpKind, domain: u8, block: NonNull<u8>, size: usize);

    /// A block is about to be resized, and may be given up.
    fn moving(&self, domain: u8, block: NonNull<u8>) -> Self::Moving;

    /// The block is at `block` now, and has `new_size` bytes; `None` if the call failed and the block is what it was.
    fn moved(&self, moving: Self::Moving, domain: u8, block: NonNull<u8>, new_size: Option<usize>);

    /// A block is about to be freed.
    fn freed(&self, domain: u8, block: NonNull<u8>);
}

/// Serves one domain through `A` and tells a [`Journal`] of every call that succeeds.
///
/// Calls of `free(None)` and calls that fail are served, and not told. So are calls within a recorded call of the same
/// thread: what the obj domain asks of the raw domain is recorded once, as the call of the program.
///
/// # Examples
///
/// ```
/// use std::io::Cursor;
///
/// use malloc_api::{LibcMalloc, Malloc};
/// use malloc_trace::{Op, Recorder, Recording, codec, decode};
///
/// let mut file = Cursor::new(Vec::new());
/// let recording = Recording::new(&mut file, codec::Version::V1, 1000)?;
/// let obj = Recorder::new(LibcMalloc, 2, &recording);
/// let block = obj.malloc(24);
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { obj.free(block) };
/// assert_eq!(recording.finish()?.written, 2);
/// # drop(recording);
///
/// let trace = decode(&file.into_inner()[..])?;
/// assert_eq!(trace.ops, [Op::malloc(0, 2, 24), Op::free(0, 2)]);
/// # Ok::<(), codec::TraceError>(())
/// ```
#[derive(Debug)]
pub struct Recorder<'a, A, J> {
    inner: A,
    domain: u8,
    journal: &'a J,
}

impl<'a, A, J: Journal> Recorder<'a, A, J> {
    /// Wraps `inner`, which serves `domain`: 0 raw, 1 mem, 2 obj.
    ///
    /// # Panics
    ///
    /// If `domain` is greater than 2.
    #[must_use]
    pub const fn new(inner: A, domain: u8, journal: &'a J) -> Self {
        assert!((domain as usize) < DOMAINS, "a domain is 0 (raw), 1 (mem) or 2 (obj)");
        Self { inner, domain, journal }
    }

    /// The wrapped allocator.
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    /// Tells of a call that made a block, if it did.
    #[inline]
    fn made(&self, kind: OpKind, block: Option<NonNull<u8>>, size: usize) -> Option<NonNull<u8>> {
        if let Some(block) = block {
            self.journal.made(kind, self.domain, block, size);
        }
        block
    }
}

// SAFETY: every method answers what the same method of `A` answers (1-3, 5); a journal neither unwinds nor calls `A`, or
// `A` takes nested calls (4).
unsafe impl<A: Malloc, J: Journal> Malloc for Recorder<'_, A, J> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else { return self.inner.malloc(size) };
        self.made(OpKind::Malloc, self.inner.malloc(size), size)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else { return self.inner.calloc(nelem, elsize) };
        // The product does not overflow where it matters: then there is no block.
        let size = nelem.wrapping_mul(elsize);
        self.made(OpKind::Calloc, self.inner.calloc(nelem, elsize), size)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(_outermost) = Outermost::enter() else {
            // SAFETY: the caller's duties 1 and 2 are those of `A::realloc`.
            return unsafe { self.inner.realloc(ptr, new_size) };
        };
        // The old address may be handed out to another thread before the call returns: tell of it first.
        let moving = ptr.map(|old| (self.journal.moving(self.domain, old), old));
        // SAFETY: the caller's duties 1 and 2 are those of `A::realloc`.
        let block = unsafe { self.inner.realloc(ptr, new_size) };
        match moving {
            Some((moving, old)) => {
                let size = block.map(|_| new_size);
                self.journal.moved(moving, self.domain, block.unwrap_or(old), size);
                block
            }
            None => self.made(OpKind::Realloc, block, new_size),
        }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let outermost = Outermost::enter();
        // Before the block can be handed out again.
        if let (Some(_), Some(block)) = (&outermost, ptr) {
            self.journal.freed(self.domain, block);
        }
        // SAFETY: the caller's duties 1 and 2 are those of `A::free`.
        unsafe { self.inner.free(ptr) };
        drop(outermost);
    }
}
