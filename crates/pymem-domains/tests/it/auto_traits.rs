//! What the types promise about threads, checked when the tests are compiled.

use pymem_domains::{Description, DomainAllocator, Domains, HeapStats, Profile, Stats};
use static_assertions::assert_impl_all;

assert_impl_all!(Domains: Send, Sync);
assert_impl_all!(DomainAllocator: Send, Sync);
assert_impl_all!(Profile: Send, Sync);
assert_impl_all!((Stats, HeapStats, Description): Send, Sync);
