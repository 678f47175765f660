//! Owns [`Published`]: one atomic pointer to an immutable record that lives for ever.

use core::fmt;
use core::marker::PhantomData;
use core::ptr;

use crate::sync::{AtomicPtr, Ordering, Site, const_in_real, ordering};

/// One atomic pointer to an immutable record, so that a reader always sees one whole record.
///
/// One word. Records are `'static`: old ones stay valid for readers that still hold them, so a program that publishes
/// often leaks on purpose (allocator tables change a handful of times in a process).
///
/// # Examples
///
/// ```
/// use pymem_sync::Published;
///
/// static LIMIT: Published<(u32, &str)> = Published::new(&(1, "small"));
///
/// assert_eq!(*LIMIT.load(), (1, "small"));
/// LIMIT.store(&(2, "large"));
/// assert_eq!(*LIMIT.load(), (2, "large"));
/// ```
pub struct Published<T: 'static> {
    record: AtomicPtr<T>,
    // The pointer is a shared reference, so the record must be `Sync` for this to be.
    _shares: PhantomData<&'static T>,
}

impl<T: 'static> Published<T> {
    const_in_real! {
        /// Publishes `record` from the start.
        #[must_use]
        pub const fn new(record: &'static T) -> Self {
            Self { record: AtomicPtr::new(ptr::from_ref(record).cast_mut()), _shares: PhantomData }
        }
    }

    /// The record that is published now; one load.
    #[inline]
    #[must_use]
    pub fn load(&self) -> &'static T {
        // Acquire: pairs with the Release of whoever published the record; see `loom_published`.
        let record = self.record.load(ordering(Site::PublishedLoad, Ordering::Acquire));
        // SAFETY: made from a `&'static T`, as every value that the pointer ever has, and records are never written to.
        unsafe { &*record }
    }

    /// Publishes `record` in place of any other.
    pub fn store(&self, record: &'static T) {
        // Release: pairs with the Acquire of `load`; see `loom_published`.
        self.record.store(
            ptr::from_ref(record).cast_mut(),
            ordering(Site::PublishedStore, Ordering::Release),
        );
    }
}

impl<T: fmt::Debug + 'static> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Published").field(self.load()).finish()
    }
}
