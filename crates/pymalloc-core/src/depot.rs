//! Owns the depot, which knows the magazines of all threads of an allocator. Leaves the magazines of one thread to `slots.rs`, and to
//! `exchange.rs` when blocks move between magazines and pools.

use core::ptr::NonNull;

use crate::lane::Lane;
use crate::size_class::SizeClass;
use crate::slots::{FixedMap, Home, Magazines};

/// All magazines before an allocator's pools.
#[derive(Clone)]
pub(crate) struct Depot {
    first: Option<&'static Magazines>,
    /// The process that was about to fork.
    process: i32,
    /// In a child that has not taken over yet: the magazines of the thread that forked. All others in use have lost their thread.
    survivor: Option<&'static Magazines>,
}

impl Depot {
    pub(crate) const fn new() -> Self {
        Self { first: None, process: 0, survivor: None }
    }

    /// Every thread's magazines, also those that wait for a thread, which are empty.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'static Magazines> {
        core::iter::successors(self.first, |magazines| magazines.next())
    }

    /// Threads in `lane`.
    pub(crate) fn threads_in(&self, lane: Lane) -> usize {
        self.all().filter(|magazines| !magazines.is_free.get() && magazines.lane() == lane).count()
    }

    /// Free blocks of `class` in magazines.
    pub(crate) fn blocks_of(&self, class: SizeClass) -> usize {
        self.all().map(|magazines| magazines.rack.len(usize::from(class.byte()))).sum()
    }

    /// Free blocks of `class` in magazines that begin from `start` on, within `bytes`.
    pub(crate) fn blocks_within(&self, class: SizeClass, start: usize, bytes: usize) -> usize {
        let row = usize::from(class.byte());
        let blocks = self.all().flat_map(|magazines| magazines.rack.blocks(row));
        blocks.filter(|block| block.addr().get().wrapping_sub(start) < bytes).count()
    }

    /// Magazines for another thread: those of one that has ended, or new ones in `place`'s memory.
    pub(crate) fn take(
        &mut self,
        home: &'static dyn Home,
        map: FixedMap,
        place: impl FnOnce(usize) -> Option<NonNull<u8>>,
    ) -> Option<&'static Magazines> {
        if let Some(magazines) = self.all().find(|magazines| magazines.is_free.get()) {
            magazines.is_free.set(false);
            return Some(magazines);
        }
        let place = place(size_of::<Magazines>())?;
        // SAFETY: 1: zero bytes of nobody else (`ArenaSource` 4), long enough, and never given back.
        let magazines = unsafe { Magazines::place(place, map, home, self.first) };
        self.first = Some(magazines);
        self.first
    }

    /// Lets another thread have `magazines`, which are empty.
    pub(crate) fn give_back(&self, magazines: &'static Magazines) {
        magazines.is_free.set(true);
    }

    /// Notes which process is about to fork.
    pub(crate) fn before_fork(&mut self, process: i32) {
        self.process = process;
    }

    /// Notes that `process` has come out of a fork, and which magazines the calling thread has.
    pub(crate) fn after_fork(&mut self, process: i32, own: &'static Magazines) {
        if self.process != process {
            self.survivor = Some(own);
        }
    }

    /// Magazines of a thread that was lost in a fork, and that have not been given back since.
    pub(crate) fn lost(&mut self) -> Option<&'static Magazines> {
        let survivor = self.survivor?;
        let is_lost = |magazines: &&'static Magazines| {
            !core::ptr::eq(*magazines, survivor) && !magazines.is_free.get()
        };
        let lost = self.all().find(is_lost);
        if lost.is_none() {
            self.survivor = None;
        }
        lost
    }
}
