//! Owns what moves between an allocator's pools and the magazines of its threads, under the lock. Leaves to `cached.rs` what a thread
//! does without it.

use core::ptr::NonNull;

use malloc_api::{Malloc, ReleaseLevel};

use crate::lane::Lane;
use crate::policy::MEETINGS;
use crate::pymalloc::Pymalloc;
use crate::size_class::{ROWS, SizeClass};
use crate::slots::{FixedMap, Home, Magazines};
use crate::source::ArenaSource;
use crate::stock::Stock;

impl<R: Malloc, S: ArenaSource> Pymalloc<R, S> {
    /// Where the blocks are, once and for all; `None` without memory, or without a span.
    fn fix_map(&mut self) -> Option<FixedMap> {
        if self.key == 0 {
            self.begin();
        }
        self.stock.map.fix_table(&self.stock.source)
    }

    /// Magazines for a thread that has none; `None` without memory, or without a span.
    pub(crate) fn magazines_for(&mut self, home: &'static dyn Home) -> Option<&'static Magazines> {
        let map = self.fix_map()?;
        self.depot.take(home, map, |bytes| self.stock.source.alloc_table(bytes))
    }

    /// Notes that the thread of `magazines` has waited for the lock. If that happens often, the magazines get more room, and a lane
    /// with few threads; the last thread of the first lane stays there, with what all have left.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns `magazines`.
    pub(crate) unsafe fn note_meeting(&mut self, magazines: &Magazines) {
        if magazines.home().is_none() || magazines.meetings() >= MEETINGS {
            return;
        }
        magazines.meet();
        if magazines.meetings() < MEETINGS {
            return;
        }
        let is_last = self.depot.threads_in(Lane::FIRST) < 2;
        let other = Lane::others().min_by_key(|lane| self.depot.threads_in(*lane));
        let lane = other.filter(|lane| !is_last && self.open_lane(*lane)).unwrap_or(Lane::FIRST);
        // SAFETY: 1: the caller's.
        unsafe { self.empty(magazines) };
        // SAFETY: 1: the caller's.
        unsafe { magazines.enter(lane) };
    }

    /// Takes the thread of `magazines`, which are empty, out of its lane.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns them, or has seen all that their last owner did.
    unsafe fn leave_lane(&mut self, magazines: &Magazines) {
        let lane = magazines.lane();
        // SAFETY: 1: the caller's.
        unsafe { magazines.begin() };
        if lane != Lane::FIRST && self.depot.threads_in(lane) == 0 {
            self.close_lane(lane);
        }
    }

    /// Lets `lane` have pools; `false` without memory.
    fn open_lane(&mut self, lane: Lane) -> bool {
        let Stock { arenas, source, .. } = &mut self.stock;
        self.used.open(lane, |bytes| source.alloc_table(bytes))
            && arenas.open(lane, |bytes| source.alloc_table(bytes))
    }

    /// Gives the pools of `lane` to the first.
    fn close_lane(&mut self, lane: Lane) {
        for class in SizeClass::all() {
            while let Some(pool) = self.used.first(class, lane) {
                match pool.live_blocks() {
                    0 => self.close_pool(class, pool),
                    live => {
                        self.used.unlink(class, pool);
                        pool.set_lane(Lane::FIRST);
                        if live < pool.capacity(class) {
                            self.used.insert(class, pool, self.key);
                        }
                    }
                }
            }
        }
        self.used.close(lane);
        self.stock.arenas.close(lane);
    }

    /// A block of `size` bytes, as [`malloc`](Self::malloc); and half a magazine of its class, as far as the class has pools with free
    /// blocks. The magazine then has room for more.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns `magazines`, and that of the size's class is empty.
    pub(crate) unsafe fn malloc_many(
        &mut self,
        size: usize,
        magazines: &Magazines,
    ) -> Option<NonNull<u8>> {
        let Some(class) = SizeClass::of(size) else { return self.malloc(size) };
        let (rack, row) = (&magazines.rack, usize::from(class.byte()));
        // SAFETY: 1: the caller's.
        let mut filling = unsafe { rack.fill(row, rack.room(row).div_ceil(2)) };
        self.take_many(class, magazines.lane(), &mut filling);
        filling.finish();
        // SAFETY: 1: the caller's.
        unsafe { rack.grow(row) };
        // SAFETY: 1: the caller's; 2: a class byte.
        match unsafe { rack.pop(row) } {
            None => self.malloc_cold(size, magazines.lane()),
            block => block,
        }
    }

    /// Frees a block for whose class `magazines` have no room: all blocks of the class there go to their pools.
    ///
    /// # Safety
    ///
    /// 1. `block` is a live block of this allocator.
    /// 2. The block is not used afterwards.
    /// 3. The calling thread owns `magazines`.
    pub(crate) unsafe fn free_many(&mut self, block: NonNull<u8>, magazines: &Magazines) {
        // SAFETY: 1: the caller's.
        let row = usize::from(unsafe { magazines.class_byte(block.addr().get()) });
        let (trims, open) = (self.stock.trims, self.stock.open_bytes);
        // SAFETY: 1: the caller's 3.
        unsafe { self.take_from(magazines, row) };
        if self.stock.trims != trims || self.stock.open_bytes < open && self.stock.is_near() {
            // Much was freed: the pools that the other blocks pin may go too.
            // SAFETY: 1: the caller's 3.
            unsafe { self.empty(magazines) };
        }
        // SAFETY: 1: the caller's 3; 2: a class byte, or 0.
        if !unsafe { magazines.rack.push(row, block) } {
            // SAFETY: 1, 2: the caller's.
            unsafe { self.free(Some(block)) };
        }
    }

    /// Frees every block of a row of `magazines`.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns them, or has seen all that their last owner did.
    unsafe fn take_from(&mut self, magazines: &Magazines, row: usize) {
        // SAFETY: 1: the caller's.
        let mut blocks = unsafe { magazines.rack.drain(row) };
        let mut next = blocks.next();
        while let Some(block) = next {
            // SAFETY: 1, 2: blocks in a magazine are live ones of the pools, and nobody knows of these any more.
            next = unsafe { self.free_run(block, &mut blocks) };
        }
    }

    /// Frees every block in `magazines`, which begin anew with little room.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns them, or has seen all that their last owner did.
    unsafe fn empty(&mut self, magazines: &Magazines) {
        for row in 0..ROWS {
            // SAFETY: 1: the caller's.
            unsafe { self.take_from(magazines, row) };
            // SAFETY: 1: the caller's.
            unsafe { magazines.rack.shrink(row) };
        }
    }

    /// Frees every block in `magazines`, which another thread may have then.
    ///
    /// # Safety
    ///
    /// 1. Their owner does not use them any more, and the caller has seen all that the owner did.
    pub(crate) unsafe fn take_magazines_back(&mut self, magazines: &'static Magazines) {
        // SAFETY: 1: the caller's.
        unsafe { self.empty(magazines) };
        // SAFETY: 1: the caller's.
        unsafe { self.leave_lane(magazines) };
        self.depot.give_back(magazines);
    }

    /// In a child: takes the magazines of the threads that are not there. Not in the fork's handlers: what becomes free then may
    /// start a thread, and have that registered with the handlers, whose list is locked.
    pub(crate) fn take_lost_magazines(&mut self) {
        while let Some(magazines) = self.depot.lost() {
            // SAFETY: 1: the owner is not in this process, which has seen all that the owner did before the fork (`pymem_sync::Rack`).
            unsafe { self.take_magazines_back(magazines) };
        }
    }

    /// Gives memory back to the system, first the blocks in `own`, the calling thread's magazines, to their pools; returns the
    /// bytes given back.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns the magazines.
    pub(crate) unsafe fn release_with(
        &mut self,
        level: ReleaseLevel,
        own: Option<&Magazines>,
    ) -> usize {
        // SAFETY: 1: the caller's.
        own.into_iter().for_each(|own| unsafe { self.empty(own) });
        self.release(level)
    }
}
