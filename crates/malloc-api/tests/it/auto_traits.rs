//! Which types may cross threads, checked when the tests are compiled.

use malloc_api::testing::{Counting, FailAfter, Refusals};
use malloc_api::{AllocatorAdapter, AllocatorRecord, GlobalAdapter, LibcMalloc};

const fn crosses_threads<T: Send + Sync>() {}

const _: () = crosses_threads::<AllocatorRecord>();
const _: () = crosses_threads::<GlobalAdapter<LibcMalloc>>();
const _: () = crosses_threads::<AllocatorAdapter<LibcMalloc>>();
const _: () = crosses_threads::<Counting<LibcMalloc>>();
const _: () = crosses_threads::<FailAfter<LibcMalloc>>();

/// Does not compile for a type with the trait: `f` would be one of two functions.
macro_rules! assert_not {
    ($type:ty: $trait:ident) => {
        const _: fn() = || {
            trait Ambiguous<A> {
                fn f() {}
            }
            struct Has;
            impl<T: ?Sized> Ambiguous<()> for T {}
            impl<T: ?Sized + $trait> Ambiguous<Has> for T {}
            <$type as Ambiguous<_>>::f();
        };
    };
}

// They count the calls of the thread that made them, and stop when they are dropped.
assert_not!(Refusals: Send);
assert_not!(Refusals: Sync);

// An adapter is no more than the allocator in it.
assert_not!(GlobalAdapter<&'static std::cell::Cell<u8>>: Send);
assert_not!(AllocatorAdapter<std::cell::Cell<u8>>: Sync);
