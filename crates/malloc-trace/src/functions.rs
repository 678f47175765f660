//! Owns `Functions`: an allocator as a context and four C functions, which is how an interpreter calls one.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use malloc_api::Malloc;

/// `malloc(ctx, size)`.
pub type MallocFn = unsafe extern "C" fn(*mut c_void, usize) -> Option<NonNull<u8>>;
/// `calloc(ctx, nelem, elsize)`.
pub type CallocFn = unsafe extern "C" fn(*mut c_void, usize, usize) -> Option<NonNull<u8>>;
/// `realloc(ctx, ptr, new_size)`.
pub type ReallocFn =
    unsafe extern "C" fn(*mut c_void, Option<NonNull<u8>>, usize) -> Option<NonNull<u8>>;
/// `free(ctx, ptr)`.
pub type FreeFn = unsafe extern "C" fn(*mut c_void, Option<NonNull<u8>>);

/// An allocator as a context and four C functions.
///
/// [`of`](Functions::of) makes one from any `Malloc`, with the allocator's code inlined into the four functions, so
/// that allocators of both origins are timed behind the same indirect call. It is a `Malloc` itself.
///
/// Invariant 1: the four functions keep the contract of `Malloc` when they are called with `ctx`, for `'a`.
#[derive(Debug, Clone, Copy)]
pub struct Functions<'a> {
    ctx: *mut c_void,
    malloc: MallocFn,
    calloc: CallocFn,
    realloc: ReallocFn,
    free: FreeFn,
    borrowed: PhantomData<&'a ()>,
}

impl<'a> Functions<'a> {
    /// The functions of `allocator`.
    #[must_use]
    pub fn of<A: Malloc>(allocator: &'a A) -> Self {
        Self {
            ctx: ptr::from_ref(allocator).cast_mut().cast(),
            malloc: call_malloc::<A>,
            calloc: call_calloc::<A>,
            realloc: call_realloc::<A>,
            free: call_free::<A>,
            borrowed: PhantomData,
        }
    }

    /// An allocator that exists as C functions.
    ///
    /// # Safety
    ///
    /// 1. For `'a`, the functions called with `ctx` keep the contract of `Malloc`, on the thread that calls them.
    #[must_use]
    pub const unsafe fn from_raw(
        ctx: *mut c_void,
        malloc: MallocFn,
        calloc: CallocFn,
        realloc: ReallocFn,
        free: FreeFn,
    ) -> Self {
        Self { ctx, malloc, calloc, realloc, free, borrowed: PhantomData }
    }
}

// SAFETY: promises 1-5 are invariant 1; copies share the context.
unsafe impl Malloc for Functions<'_> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: `malloc` may be called with its context (invariant 1).
        unsafe { (self.malloc)(self.ctx, size) }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        // SAFETY: `calloc` may be called with its context (invariant 1).
        unsafe { (self.calloc)(self.ctx, nelem, elsize) }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: `realloc` may be called with its context (invariant 1) and a block of the caller's (its 1, 2).
        unsafe { (self.realloc)(self.ctx, ptr, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: `free` may be called with its context (invariant 1) and a block of the caller's (its 1, 2).
        unsafe { (self.free)(self.ctx, ptr) }
    }
}

/// # Safety
///
/// 1. `ctx` is the address of an `A` that is borrowed for `'a`.
unsafe fn allocator<'a, A>(ctx: *mut c_void) -> &'a A {
    // SAFETY: caller's 1.
    unsafe { &*ctx.cast::<A>() }
}

unsafe extern "C" fn call_malloc<A: Malloc>(ctx: *mut c_void, size: usize) -> Option<NonNull<u8>> {
    // SAFETY: (1) `of` pairs this function with the address of its `A`.
    unsafe { allocator::<A>(ctx) }.malloc(size)
}

unsafe extern "C" fn call_calloc<A: Malloc>(
    ctx: *mut c_void,
    nelem: usize,
    elsize: usize,
) -> Option<NonNull<u8>> {
    // SAFETY: (1) `of` pairs this function with the address of its `A`.
    unsafe { allocator::<A>(ctx) }.calloc(nelem, elsize)
}

unsafe extern "C" fn call_realloc<A: Malloc>(
    ctx: *mut c_void,
    ptr: Option<NonNull<u8>>,
    new_size: usize,
) -> Option<NonNull<u8>> {
    // SAFETY: (1) `of` pairs this function with the address of its `A`.
    let allocator = unsafe { allocator::<A>(ctx) };
    // SAFETY: duties 1 and 2 are passed on by the caller, `Functions::realloc`.
    unsafe { allocator.realloc(ptr, new_size) }
}

unsafe extern "C" fn call_free<A: Malloc>(ctx: *mut c_void, ptr: Option<NonNull<u8>>) {
    // SAFETY: (1) `of` pairs this function with the address of its `A`.
    let allocator = unsafe { allocator::<A>(ctx) };
    // SAFETY: duties 1 and 2 are passed on by the caller, `Functions::free`.
    unsafe { allocator.free(ptr) }
}
