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

use core::cell::Cell;
use std::rc::Rc;

use pymem_sync::qsbr::{Collector, Delayed, Domain, Participant, Reclaim};
use pymem_sync::{Drain, ForkLock, ForkLocks, Lock, LockGuard, Published, RawLock, RemoteStack};

struct Item;
impl Reclaim for Item {
    fn reclaim(self) {}
}

assert_is!(RawLock: Send, Sync);
assert_is!(Lock<Cell<u8>>: Send, Sync);
assert_not!(Lock<Rc<u8>>: Sync);
assert_not!(LockGuard<'static, Cell<u8>>: Sync);
assert_is!(ForkLock: Send, Sync);
assert_is!(ForkLocks: Send, Sync);
assert_is!(Published<u8>: Send, Sync);
assert_not!(Published<Cell<u8>>: Send);
assert_not!(Published<Cell<u8>>: Sync);
assert_is!(RemoteStack: Send, Sync);
assert_not!(Drain<'static>: Send);
assert_not!(Drain<'static>: Sync);
assert_is!(Collector: Send, Sync);
assert_is!(Domain<Item>: Send, Sync);
assert_is!(Participant<'static>: Send);
assert_not!(Participant<'static>: Sync);
assert_not!(Delayed<'static, Item>: Sync);
