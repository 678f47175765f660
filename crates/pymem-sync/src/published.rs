//! Owns [`Published`]: one atomic pointer to an immutable record that lives for ever.

use core::fmt;
use core::marker::PhantomData;
use core::ptr;

use crate::sync::{AtomicPtr, Ordering, Site, chosen, const_in_real, ordering};

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
/// let old = LIMIT.swap(&(2, "large"));
/// assert_eq!((*old, *LIMIT.load()), ((1, "small"), (2, "large")));
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
        // SAFETY: [P1] holds for every value that the pointer ever has.
        unsafe { Self::record(record) }
    }

    /// Publishes `record` in place of any other.
    pub fn store(&self, record: &'static T) {
        // Release: pairs with the Acquire of `load`; see `loom_published`.
        self.record.store(
            ptr::from_ref(record).cast_mut(),
            ordering(Site::PublishedStore, Ordering::Release),
        );
    }

    /// Publishes `record` and returns the one that it replaces.
    pub fn swap(&self, record: &'static T) -> &'static T {
        // AcqRel: both roles of `load` and `store`; see `loom_published`.
        let published = chosen(Site::PublishedStore, Ordering::AcqRel, Ordering::Acquire);
        let both = chosen(Site::PublishedLoad, published, Ordering::Release);
        let old = self.record.swap(ptr::from_ref(record).cast_mut(), both);
        // SAFETY: [P1] holds for every value that the pointer ever has.
        unsafe { Self::record(old) }
    }

    /// Publishes `new` if the record at the address of `current` is still published, and returns `current`.
    ///
    /// Records are compared by address, never by value. There is no ABA fault: the same address is the same record, as
    /// records never change and never die.
    ///
    /// # Errors
    ///
    /// The record that is published instead; nothing has changed.
    pub fn compare_exchange(
        &self,
        current: &'static T,
        new: &'static T,
    ) -> Result<&'static T, &'static T> {
        // Release on success, as in `store`: the caller knows `current`. Acquire on failure, as in `load`. See
        // `loom_published`.
        let result = self.record.compare_exchange(
            ptr::from_ref(current).cast_mut(),
            ptr::from_ref(new).cast_mut(),
            ordering(Site::PublishedStore, Ordering::Release),
            ordering(Site::PublishedLost, Ordering::Acquire),
        );
        match result {
            Ok(_) => Ok(current),
            // SAFETY: [P1] holds for every value that the pointer ever has.
            Err(other) => Err(unsafe { Self::record(other) }),
        }
    }

    /// Publishes what `next` makes of the current record, trying again when another thread was quicker, and returns the
    /// record that was replaced.
    ///
    /// `next` may run several times; what it leaks in a lost round stays leaked.
    ///
    /// # Errors
    ///
    /// The current record, when `next` returned `None` for it.
    pub fn update(
        &self,
        mut next: impl FnMut(&'static T) -> Option<&'static T>,
    ) -> Result<&'static T, &'static T> {
        let mut current = self.load();
        loop {
            let Some(new) = next(current) else { return Err(current) };
            match self.compare_exchange(current, new) {
                Ok(old) => return Ok(old),
                Err(other) => current = other,
            }
        }
    }

    /// The record behind a value of `self.record`.
    ///
    /// # Safety
    ///
    /// 1. \[P1\] `record` was made from a `&'static T`.
    unsafe fn record(record: *mut T) -> &'static T {
        // SAFETY: (1) a pointer from a `&'static T` is valid for reads for ever, and records are never written to.
        unsafe { &*record }
    }
}

impl<T: fmt::Debug + 'static> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Published").field(self.load()).finish()
    }
}
