//! Owns [`Runs`]: the bookkeeping of blocks that lie one behind the other in a span of memory, each a run of units, and of the free runs
//! between them. Leaves the slots to `run_slots.rs`, and the memory to `sources/run_memory.rs`.
//!
//! ```text
//!  unit 0   first                            top                     end
//!    +-------+----------+--------+------------+- - - - - - - - - - - -+
//!    | never | used     | free   | used       |  rest                 |
//!    +-------+----------+--------+------------+- - - - - - - - - - - -+
//!    slots   |      |       |       |       |       |      what is known of the run that begins or ends there
//! ```
//!
//! What is known of a run is in a table beside the span, so that all of a free run can go back to the system. No run is shorter than a
//! slot: in each slot at most one begins, and at most one ends. Free neighbours are one run, and one at the top is part of the rest.

use crate::run_slots::{FLAG, LISTS, NONE, RunSlots, SLOT_UNITS, Slot, UNIT_BYTES, UNIT_SHIFT};

/// A block's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Bytes from the span's start.
    pub(crate) offset: usize,
    /// Nobody has written to it before: it reads as zero.
    pub(crate) is_fresh: bool,
}

/// Runs of a span. Lengths and places are in units.
#[derive(Debug)]
pub(crate) struct Runs {
    slots: RunSlots,
    /// Invariant 2: from here on nothing is in use. At most `end`, but for an empty span.
    top: u32,
    /// The highest top in this period.
    highest: u32,
    /// From here on the span has no memory. At least `top`.
    touched: u32,
    /// Units of a page of the system.
    page: u32,
}

impl Runs {
    pub(crate) const fn new() -> Self {
        Self {
            slots: RunSlots::new(),
            top: SLOT_UNITS,
            highest: SLOT_UNITS,
            touched: SLOT_UNITS,
            page: 1,
        }
    }

    /// Bytes for `size`, as a multiple of units and no less than a slot.
    const fn units(size: usize) -> u32 {
        let units = size.div_ceil(UNIT_BYTES) as u32;
        if units < SLOT_UNITS { SLOT_UNITS } else { units }
    }

    const fn bytes(units: u32) -> usize {
        (units as usize) << UNIT_SHIFT
    }

    /// The span has `bytes` now, in pages of `page_bytes`.
    ///
    /// # Safety
    ///
    /// 1. `slots` leads to a slot for each `SLOT_BYTES`, zero beyond those that there were, and the span was not longer before.
    pub(crate) unsafe fn set_end(&mut self, slots: *mut Slot, bytes: usize, page_bytes: usize) {
        self.slots.slots = slots;
        self.page = (page_bytes >> UNIT_SHIFT) as u32;
        self.slots.end = (bytes >> UNIT_SHIFT) as u32;
    }

    /// As [`set_end`](Self::set_end), for a span that ends earlier, at [`touched_bytes`](Self::touched_bytes) or behind.
    pub(crate) fn cut(&mut self, bytes: usize) {
        debug_assert!(bytes >= self.touched_bytes());
        self.slots.end = (bytes >> UNIT_SHIFT) as u32;
    }

    /// Bytes of the span.
    pub(crate) const fn end_bytes(&self) -> usize {
        Self::bytes(self.slots.end)
    }

    /// Bytes before the rest.
    pub(crate) const fn top_bytes(&self) -> usize {
        Self::bytes(self.top)
    }

    /// Bytes that may have memory, and those before them.
    pub(crate) const fn touched_bytes(&self) -> usize {
        Self::bytes(self.touched)
    }

    /// Bytes in use.
    pub(crate) const fn used_bytes(&self) -> usize {
        Self::bytes(self.top - SLOT_UNITS - self.slots.free)
    }

    /// Bytes that are free and may have memory that can go.
    #[inline]
    pub(crate) const fn resident_bytes(&self) -> usize {
        Self::bytes(self.slots.resident + self.beyond())
    }

    /// Units of the rest that may have memory, but for the page in which it begins.
    const fn beyond(&self) -> u32 {
        self.touched.saturating_sub(self.top.next_multiple_of(self.page))
    }

    /// A run for a block of `size` bytes; `None` where the span has to grow.
    pub(crate) fn take(&mut self, size: usize) -> Option<Run> {
        let length = Self::units(size);
        let Some(start) = self.slots.find(length) else {
            return self.take_last(size);
        };
        self.take_of(start, start, length);
        Some(Run { offset: Self::bytes(start), is_fresh: false })
    }

    /// A run for a block of `size` bytes behind all others, where it can grow; `None` where the span has to grow.
    pub(crate) fn take_last(&mut self, size: usize) -> Option<Run> {
        let (start, is_fresh) = (self.top, self.top >= self.touched);
        let length = Self::units(size);
        self.raise_top(length).then(|| {
            self.slots.set_used(start, length);
            Run { offset: Self::bytes(start), is_fresh }
        })
    }

    /// Whether the run at `offset` is the last one.
    pub(crate) fn is_last(&mut self, offset: usize) -> bool {
        let start = (offset >> UNIT_SHIFT) as u32;
        start + self.slots.slot(start).length == self.top
    }

    /// Makes the run at `start` end `more` units behind the beginning of the free run at `free`; all of that where too little is left.
    #[inline]
    fn take_of(&mut self, start: u32, free: u32, more: u32) {
        let (found, resident) = self.slots.unlink(free);
        let left = found - more;
        let more = if left < SLOT_UNITS { found } else { more };
        if more < found {
            self.slots.link(free + more, left, resident.saturating_sub(more));
        }
        self.slots.set_used(start, free + more - start);
    }

    /// Lets the rest begin `more` units later; `false` where it is shorter.
    #[inline]
    fn raise_top(&mut self, more: u32) -> bool {
        if self.slots.end.saturating_sub(self.top) < more {
            return false;
        }
        self.top += more;
        self.highest = self.highest.max(self.top);
        self.touched = self.touched.max(self.top);
        true
    }

    /// Where the run in use begins that begins at `offset`, and its length; `None` where none does.
    #[inline]
    fn used_at(&mut self, offset: usize) -> Option<(u32, u32)> {
        let start = (offset >> UNIT_SHIFT) as u32;
        if offset % UNIT_BYTES > 0 || start >= self.top {
            return None;
        }
        Some((start, self.slots.used(start)?))
    }

    /// Bytes of the run in use that begins at `offset`; `None` where none does.
    #[inline]
    pub(crate) fn bytes_of(&mut self, offset: usize) -> Option<usize> {
        self.used_at(offset).map(|(_, length)| Self::bytes(length))
    }

    /// All runs in use, each with where it begins and its length.
    fn walk_used(&mut self) -> impl Iterator<Item = (u32, u32)> {
        let runs = self.slots.walk(self.top);
        runs.filter(|(_, slot)| slot.length & FLAG == 0).map(|(start, slot)| (start, slot.length))
    }

    /// Whether `offset` lies in a run that is in use. Walks over all runs.
    #[cold]
    pub(crate) fn is_used(&mut self, offset: usize) -> bool {
        let unit = (offset >> UNIT_SHIFT) as u32;
        self.walk_used().any(|(start, length)| (start..start + length).contains(&unit))
    }

    /// Runs in use. Walks over all runs.
    pub(crate) fn count(&mut self) -> usize {
        self.walk_used().count()
    }

    /// Gives the run in use back that begins at `offset`; `false` where none does.
    #[inline]
    pub(crate) fn give(&mut self, offset: usize) -> bool {
        let Some((start, length)) = self.used_at(offset) else { return false };
        self.give_units(start, length);
        true
    }

    fn give_units(&mut self, mut start: u32, length: u32) {
        let end = start + length;
        let mut resident = length;
        // Invariant 9: what is not the beginning of a run any more does not look like one.
        self.slots.slot(start).length = 0;
        let before = self.slots.slot(start - 1).before;
        if before > 0 {
            start -= before;
            resident += self.slots.unlink(start).1;
        }
        if end == self.top {
            self.top = start;
            return;
        }
        let mut length = end - start;
        if self.slots.slot(end).length & FLAG != 0 {
            let (more, had) = self.slots.unlink(end);
            length += more;
            resident += had;
        }
        self.slots.link(start, length, resident);
    }

    /// Makes the run at `offset`, which is in use, fit for `size` bytes where it is; `false` where there is no room.
    pub(crate) fn resize(&mut self, offset: usize, size: usize) -> bool {
        let start = (offset >> UNIT_SHIFT) as u32;
        let length = Self::units(size);
        let now = self.slots.slot(start).length;
        let end = start + now;
        if length > now {
            let more = length - now;
            if end == self.top {
                return self.raise_top(more) && {
                    self.slots.slot(start).length = length;
                    true
                };
            }
            let next = self.slots.slot(end).length;
            if next < more | FLAG {
                return false;
            }
            self.take_of(start, end, more);
        } else if now - length >= SLOT_UNITS {
            self.slots.slot(start).length = length;
            self.give_units(start + length, now - length);
        }
        true
    }

    /// Has `purge` give the memory of bytes that are free back, from an offset on and so many: at the top first, then of the longest runs,
    /// until at most `target` bytes are left.
    ///
    /// `purge` drops the whole pages of the range, and says whether they read as zero next.
    pub(crate) fn purge_to(&mut self, target: usize, mut purge: impl FnMut(usize, usize) -> bool) {
        let target = (target >> UNIT_SHIFT) as u32;
        let keep = target.saturating_sub(self.slots.resident).min(self.beyond());
        self.purge_rest(self.top + keep, &mut purge);
        for list in (0..LISTS).rev() {
            let mut start = self.slots.lists[list];
            while start != NONE && self.slots.resident + self.beyond() > target {
                self.purge_run(start, &mut purge);
                start = self.slots.slot(start).next;
            }
        }
    }

    /// Ends a period: as [`purge_to`](Self::purge_to), with what has been free for a whole one. Returns whether free memory is left.
    pub(crate) fn end_period(&mut self, mut purge: impl FnMut(usize, usize) -> bool) -> bool {
        let highest = core::mem::replace(&mut self.highest, self.top);
        self.purge_rest(highest, &mut purge);
        for list in 0..LISTS {
            let mut start = self.slots.lists[list];
            while start != NONE {
                let slot = self.slots.slot(start);
                match slot.resident {
                    0 => {}
                    FLAG.. => self.purge_run(start, &mut purge),
                    _ => slot.resident |= FLAG,
                }
                start = self.slots.slot(start).next;
            }
        }
        self.resident_bytes() > 0
    }

    /// Gives the rest's memory back from the first page behind `start` on.
    fn purge_rest(&mut self, start: u32, purge: &mut impl FnMut(usize, usize) -> bool) {
        let start = start.next_multiple_of(self.page);
        // The last page goes as a whole, or what is fresh would not be zero.
        let end = self.touched.next_multiple_of(self.page);
        if start < self.touched && purge(Self::bytes(start), Self::bytes(end - start)) {
            self.touched = start;
        }
    }

    fn purge_run(&mut self, start: u32, purge: &mut impl FnMut(usize, usize) -> bool) {
        let slot = self.slots.slot(start);
        let (length, resident) = (slot.length & !FLAG, slot.resident & !FLAG);
        slot.resident = 0;
        self.slots.resident -= resident;
        if resident > 0 {
            let _ = purge(Self::bytes(start), Self::bytes(length));
        }
    }

    /// Panics unless the slots, the lists and the counts say the same.
    pub(crate) fn check(&mut self) {
        let (mut unit, mut free, mut resident) = (SLOT_UNITS, 0, 0);
        let mut was_free = false;
        while unit < self.top {
            let slot = *self.slots.slot(unit);
            let length = slot.length & !FLAG;
            let is_free = slot.length & FLAG != 0;
            assert!(length >= SLOT_UNITS && length <= self.top - unit, "runs invariant 3");
            assert!(!(is_free && was_free), "runs invariant 4");
            let before = if is_free { length } else { 0 };
            assert_eq!(self.slots.slot(unit + length - 1).before, before, "runs invariant 5");
            if is_free {
                free += length;
                resident += slot.resident & !FLAG;
            }
            was_free = is_free;
            unit += length;
        }
        assert!(unit == self.top.max(SLOT_UNITS) && !was_free, "runs invariant 2");
        self.slots.check(free, resident);
        assert!(self.touched >= self.top, "runs invariant 8");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::run_slots::SLOT_BYTES;

    const SPAN_BYTES: usize = 4 << 20;
    const PAGE_BYTES: usize = 4096;

    /// Runs of a span that is not there, with what the memory behind them would be.
    struct Model {
        runs: Runs,
        table: Vec<Slot>,
        /// Bytes of each run in use, by offset.
        used: BTreeMap<usize, usize>,
        /// Pages that a block had since they were dropped.
        dirty: BTreeSet<usize>,
    }

    impl Model {
        fn new() -> Self {
            let none = Slot { length: 0, before: 0, resident: 0, next: NONE, previous: NONE };
            let mut model = Self {
                runs: Runs::new(),
                table: vec![none; SPAN_BYTES / SLOT_BYTES],
                used: BTreeMap::new(),
                dirty: BTreeSet::new(),
            };
            // SAFETY: 1: slots of zeros for all of the span.
            unsafe { model.runs.set_end(model.table.as_mut_ptr(), SPAN_BYTES, PAGE_BYTES) };
            model
        }

        fn enter(&mut self, offset: usize, size: usize) {
            let bytes = self.runs.bytes_of(offset).expect("in use");
            assert!(bytes >= size, "{bytes} for {size}");
            let before = self.used.range(..offset).next_back().map_or(0, |(at, len)| at + len);
            let behind = self.used.range(offset + 1..).next().map_or(SPAN_BYTES, |(at, _)| *at);
            assert!(before <= offset && offset + bytes <= behind, "a run lies in another one");
            self.used.insert(offset, bytes);
            self.dirty.extend(offset / PAGE_BYTES..(offset + bytes).div_ceil(PAGE_BYTES));
        }

        fn take(&mut self, size: usize, is_last: bool) {
            let run = if is_last { self.runs.take_last(size) } else { self.runs.take(size) };
            let Some(run) = run else { return };
            let first = run.offset.div_ceil(PAGE_BYTES);
            let pages = first..(run.offset + size).div_ceil(PAGE_BYTES);
            assert!(!run.is_fresh || self.dirty.range(pages).next().is_none(), "not fresh");
            self.enter(run.offset, size);
        }

        /// Blocks alone are found, near one that there is or was, and anywhere.
        fn find_blocks(&mut self, rng: &mut fastrand::Rng, some: Option<usize>) {
            let anywhere = rng.usize(..SPAN_BYTES / UNIT_BYTES) * UNIT_BYTES;
            let near = some.unwrap_or(0);
            for offset in [near, near + UNIT_BYTES, near + SLOT_BYTES, near + 16, anywhere] {
                let bytes = self.used.get(&offset).copied();
                assert_eq!(self.runs.bytes_of(offset), bytes, "at {offset}");
                let before = self.used.range(..=offset).next_back();
                let is_used = before.is_some_and(|(at, bytes)| offset < at + bytes);
                assert_eq!(self.runs.is_used(offset), is_used, "at {offset}");
            }
        }

        /// Drops memory, of which nothing may be in use.
        fn drop_pages(
            used: &BTreeMap<usize, usize>,
            dirty: &mut BTreeSet<usize>,
            at: usize,
            bytes: usize,
        ) -> bool {
            let before = used.range(..at + bytes).next_back().map_or(0, |(at, len)| at + len);
            assert!(before <= at, "memory of a block is dropped");
            dirty.retain(|page| {
                !(at.div_ceil(PAGE_BYTES)..(at + bytes) / PAGE_BYTES).contains(page)
            });
            true
        }
    }

    #[test]
    fn random_programs_keep_runs_apart_and_the_bookkeeping_whole() {
        let mut rng = fastrand::Rng::with_seed(20);
        let mut model = Model::new();
        for step in 0..40_000 {
            let grows = if step / 4_000 % 2 == 0 { 60 } else { 35 };
            let most = if rng.u8(..) < 8 { 512 << 10 } else { 40 << 10 };
            let size = rng.usize(1..most);
            let Model { runs, used, dirty, .. } = &mut model;
            let some = used.keys().nth(rng.usize(..used.len().max(1))).copied();
            match (rng.u32(..100), some) {
                (0, _) => runs.purge_to(rng.usize(..1 << 20), |at, bytes| {
                    Model::drop_pages(used, dirty, at, bytes)
                }),
                (1, _) => {
                    runs.end_period(|at, bytes| Model::drop_pages(used, dirty, at, bytes));
                }
                (2..15, Some(offset)) => {
                    let before = runs.bytes_of(offset);
                    if runs.resize(offset, size) {
                        used.remove(&offset);
                        model.enter(offset, size);
                    } else {
                        assert!(Some(size) > before, "a run can always become shorter");
                        assert_eq!(runs.bytes_of(offset), before, "left alone");
                    }
                }
                (choice, Some(offset)) if choice >= grows => {
                    used.remove(&offset);
                    assert!(runs.give(offset));
                }
                _ => model.take(size, rng.u8(..) < 16),
            }
            model.runs.check();
            assert_eq!(model.runs.used_bytes(), model.used.values().sum::<usize>());
            assert_eq!(model.runs.count(), model.used.len());
            model.find_blocks(&mut rng, some);
        }
    }

    #[test]
    fn all_that_is_given_back_is_one_free_rest() {
        let mut model = Model::new();
        for size in [9_000, 70_000, 8_200, 130_000] {
            model.take(size, false);
        }
        for (offset, _) in core::mem::take(&mut model.used) {
            assert!(model.runs.give(offset));
        }
        model.runs.check();
        assert_eq!((model.runs.top_bytes(), model.runs.used_bytes()), (SLOT_BYTES, 0));
    }

    /// The second period drops what the first has seen; a run that was taken in between is young.
    #[test]
    fn what_is_free_for_a_period_goes() {
        let mut model = Model::new();
        (0..5).for_each(|_| model.take(64 << 10, false));
        let offsets: Vec<_> = model.used.keys().copied().collect();
        let mut gone = Vec::new();
        let mut end = |runs: &mut Runs| {
            gone.clear();
            let is_left = runs.end_period(|at, bytes| {
                gone.push((at, bytes));
                true
            });
            (gone.clone(), is_left)
        };
        assert!(model.runs.give(offsets[1]));
        assert_eq!(end(&mut model.runs), (vec![], true), "young");
        assert_eq!(end(&mut model.runs), (vec![(offsets[1], 64 << 10)], false));
        assert!(model.runs.give(offsets[4]));
        assert_eq!(end(&mut model.runs), (vec![], true), "the rest is young too");
        let first_page = offsets[4].next_multiple_of(PAGE_BYTES);
        let bytes = (offsets[4] + (64 << 10)).next_multiple_of(PAGE_BYTES) - first_page;
        assert_eq!(end(&mut model.runs).0, vec![(first_page, bytes)]);
    }

    #[test]
    fn memory_that_does_not_go_is_not_fresh() {
        let mut model = Model::new();
        model.take(64 << 10, false);
        assert!(model.runs.give(SLOT_BYTES));
        model.runs.purge_to(0, |_, _| false);
        assert_eq!(model.runs.take(64 << 10), Some(Run { offset: SLOT_BYTES, is_fresh: false }));
    }
}
