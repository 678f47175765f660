//! What the types promise about threads, checked when the tests are compiled.

use core::cell::Cell;
use std::rc::Rc;

use pymem_sync::qsbr::{Collector, Delayed, Domain, Participant, Reclaim};
use pymem_sync::{
    Drain, ForkLock, ForkLocks, IdleUnits, Keeper, Lock, LockGuard, Published, RawLock, RemoteStack,
};
use static_assertions::{assert_impl_all, assert_not_impl_any};

struct Item;
impl Reclaim for Item {
    fn reclaim(self) {}
}

assert_impl_all!(RawLock: Send, Sync);
assert_impl_all!(Lock<Cell<u8>>: Send, Sync);
assert_not_impl_any!(Lock<Rc<u8>>: Sync);
assert_not_impl_any!(LockGuard<'static, Cell<u8>>: Sync);
assert_impl_all!(ForkLock: Send, Sync);
assert_impl_all!(ForkLocks: Send, Sync);
assert_impl_all!(Published<u8>: Send, Sync);
assert_not_impl_any!(Published<Cell<u8>>: Send, Sync);
assert_impl_all!(RemoteStack: Send, Sync);
assert_not_impl_any!(Drain<'static>: Send, Sync);
assert_impl_all!(IdleUnits: Send, Sync);
assert_impl_all!(Keeper: Send, Sync);
assert_impl_all!(Collector: Send, Sync);
assert_impl_all!(Domain<Item>: Send, Sync);
assert_impl_all!(Participant<'static>: Send);
assert_not_impl_any!(Participant<'static>: Sync);
assert_not_impl_any!(Delayed<'static, Item>: Sync);
