//! What the types promise about threads, checked when the tests are compiled.

use mimalloc_heaps::{BarrierWorld, InterpreterHeaps, ThreadHeaps, ThreadMalloc, WorldThread};
use static_assertions::{assert_impl_all, assert_not_impl_any};

// Theaps belong to their thread.
assert_not_impl_any!(ThreadHeaps: Send, Sync);
assert_not_impl_any!(WorldThread<'static>: Sync);
assert_impl_all!(InterpreterHeaps: Send, Sync);
assert_impl_all!(BarrierWorld: Send, Sync);
assert_impl_all!(ThreadMalloc: Send, Sync);
