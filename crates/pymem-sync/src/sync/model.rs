//! The model face: loom's atomics, each access behind a [`Turn`], and one planted fault at a time.

use core::cell::UnsafeCell;
use core::mem::ManuallyDrop;
use core::ptr;
use core::sync::atomic::{AtomicU8, Ordering as Real};

pub(crate) use loom::hint::spin_loop;
pub(crate) use loom::sync::atomic::Ordering;
pub(crate) use loom::thread::{yield_now, yield_now as nap};

use loom::sync::{Arc, atomic};

use super::site::Site;

/// One, so that two participants meet the growth of the slot list.
pub(crate) const CHUNK_SLOTS: usize = 1;

/// An atomic is more than its number.
pub(crate) const ZERO_IS_NEW: bool = false;

/// No site has this number.
const NONE: u8 = u8::MAX;

/// The site at which the running model plants its fault; set before the model starts, read by all its executions.
static PLANTED: AtomicU8 = AtomicU8::new(NONE);

/// Chooses the fault of every model that runs from now on in this process; `None` plants none.
#[doc(hidden)]
pub fn plant(site: Option<Site>) {
    PLANTED.store(site.map_or(NONE, |site| site as u8), Real::Relaxed);
}

fn is_planted(site: Site) -> bool {
    PLANTED.load(Real::Relaxed) == site as u8
}

/// `ordering`, or `Relaxed` when the fault is planted at `site`.
pub(crate) fn ordering(site: Site, ordering: Ordering) -> Ordering {
    chosen(site, ordering, Ordering::Relaxed)
}

/// `right`, or `planted` when the fault is planted at `site`.
pub(crate) fn chosen<T: Copy>(site: Site, right: T, planted: T) -> T {
    if is_planted(site) { planted } else { right }
}

/// Stands for plain memory that must have been written before it is read.
#[derive(Debug)]
pub(crate) struct Witness(loom::cell::UnsafeCell<()>);

// SAFETY: only reads after the constructor, and loom checks that they come after it.
unsafe impl Sync for Witness {}

impl Witness {
    /// Written now.
    pub(crate) fn new() -> Self {
        Self(loom::cell::UnsafeCell::new(()))
    }

    /// Read now.
    pub(crate) fn see(&self) {
        self.0.with(|_| ());
    }
}

/// A point that every access to one object passes, so that loom explores every order of the accesses.
///
/// loom 0.7 remembers one last access for each atomic. A thread that loads before its read-modify-write, as every
/// compare-and-swap loop does, hides with that load what other threads have loaded, and the orders in which its write comes
/// before their loads are never tried: a stack with two pushers and a drainer then passes with Relaxed pushes. Asking a
/// reference count whether it is one conflicts with every other such question, orders no memory, and so brings the lost
/// orders back.
#[derive(Debug)]
struct Turn(UnsafeCell<Arc<()>>);

// SAFETY: `take` is the only access, and it reads the handle alone.
unsafe impl Send for Turn {}
// SAFETY: as above; loom runs one thread at a time.
unsafe impl Sync for Turn {}

impl Turn {
    fn new() -> Self {
        Self(UnsafeCell::new(Arc::new(())))
    }

    /// Lets any thread that is about to pass go first.
    fn take(&self) {
        // SAFETY: the handle lives as long as `self`, and is never written to.
        let handle = unsafe { ptr::read(self.0.get()) };
        // A second handle without a count of its own: it must not be dropped.
        let mut handle = ManuallyDrop::new(handle);
        Arc::get_mut(&mut handle);
    }
}

/// Declares constructors that are `const` in the real face only.
macro_rules! const_in_real {
    ($($(#[$meta:meta])* $vis:vis const fn $name:ident($($arguments:tt)*) -> $result:ty $body:block)+) => {
        $($(#[$meta])* $vis fn $name($($arguments)*) -> $result $body)+
    };
}
pub(crate) use const_in_real;

/// An array of equal elements, each registered with the model.
macro_rules! array_in_face {
    ($element:expr; $length:expr) => {
        core::array::from_fn::<_, { $length }, _>(|_| $element)
    };
}
pub(crate) use array_in_face;

loom::lazy_static! {
    /// Fences meet no object, so loom would not try their orders either.
    static ref FENCES: Turn = Turn::new();
}

/// A sequentially consistent fence, unless the fault is its absence.
pub(crate) fn fence(site: Site) {
    FENCES.take();
    if !is_planted(site) {
        atomic::fence(Ordering::SeqCst);
    }
}

/// The near one of two fences of which the far one costs: a whole fence in the model.
pub(crate) fn near_fence(site: Site) {
    fence(site);
}

/// The far one of two fences.
pub(crate) fn far_fence(site: Site) {
    fence(site);
}

/// A model needs no system.
pub(crate) const fn prepare_far_fence() -> bool {
    true
}

/// The order that an interrupt keeps, for a model in which another thread stands for the interrupt.
pub(crate) fn interrupt_fence(site: Site) {
    if !is_planted(site) {
        atomic::fence(Ordering::Release);
    }
}

/// Wraps one of loom's atomics.
macro_rules! atomic {
    ($name:ident $(<$generic:ident>)?, $value:ty) => {
        #[derive(Debug)]
        pub(crate) struct $name $(<$generic>)? {
            atomic: atomic::$name $(<$generic>)?,
            turn: Turn,
        }

        #[allow(dead_code, reason = "the faces of all atomics are equal")]
        impl $(<$generic>)? $name $(<$generic>)? {
            pub(crate) fn new(value: $value) -> Self {
                // Made here, as its first use orders memory: a fence must not.
                let _: &Turn = &FENCES;
                Self { atomic: atomic::$name::new(value), turn: Turn::new() }
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.turn.take();
                self.atomic.load(order)
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.turn.take();
                self.atomic.store(value, order);
            }

            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                self.turn.take();
                self.atomic.swap(value, order)
            }

            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.turn.take();
                self.atomic.compare_exchange(current, new, success, failure)
            }

            pub(crate) fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.turn.take();
                self.atomic.compare_exchange_weak(current, new, success, failure)
            }
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicU16, u16);
atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
atomic!(AtomicPtr<T>, *mut T);

impl AtomicU64 {
    pub(crate) fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        self.turn.take();
        self.atomic.fetch_or(value, order)
    }

    pub(crate) fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        self.turn.take();
        self.atomic.fetch_and(value, order)
    }

    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.turn.take();
        self.atomic.fetch_add(value, order)
    }
}
