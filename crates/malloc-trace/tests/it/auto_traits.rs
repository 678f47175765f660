//! What the types promise about threads, checked when the tests are compiled.

use std::marker::PhantomData;

use malloc_api::{Forward, LibcMalloc};
use malloc_trace::{Live, Replay, ThreadedReplay};
use static_assertions::{assert_impl_all, assert_not_impl_any};

assert_impl_all!(ThreadedReplay: Send, Sync);
// A replay's table may hold blocks of an allocator that stays on its thread.
assert_not_impl_any!(Replay: Send);
// Live blocks are freed on the thread of their allocator.
assert_not_impl_any!(Live<'static, Bound>: Send, Sync);

/// An allocator that stays on its thread.
struct Bound(LibcMalloc, PhantomData<*const u8>);

// SAFETY: 1 and 2: the C library's allocator is one; 3: a field.
unsafe impl Forward for Bound {
    type Target = LibcMalloc;

    fn target(&self) -> &LibcMalloc {
        &self.0
    }
}
