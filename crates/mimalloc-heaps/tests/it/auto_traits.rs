//! What the types promise about threads, at compile time.

/// Fails to compile for a type that implements the trait: then `method` is ambiguous.
macro_rules! assert_not {
    ($type:ty: $trait:ident) => {
        const _: fn() = || {
            trait Ambiguous<A> {
                fn method() {}
            }
            impl<T: ?Sized> Ambiguous<()> for T {}
            struct Implements;
            impl<T: ?Sized + $trait> Ambiguous<Implements> for T {}
            let _ = <$type as Ambiguous<_>>::method;
        };
    };
}

/// Fails to compile for a type that does not implement the trait.
macro_rules! assert_is {
    ($type:ty: $($trait:ident),+) => {
        const _: fn() = || {
            fn implements<T: ?Sized $(+ $trait)+>() {}
            implements::<$type>();
        };
    };
}

use mimalloc_heaps::{BarrierWorld, InterpreterHeaps, ThreadHeaps, ThreadMalloc, WorldThread};

// Theaps belong to their thread.
assert_not!(ThreadHeaps: Send);
assert_not!(ThreadHeaps: Sync);
assert_not!(WorldThread<'static>: Sync);
assert_is!(InterpreterHeaps: Send, Sync);
assert_is!(BarrierWorld: Send, Sync);
assert_is!(ThreadMalloc: Send, Sync);
