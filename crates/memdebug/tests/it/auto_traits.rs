//! What the types promise about threads, at compile time.

use std::marker::PhantomData;

use malloc_api::{Forward, LibcMalloc};
use memdebug::{DebugHooks, GuardSampler, Options, ThreadWord};

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

const fn crosses_threads<T: Send + Sync>() {}

const _: () = crosses_threads::<DebugHooks<LibcMalloc>>();
const _: () = crosses_threads::<GuardSampler<LibcMalloc>>();
const _: () = crosses_threads::<Options>();
const _: () = crosses_threads::<ThreadWord>();

// Hooks and guard pages stay where their allocator stays.
assert_not!(DebugHooks<Bound>: Send);
assert_not!(DebugHooks<Bound>: Sync);
assert_not!(GuardSampler<Bound>: Send);
assert_not!(GuardSampler<Bound>: Sync);

/// An allocator that stays on its thread.
struct Bound(LibcMalloc, PhantomData<*const u8>);

// SAFETY: 1 and 2: the C library's allocator is one; 3: a field.
unsafe impl Forward for Bound {
    type Target = LibcMalloc;

    fn target(&self) -> &LibcMalloc {
        &self.0
    }
}
