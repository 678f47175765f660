//! Owns [`Scoped`]: calls without a handle, which go to the allocator that the calling thread has entered.

extern crate std;

use core::cell::Cell;
use core::ptr::NonNull;

use crate::Malloc;

std::thread_local! {
    /// The allocator that this thread has entered last; each `enter` puts the one before back. No destructor.
    static ENTERED: Cell<Option<NonNull<dyn Malloc>>> = const { Cell::new(None) };
}

/// The malloc family of the allocator that the calling thread has [entered](enter), and of `A` outside.
///
/// A static handle for a runtime whose calls carry none: inside of a request they are the request's
/// [`Account`](crate::Account). A call costs a thread-local word and a call through a table more than one of the allocator.
///
/// # Examples
///
/// ```
/// use malloc_api::testing::Counting;
/// use malloc_api::{LibcMalloc, Malloc, Scoped, enter};
///
/// static RUNTIME: Scoped<LibcMalloc> = Scoped::new(LibcMalloc);
///
/// let request = Counting::new(LibcMalloc);
/// let work = || {
///     let block = RUNTIME.malloc(100);
///     // SAFETY: 1: a live block of this scope; 2: forgotten here.
///     unsafe { RUNTIME.free(block) };
/// };
/// // SAFETY: 1, 2: the block is made and freed in the scope.
/// unsafe { enter(&request, work) };
/// assert_eq!(request.counts().malloc, 1);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Scoped<A> {
    outside: A,
}

impl<A> Scoped<A> {
    /// A handle whose calls outside of any scope go to `outside`.
    #[must_use]
    pub const fn new(outside: A) -> Self {
        Self { outside }
    }
}

/// Calls `work`, during which this thread's calls of every [`Scoped`] go to `allocator`.
///
/// Nests; the allocator before is entered again afterwards, also when `work` unwinds. Other threads are not touched, those that
/// `work` starts included.
///
/// # Safety
///
/// 1. Every block that a `Scoped` makes in `work` is freed and resized by one while this thread has entered `allocator`, or never.
/// 2. No other block is freed or resized by a `Scoped` in `work`, but in scopes of their own allocators.
pub unsafe fn enter<R>(allocator: &dyn Malloc, work: impl FnOnce() -> R) -> R {
    struct Leave(Option<NonNull<dyn Malloc>>);
    impl Drop for Leave {
        fn drop(&mut self) {
            ENTERED.set(self.0);
        }
    }
    let allocator = NonNull::from(allocator);
    // SAFETY: only the lifetime changes; `Leave` takes the pointer out before the borrow ends.
    let allocator =
        unsafe { core::mem::transmute::<NonNull<dyn Malloc + '_>, NonNull<dyn Malloc>>(allocator) };
    let _leave = Leave(ENTERED.replace(Some(allocator)));
    work()
}

impl<A: Malloc> Scoped<A> {
    #[inline]
    fn with<R>(&self, call: impl FnOnce(&dyn Malloc) -> R) -> R {
        match ENTERED.get() {
            // SAFETY: `enter` borrows the allocator for as long as the pointer is set, on this thread alone.
            Some(entered) => call(unsafe { entered.as_ref() }),
            None => call(&self.outside),
        }
    }
}

// SAFETY: each method is the same method of one allocator, which keeps promises 1 to 5; that a block meets its own one is
// duty 1 and 2 of `enter`.
unsafe impl<A: Malloc> Malloc for Scoped<A> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.with(|allocator| allocator.malloc(size))
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.with(|allocator| allocator.calloc(nelem, elsize))
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // SAFETY: 1, 2: the caller's.
        self.with(|allocator| unsafe { allocator.realloc(ptr, new_size) })
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: 1, 2: the caller's.
        self.with(|allocator| unsafe { allocator.free(ptr) });
    }
}
