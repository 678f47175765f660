//! Owns `Writer`: which process writes a file of what was asked for: the one that was asked, and each child that is forked from then
//! on, which goes on with what it inherits; and where the file can be.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::path::{self, Path, PathBuf};
use std::{io, process};

use malloc_api::{NewFile, immortal};
use pymem_sync::{ForkLock, HeldOverFork, Rank, hold_over_forks};

/// `path` from the root on, as the program may change its folder, where a file can be made now.
///
/// # Errors
///
/// What the system says about the file.
pub(crate) fn place(path: &Path) -> io::Result<PathBuf> {
    let path = path::absolute(path)?;
    NewFile::beside(&path)?;
    Ok(path)
}

/// The processes that write for one request.
pub(crate) struct Writer {
    /// The process that was asked.
    first: AtomicU32,
    /// The process that goes on: a child that was forked, and not one that borrows its parent's memory.
    current: AtomicU32,
    /// The process that has written its last file.
    done: AtomicU32,
}

impl Writer {
    /// Nobody, before [`begin`](Self::begin).
    pub(crate) const fn new() -> Self {
        Self { first: AtomicU32::new(0), current: AtomicU32::new(0), done: AtomicU32::new(0) }
    }

    /// Takes note that this process is asked.
    pub(crate) fn begin(&self) {
        [&self.first, &self.current].into_iter().for_each(|of| of.store(process::id(), Relaxed));
    }

    /// Has forked children go on. Without memory for the handlers they write nothing.
    pub(crate) fn follow_forks(&'static self) {
        let _ = hold_over_forks(immortal::leak(ForkLock::new(Rank::Wrapper, self)));
    }

    /// Whether this is the process that was asked; the file of another one has its number.
    pub(crate) fn is_first(&self) -> bool {
        self.first.load(Relaxed) == process::id()
    }

    /// Whether this process writes.
    pub(crate) fn is_current(&self) -> bool {
        self.current.load(Relaxed) == process::id()
    }

    /// Whether this process has its last file still to write.
    pub(crate) fn is_due(&self) -> bool {
        self.is_current() && self.done.load(Relaxed) != process::id()
    }

    /// Whether this process writes its last file now: it does so once.
    pub(crate) fn ends(&self) -> bool {
        let process = process::id();
        self.is_current() && self.done.swap(process, Relaxed) != process
    }
}

impl HeldOverFork for Writer {
    fn hold(&self) {}

    unsafe fn release(&self) {
        self.current.store(process::id(), Relaxed);
    }
}
