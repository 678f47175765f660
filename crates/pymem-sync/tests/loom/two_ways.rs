//! Data with two ways in: without a lock through a passage, as long as that is open, and with one.
#![allow(dead_code, reason = "each model uses what it needs")]

use loom::sync::atomic::{AtomicBool, Ordering};
use pymem_sync::{Lock, Passage};

use crate::model::{Leak, Plain};

/// As pools are that have no lock until there is a second interpreter.
pub(crate) struct Pools {
    pub(crate) passage: Passage,
    /// Whether the hot path may go in; as after the first call.
    pub(crate) sign: AtomicBool,
    lock: Lock<()>,
    pub(crate) data: Plain<u32>,
}

impl Pools {
    pub(crate) fn new() -> Leak<Self> {
        Leak::new(Self {
            passage: Passage::new(),
            sign: AtomicBool::new(true),
            lock: Lock::new(()),
            data: Plain::new(0),
        })
    }

    /// A call that does not ask the sign, and sets it.
    pub(crate) fn call_slowly(&self) {
        self.passage.enter();
        if self.passage.is_open() {
            self.data.write(self.data.read() + 1);
            self.sign.store(true, Ordering::Relaxed);
            self.passage.leave();
        } else {
            self.passage.leave();
            self.call_locked();
        }
    }

    /// A call that asks the sign alone, before and after the mark.
    pub(crate) fn call(&self) {
        if self.sign.load(Ordering::Relaxed) {
            self.passage.enter();
            if self.sign.load(Ordering::Relaxed) {
                self.data.write(self.data.read() + 1);
                return self.passage.leave();
            }
            self.passage.leave();
        }
        self.call_locked();
    }

    pub(crate) fn call_locked(&self) {
        let _guard = self.lock.lock();
        self.data.write(self.data.read() + 1);
    }

    pub(crate) fn close(&self) {
        self.passage.close(|| self.sign.store(false, Ordering::Relaxed));
    }
}
