//! What the types promise about threads, checked when the tests are compiled.

use std::cell::Cell;

use malloc_api::testing::{Counting, FailAfter, Refusals};
use malloc_api::{AllocatorAdapter, AllocatorRecord, GlobalAdapter, LibcMalloc};
use static_assertions::{assert_impl_all, assert_not_impl_any};

assert_impl_all!(AllocatorRecord: Send, Sync);
assert_impl_all!(GlobalAdapter<LibcMalloc>: Send, Sync);
assert_impl_all!(AllocatorAdapter<LibcMalloc>: Send, Sync);
assert_impl_all!(Counting<LibcMalloc>: Send, Sync);
assert_impl_all!(FailAfter<LibcMalloc>: Send, Sync);

// Refusals count the calls of the thread that made them, and stop when they are dropped.
assert_not_impl_any!(Refusals: Send, Sync);
// An adapter may do what the allocator in it may do.
assert_not_impl_any!(GlobalAdapter<&'static Cell<u8>>: Send);
assert_not_impl_any!(AllocatorAdapter<Cell<u8>>: Sync);
