//! The model face: loom's atomics, and one planted fault at a time.

#[path = "model/atomics.rs"]
mod atomics;
#[path = "model/turn.rs"]
mod turn;

use core::sync::atomic::{AtomicU8, Ordering as Real};

pub(crate) use loom::hint::spin_loop;
pub(crate) use loom::sync::atomic::Ordering;
pub(crate) use loom::thread::yield_now;

pub(crate) use atomics::{AtomicBool, AtomicPtr, AtomicU64, fence};

use super::Site;

/// One, so that two participants meet the growth of the slot list.
pub(crate) const CHUNK_SLOTS: usize = 1;

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
