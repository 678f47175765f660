//! Owns what a replay calls: a C record a domain, as CPython calls its allocators. Leaves the list of allocators to `rows.rs`.

use malloc_api::{AllocatorRecord, Forward, Malloc};

/// The allocators of the three domains: raw, mem, obj.
pub type Records = [AllocatorRecord; 3];

/// The same allocator in each domain.
pub fn all(record: AllocatorRecord) -> Records {
    [record; 3]
}

/// One allocator for raw and another for mem and obj, as in CPython's own table.
pub fn split(raw: AllocatorRecord, objects: AllocatorRecord) -> Records {
    [raw, objects, objects]
}

/// An allocator that one thread calls: its row is not [`threads`](crate::rows::Row::threads).
pub(crate) struct OneThread<A>(pub(crate) A);

// SAFETY: the rows of such allocators are replayed on the main thread alone.
unsafe impl<A> Sync for OneThread<A> {}

// SAFETY: 1-3: the field, which is not changed; a clone would have to clone it.
unsafe impl<A: Malloc> Forward for OneThread<A> {
    type Target = A;

    #[inline]
    fn target(&self) -> &A {
        &self.0
    }
}
