//! Owns [`RawLock`] and [`Lock`]: mutual exclusion below the allocator, where a lock may not allocate.

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};

use crate::sync::{AtomicBool, Ordering, Site, const_in_real, nap, ordering, spin_loop, yield_now};

/// How often a waiter spins before it starts to yield its time slice.
const SPINS: u32 = 64;
/// After this many rounds a waiter naps instead of yielding: a waiter of higher priority than the holder yields to nobody.
const YIELDED: u32 = SPINS + 64;

/// A lock of one byte that never allocates, without data.
///
/// An uncontended lock is one compare-and-swap, an unlock one plain store. A contended `lock` looks 64 times while it spins,
/// 64 times while it yields its time slice, and then every 50 microseconds while it sleeps. Without the feature `std` it keeps
/// spinning. It is not fair, has no owner and is not reentrant: a second `lock` by the same thread waits for ever.
///
/// **Fork**: the child inherits the byte as it was. Lock in `pthread_atfork`'s prepare handler and unlock in both other
/// handlers: the forking thread holds the lock then, so the data is whole and the child can unlock it.
#[derive(Debug)]
pub struct RawLock {
    locked: AtomicBool,
}

impl RawLock {
    const_in_real! {
        /// An unlocked lock.
        #[must_use]
        pub const fn new() -> Self {
            Self { locked: AtomicBool::new(false) }
        }
    }

    /// Waits until the lock is free and takes it.
    #[inline]
    pub fn lock(&self) {
        if !self.try_lock() {
            self.lock_contended();
        }
    }

    #[cold]
    #[inline(never)]
    fn lock_contended(&self) {
        let mut round = 0_u32;
        loop {
            // Waiters only read, so the holder's unlock finds its cache line undisturbed.
            if !self.locked.load(Ordering::Relaxed) && self.try_lock() {
                return;
            }
            match round {
                0..SPINS => spin_loop(),
                SPINS..YIELDED => yield_now(),
                _ => nap(),
            }
            round = round.saturating_add(1);
        }
    }

    /// Takes the lock if it is free.
    #[inline]
    #[must_use = "the lock may not have been taken"]
    pub fn try_lock(&self) -> bool {
        // Acquire: pairs with the Release of `unlock`; see `loom_lock`.
        let acquire = ordering(Site::LockAcquire, Ordering::Acquire);
        self.locked.compare_exchange(false, true, acquire, Ordering::Relaxed).is_ok()
    }

    /// Gives the lock back.
    ///
    /// # Safety
    ///
    /// 1. The lock is held on behalf of the caller, who touches nothing that it protects afterwards. (In a forked child
    ///    the thread that forked holds what its parent held.)
    #[inline]
    pub unsafe fn unlock(&self) {
        // Release: pairs with the Acquire of `try_lock`; see `loom_lock`. A plain store on x86.
        self.locked.store(false, ordering(Site::LockRelease, Ordering::Release));
    }

    /// Whether somebody held the lock a moment ago; for reports and assertions only.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }
}

impl Default for RawLock {
    fn default() -> Self {
        Self::new()
    }
}

/// A [`RawLock`] with the data that it protects.
///
/// There is no poisoning: a panic while the guard lives unlocks it.
///
/// # Examples
///
/// ```
/// use pymem_sync::Lock;
///
/// static COUNT: Lock<u32> = Lock::new(0);
///
/// *COUNT.lock() += 1;
/// assert_eq!(*COUNT.lock(), 1);
/// ```
pub struct Lock<T: ?Sized> {
    raw: RawLock,
    value: UnsafeCell<T>,
}

// SAFETY: a lock hands `&mut T` from thread to thread, one at a time (`loom_lock`), which `T: Send` allows.
unsafe impl<T: ?Sized + Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    const_in_real! {
        /// An unlocked lock around `value`.
        #[must_use]
        pub const fn new(value: T) -> Self {
            Self { raw: RawLock::new(), value: UnsafeCell::new(value) }
        }
    }

    /// The value.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> Lock<T> {
    /// Waits until the lock is free; see [`RawLock`] for how.
    #[inline]
    pub fn lock(&self) -> LockGuard<'_, T> {
        self.raw.lock();
        LockGuard { lock: self }
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<LockGuard<'_, T>> {
        self.raw.try_lock().then(|| LockGuard { lock: self })
    }

    /// The value, without locking: the borrow shows that nobody else is there.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// The lock itself, for fork handlers, which lock in one function and unlock in others.
    #[must_use]
    pub const fn raw(&self) -> &RawLock {
        &self.raw
    }

    /// The value's address; reading or writing through it needs the lock.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut T {
        self.value.get()
    }
}

impl<T: Default> Default for Lock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tuple = f.debug_tuple("Lock");
        match self.try_lock() {
            Some(guard) => tuple.field(&&*guard),
            None => tuple.field(&format_args!("<locked>")),
        };
        tuple.finish()
    }
}

/// Access to the value of a [`Lock`]; unlocks it when dropped.
#[must_use = "the lock is given back when the guard is dropped"]
pub struct LockGuard<'a, T: ?Sized> {
    lock: &'a Lock<T>,
}

// SAFETY: a shared guard gives only `&T`.
unsafe impl<T: ?Sized + Sync> Sync for LockGuard<'_, T> {}

impl<T: ?Sized> Deref for LockGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock, so only this guard's borrows reach the value, and `&self` rules out a `&mut`.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for LockGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock, so only this guard's borrows reach the value, and `&mut self` is the only one.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for LockGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: (1) the guard holds the lock, and its borrows have ended.
        unsafe { self.lock.raw.unlock() };
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for LockGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
