//! Owns the model's atomics and fence: loom's, each access behind a [`Turn`].

use loom::sync::atomic::{self, Ordering};

use super::super::Site;
use super::is_planted;
use super::turn::Turn;

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
atomic!(AtomicU64, u64);
atomic!(AtomicPtr<T>, *mut T);

impl AtomicU64 {
    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.turn.take();
        self.atomic.fetch_add(value, order)
    }
}
