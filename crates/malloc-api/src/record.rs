//! Owns the allocator record: a context and four C functions, the unit that get and set move and that calls go through.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use thiserror::Error;

use crate::malloc::{MAX_REQUEST, Malloc};

/// `malloc(ctx, size)`; a null result is `None`.
pub type MallocFn = unsafe extern "C" fn(ctx: *mut c_void, size: usize) -> Option<NonNull<u8>>;
/// `calloc(ctx, nelem, elsize)`.
pub type CallocFn =
    unsafe extern "C" fn(ctx: *mut c_void, nelem: usize, elsize: usize) -> Option<NonNull<u8>>;
/// `realloc(ctx, ptr, new_size)`.
pub type ReallocFn = unsafe extern "C" fn(
    ctx: *mut c_void,
    ptr: Option<NonNull<u8>>,
    new_size: usize,
) -> Option<NonNull<u8>>;
/// `free(ctx, ptr)`.
pub type FreeFn = unsafe extern "C" fn(ctx: *mut c_void, ptr: Option<NonNull<u8>>);

/// What serves a domain: a context and the four functions that take it, in the layout of C's `PyMemAllocatorEx`.
///
/// Five machine words, copied freely. A record is itself a [`Malloc`]; unlike its functions, it refuses requests above
/// [`MAX_REQUEST`] bytes before they reach the allocator. Two records are equal when all five words are.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AllocatorRecord {
    ctx: *mut c_void,
    malloc: MallocFn,
    calloc: CallocFn,
    realloc: ReallocFn,
    free: FreeFn,
}

impl AllocatorRecord {
    /// The record of a Rust allocator that lives for ever.
    ///
    /// `Sync` is CPython's rule that an allocator is thread-safe in every domain, checked by the compiler.
    #[must_use]
    pub const fn new<A: Malloc + Sync + 'static>(allocator: &'static A) -> Self {
        often::record(allocator)
    }

    /// The same for an allocator that few processes have, such as a wrapper: its functions are apart from the others, so that a linker
    /// can put them elsewhere.
    #[must_use]
    pub const fn rare<A: Malloc + Sync + 'static>(allocator: &'static A) -> Self {
        rarely::record(allocator)
    }

    /// The [`rare`](Self::rare) record of an allocator, which is moved to memory of the C library and never dropped.
    ///
    /// Aborts, as `Box::new` does, when there is no memory for it.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn leak<A: Malloc + Sync + 'static>(allocator: A) -> Self {
        Self::rare(crate::immortal::leak(allocator))
    }

    /// A record from its five words.
    ///
    /// # Safety
    ///
    /// 1. `ctx` is what the four functions expect, for ever.
    /// 2. The functions keep the promises of [`Malloc`] for requests up to [`MAX_REQUEST`] bytes.
    /// 3. They may be called from several threads at once.
    #[must_use]
    pub const unsafe fn from_parts(
        ctx: *mut c_void,
        malloc: MallocFn,
        calloc: CallocFn,
        realloc: ReallocFn,
        free: FreeFn,
    ) -> Self {
        Self { ctx, malloc, calloc, realloc, free }
    }

    /// A record from C.
    ///
    /// # Errors
    ///
    /// [`RecordError::NullFunction`] when a function is missing, [`RecordError::NotThreadSafe`] when `threads` says that
    /// calls must not overlap: every domain is called from several threads.
    ///
    /// # Safety
    ///
    /// 1. `c.ctx` is what the four functions expect, for ever.
    /// 2. The functions keep the promises of [`Malloc`] for requests up to [`MAX_REQUEST`] bytes.
    /// 3. `threads` is true of them.
    pub const unsafe fn from_c(
        c: PyMemAllocatorEx,
        threads: ThreadSafety,
    ) -> Result<Self, RecordError> {
        if matches!(threads, ThreadSafety::OneAtATime) {
            return Err(RecordError::NotThreadSafe);
        }
        let Some(malloc) = c.malloc else { return Err(RecordError::NullFunction("malloc")) };
        let Some(calloc) = c.calloc else { return Err(RecordError::NullFunction("calloc")) };
        let Some(realloc) = c.realloc else { return Err(RecordError::NullFunction("realloc")) };
        let Some(free) = c.free else { return Err(RecordError::NullFunction("free")) };
        Ok(Self { ctx: c.ctx, malloc, calloc, realloc, free })
    }

    /// The record for C.
    #[must_use]
    pub const fn to_c(self) -> PyMemAllocatorEx {
        PyMemAllocatorEx {
            ctx: self.ctx,
            malloc: Some(self.malloc),
            calloc: Some(self.calloc),
            realloc: Some(self.realloc),
            free: Some(self.free),
        }
    }

    /// The context: the first argument of each function.
    #[must_use]
    pub const fn ctx(&self) -> *mut c_void {
        self.ctx
    }

    /// The five words as addresses, for comparison.
    fn words(&self) -> [usize; 5] {
        [
            self.ctx.addr(),
            self.malloc as usize,
            self.calloc as usize,
            self.realloc as usize,
            self.free as usize,
        ]
    }
}

// SAFETY: the words are never changed, and the functions may be called with the context from any thread: by `Sync` in
// `new` and `leak`, by promise 3 in `from_parts` and `from_c`.
unsafe impl Send for AllocatorRecord {}
// SAFETY: as above.
unsafe impl Sync for AllocatorRecord {}

impl PartialEq for AllocatorRecord {
    fn eq(&self, other: &Self) -> bool {
        self.words() == other.words()
    }
}

impl Eq for AllocatorRecord {}

// SAFETY: promises 1-4 are those of the allocator behind the record: by its own `Malloc` in `new` and `leak`, by
// promise 2 in `from_parts` and `from_c`; larger requests answer `None` here. `extern "C"` functions never unwind.
// 5: copies share the allocator.
unsafe impl Malloc for AllocatorRecord {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        if size > MAX_REQUEST {
            return None;
        }
        // SAFETY: the context belongs to the function; the type's constructors promise both.
        unsafe { (self.malloc)(self.ctx, size) }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        if nelem.checked_mul(elsize).is_none_or(|size| size > MAX_REQUEST) {
            return None;
        }
        // SAFETY: the context belongs to the function; the type's constructors promise both.
        unsafe { (self.calloc)(self.ctx, nelem, elsize) }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        if new_size > MAX_REQUEST {
            return None;
        }
        // SAFETY: the context belongs to the function; the caller's duties 1 and 2 are the function's.
        unsafe { (self.realloc)(self.ctx, ptr, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the context belongs to the function; the caller's duties 1 and 2 are the function's.
        unsafe { (self.free)(self.ctx, ptr) }
    }
}

/// C's `PyMemAllocatorEx`: an allocator record whose functions may be missing.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PyMemAllocatorEx {
    /// First argument of each function.
    pub ctx: *mut c_void,
    /// `malloc(ctx, size)`.
    pub malloc: Option<MallocFn>,
    /// `calloc(ctx, nelem, elsize)`.
    pub calloc: Option<CallocFn>,
    /// `realloc(ctx, ptr, new_size)`.
    pub realloc: Option<ReallocFn>,
    /// `free(ctx, ptr)`.
    pub free: Option<FreeFn>,
}

impl PyMemAllocatorEx {
    /// Five null words: what C's `PyMem_GetAllocator` gives for an unknown domain.
    pub const NULL: Self =
        Self { ctx: ptr::null_mut(), malloc: None, calloc: None, realloc: None, free: None };
}

/// Whether an allocator's functions may run on several threads at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum ThreadSafety {
    /// From any thread, several at once.
    AnyThread,
    /// Calls must not overlap.
    OneAtATime,
}

/// A C record that cannot serve a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The function of this name is null.
    #[error("the record's `{0}` function is null; an allocator needs all four functions")]
    NullFunction(&'static str),
    /// Interpreters with their own lock share the installed allocator, so each domain is called from several threads.
    #[error("the allocator is not thread-safe, which every domain requires; put a lock around it")]
    NotThreadSafe,
}

/// A record of an allocator, by four functions for its type.
macro_rules! functions {
    ($name:ident) => {
        mod $name {
            use super::{AllocatorRecord, Malloc, NonNull, c_void, ptr};

            pub(super) const fn record<A: Malloc + Sync + 'static>(
                allocator: &'static A,
            ) -> AllocatorRecord {
                AllocatorRecord {
                    ctx: ptr::from_ref(allocator).cast_mut().cast(),
                    malloc: malloc::<A>,
                    calloc: calloc::<A>,
                    realloc: realloc::<A>,
                    free: free::<A>,
                }
            }

            /// # Safety
            ///
            /// 1. `ctx` came from a `&'static A`.
            unsafe extern "C" fn malloc<A: Malloc>(
                ctx: *mut c_void,
                size: usize,
            ) -> Option<NonNull<u8>> {
                // SAFETY: by 1.
                let allocator = unsafe { &*ctx.cast::<A>() };
                allocator.malloc(size)
            }

            /// # Safety
            ///
            /// 1. `ctx` came from a `&'static A`.
            unsafe extern "C" fn calloc<A: Malloc>(
                ctx: *mut c_void,
                nelem: usize,
                elsize: usize,
            ) -> Option<NonNull<u8>> {
                // SAFETY: by 1.
                let allocator = unsafe { &*ctx.cast::<A>() };
                allocator.calloc(nelem, elsize)
            }

            /// # Safety
            ///
            /// 1. `ctx` came from a `&'static A`.
            /// 2. The duties of [`Malloc::realloc`].
            unsafe extern "C" fn realloc<A: Malloc>(
                ctx: *mut c_void,
                ptr: Option<NonNull<u8>>,
                new_size: usize,
            ) -> Option<NonNull<u8>> {
                // SAFETY: by 1.
                let allocator = unsafe { &*ctx.cast::<A>() };
                // SAFETY: by 2.
                unsafe { allocator.realloc(ptr, new_size) }
            }

            /// # Safety
            ///
            /// 1. `ctx` came from a `&'static A`.
            /// 2. The duties of [`Malloc::free`].
            unsafe extern "C" fn free<A: Malloc>(ctx: *mut c_void, ptr: Option<NonNull<u8>>) {
                // SAFETY: by 1.
                let allocator = unsafe { &*ctx.cast::<A>() };
                // SAFETY: by 2.
                unsafe { allocator.free(ptr) }
            }
        }
    };
}

functions!(often);
functions!(rarely);
