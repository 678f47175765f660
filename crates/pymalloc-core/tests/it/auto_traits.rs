//! What the types promise about threads, checked when the tests are compiled.

use malloc_api::{Account, Budget, LibcMalloc};
use pymalloc_core::{
    Graveyard, LocalPools, LocalPymalloc, LockedPools, LockedPymalloc, MmapArenas, NoFallback,
    OwnedPymalloc, Remote, StaticArenas,
};
use static_assertions::{assert_impl_all, assert_not_impl_any};

type Local = LocalPymalloc<LibcMalloc, MmapArenas>;
type Owned = OwnedPymalloc<LibcMalloc, MmapArenas>;

assert_impl_all!(Local: Send);
assert_not_impl_any!(Local: Sync);
assert_impl_all!(LockedPymalloc<LibcMalloc, MmapArenas>: Send, Sync);
assert_impl_all!(Owned: Send);
assert_not_impl_any!(Owned: Sync);
assert_impl_all!(Remote<'static>: Send, Sync);
assert_impl_all!(Account<LocalPools<LibcMalloc, MmapArenas, &'static Budget>>: Send);
assert_not_impl_any!(Account<LocalPools<LibcMalloc, MmapArenas, &'static Budget>>: Sync, Clone);
assert_impl_all!(Account<LockedPools<LibcMalloc, MmapArenas, &'static Budget>>: Send, Sync);
assert_impl_all!(Graveyard<LibcMalloc, MmapArenas>: Sync);
assert_impl_all!(StaticArenas<2>: Sync);
assert_impl_all!(LocalPymalloc<NoFallback, &'static StaticArenas<2>>: Send);
