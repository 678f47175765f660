//! What the types promise about threads, checked when the tests are compiled.

use mimalloc_heaps::{BarrierWorld, InterpreterHeaps, ThreadHeaps, ThreadMalloc, WorldThread};
use static_assertions::{assert_impl_all, assert_not_impl_any};

// Theaps belong to their thread.
assert_not_impl_any!(ThreadHeaps: Send, Sync);
// On another thread it would stop a world in which the one that joined runs.
assert_not_impl_any!(WorldThread<'static>: Send, Sync);
assert_impl_all!(InterpreterHeaps: Send, Sync);
assert_impl_all!(BarrierWorld: Send, Sync);
assert_impl_all!(ThreadMalloc: Send, Sync);
