//! What the types promise about threads, checked when the tests are compiled.

use std::marker::PhantomData;

use malloc_api::{Forward, LibcMalloc};
use memdebug::{DebugHooks, GuardSampler, Options, ThreadWord};
use static_assertions::{assert_impl_all, assert_not_impl_any};

assert_impl_all!(DebugHooks<LibcMalloc>: Send, Sync);
assert_impl_all!(GuardSampler<LibcMalloc>: Send, Sync);
assert_impl_all!(Options: Send, Sync);
assert_impl_all!(ThreadWord: Send, Sync);

// Hooks and guard pages stay where their allocator stays.
assert_not_impl_any!(DebugHooks<Bound>: Send, Sync);
assert_not_impl_any!(GuardSampler<Bound>: Send, Sync);

/// An allocator that stays on its thread.
struct Bound(LibcMalloc, PhantomData<*const u8>);

// SAFETY: 1 and 2: the C library's allocator is one; 3: a field.
unsafe impl Forward for Bound {
    type Target = LibcMalloc;

    fn target(&self) -> &LibcMalloc {
        &self.0
    }
}
