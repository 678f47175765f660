//! Which allocators may change threads, and which may be shared: checked when this file is compiled.

#![expect(dead_code, reason = "of two constants of a name one is used")]

use std::cell::Cell;
use std::marker::PhantomData;

use malloc_api::LibcMalloc;
use pymalloc_core::{
    Graveyard, LocalPymalloc, LockedPymalloc, MmapArenas, NoFallback, OwnedPymalloc, Remote,
    StaticArenas,
};

/// `IS` is true for a type with the trait, and for any other type a constant of a trait, which the type's own one hides.
macro_rules! has {
    ($t:ty: $($bound:tt)+) => {{
        trait Not {
            const IS: bool = false;
        }
        impl<T: ?Sized> Not for Has<T> {}
        struct Has<T: ?Sized>(PhantomData<T>);
        impl<T: ?Sized + $($bound)+> Has<T> {
            const IS: bool = true;
        }
        <Has<$t>>::IS
    }};
}

type Local = LocalPymalloc<LibcMalloc, MmapArenas>;
type Locked = LockedPymalloc<LibcMalloc, MmapArenas>;
type Owned = OwnedPymalloc<LibcMalloc, MmapArenas>;
/// A source that stays in its thread.
type Bound<'a> = &'a Cell<u8>;

const _: () = assert!(has!(Local: Send) && !has!(Local: Sync));
const _: () = assert!(has!(Locked: Send) && has!(Locked: Sync));
const _: () = assert!(has!(Owned: Send) && !has!(Owned: Sync));
const _: () = assert!(has!(Remote<'_>: Send) && has!(Remote<'_>: Sync));
const _: () = assert!(has!(Graveyard<LibcMalloc, MmapArenas>: Sync));
const _: () = assert!(has!(StaticArenas<2>: Sync));
const _: () = assert!(has!(LocalPymalloc<NoFallback, &StaticArenas<2>>: Send));
const _: () = assert!(!has!(Bound<'_>: Send), "the macro tells the two apart");
