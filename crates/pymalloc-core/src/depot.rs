//! Owns the magazines of an allocator's threads, and the depot that knows all of them. Leaves to `slots.rs` how a thread finds its
//! own, and to `cached.rs` when blocks move between magazines and pools.
//!
//! A block in a magazine is live for the pools and free for everybody else: it is counted as free, and pins its pool. A magazine
//! has room for 15 blocks and 4 KiB, so that a thread pins little.

use core::cell::Cell;
use core::ptr::NonNull;

use pymem_sync::{MAGAZINE_BLOCKS, Magazine};

use crate::config::POOL_SHIFT;
use crate::policy::MAGAZINE_BYTES;
use crate::size_class::{ROWS, SizeClass};

/// An allocator whose threads have magazines, as their ends see it.
pub(crate) trait Home: Sync {
    /// Takes the blocks of a thread that ends.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns `magazines`, which are this allocator's, and does not use them any more.
    #[allow(dead_code, reason = "not every system says when a thread ends")]
    unsafe fn take_from_ended(&self, magazines: &'static Magazines);
}

/// Where an allocator's blocks are, for an address test without the lock: the source's span, and the class byte of each unit
/// of it, which stay where they are.
#[derive(Clone, Copy)]
pub(crate) struct FixedMap {
    pub(crate) base: usize,
    pub(crate) bytes: usize,
    pub(crate) classes: *const u8,
}

/// The magazines of one thread, one for each class byte.
#[repr(C)]
pub(crate) struct Magazines {
    rows: [Magazine; ROWS],
    map: FixedMap,
    /// `None` for those that take and give nothing.
    home: Option<&'static dyn Home>,
    next: Option<&'static Self>,
    /// Whether they wait for a thread; read and written under the allocator's lock.
    is_free: Cell<bool>,
}

// SAFETY: of a magazine other threads call nothing but what any thread may; `is_free` is used under the lock, `classes` leads to a
// table of bytes of which each is read by those who have a block there, and the rest is written before it is shared.
unsafe impl Sync for Magazines {}

/// Those of a thread that is not known yet.
pub(crate) static UNKNOWN: Magazines = Magazines::nobodys();
/// Those of a thread that ends, or has no memory for its own.
pub(crate) static NONE: Magazines = Magazines::nobodys();

impl Magazines {
    const fn nobodys() -> Self {
        Self {
            rows: [const { Magazine::new(0) }; ROWS],
            map: FixedMap { base: 0, bytes: 0, classes: core::ptr::null() },
            home: None,
            next: None,
            is_free: Cell::new(false),
        }
    }

    /// Whose these are.
    pub(crate) fn home(&self) -> Option<&'static dyn Home> {
        self.home
    }

    /// The magazine of a class byte.
    ///
    /// # Safety
    ///
    /// 1. `row` is a class byte, or 0.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, row: u8) -> &Magazine {
        // SAFETY: 1: class bytes are at most `SizeClass::COUNT`.
        unsafe { self.rows.get_unchecked(usize::from(row)) }
    }

    /// The class byte of a block at `address`; 0 if the block is not in the span, or its pool's class has none.
    ///
    /// # Safety
    ///
    /// 1. A live block of the allocator begins at `address`.
    #[inline(always)]
    pub(crate) unsafe fn class_byte(&self, address: usize) -> u8 {
        let offset = address.wrapping_sub(self.map.base);
        if offset >= self.map.bytes {
            return 0;
        }
        // SAFETY: the table covers the span (`AddressMap::fix_table`), and nobody writes the byte while the block lives (1).
        unsafe { *self.map.classes.wrapping_add(offset >> POOL_SHIFT) }
    }

    /// Takes every block out of every magazine, and hands it to `each`.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns the magazines, or has seen all that their last owner did.
    pub(crate) unsafe fn drain(&self, mut each: impl FnMut(NonNull<u8>)) {
        for magazine in &self.rows {
            // SAFETY: 1.
            unsafe { magazine.drain(MAGAZINE_BLOCKS, &mut each) };
        }
    }
}

/// Room of the magazine of a class byte, in blocks.
const fn room(row: usize) -> usize {
    match SizeClass::from_byte(row as u8) {
        Some(class) => MAGAZINE_BYTES / class.size(),
        None => 0,
    }
}

/// All magazines before an allocator's pools.
#[derive(Clone)]
pub(crate) struct Depot {
    first: Option<&'static Magazines>,
    /// The process that was about to fork.
    process: i32,
}

impl Depot {
    pub(crate) const fn new() -> Self {
        Self { first: None, process: 0 }
    }

    /// Every thread's magazines, also those that wait for a thread, which are empty.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'static Magazines> {
        core::iter::successors(self.first, |magazines| magazines.next)
    }

    /// Free blocks of `class` in magazines.
    pub(crate) fn blocks_of(&self, class: SizeClass) -> usize {
        self.all().map(|magazines| magazines.rows[usize::from(class.byte())].len()).sum()
    }

    /// Free blocks of `class` in magazines that begin from `start` on, within `bytes`.
    pub(crate) fn blocks_within(&self, class: SizeClass, start: usize, bytes: usize) -> usize {
        let of_class = |magazines: &'static Magazines| &magazines.rows[usize::from(class.byte())];
        let blocks = self.all().map(of_class).flat_map(Magazine::blocks);
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
        let place = place(size_of::<Magazines>())?.cast::<Magazines>();
        let magazines = Magazines {
            rows: core::array::from_fn(|row| Magazine::new(room(row))),
            map,
            home: Some(home),
            next: self.first,
            is_free: Cell::new(false),
        };
        // SAFETY: pages of nobody else (`ArenaSource` 4), long enough.
        unsafe { place.write(magazines) };
        // SAFETY: written above, and never given back.
        self.first = Some(unsafe { place.as_ref() });
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

    /// Magazines of a thread that this process has not got, if it is a child that was forked just now: any but `own`.
    pub(crate) fn lost(&self, process: i32, own: &'static Magazines) -> Option<&'static Magazines> {
        let is_child = self.process != process;
        let is_lost = |magazines: &&'static Magazines| {
            is_child && !core::ptr::eq(*magazines, own) && !magazines.is_free.get()
        };
        self.all().find(is_lost)
    }
}
