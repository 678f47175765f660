//! Owns the statistics: what each heap of an interpreter holds, counted by walking it, so the numbers are right.

use core::ops::{AddAssign, ControlFlow};

use pymem_sync::qsbr::Pending;

use crate::heap::HeapKind;
use crate::heap_set::HeapSet;
use crate::registry;
use crate::visit::{self, Area};
use crate::world::{Stopped, World};

/// What one heap, or all heaps of one kind, hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Usage {
    /// Runs of blocks of one size.
    pub areas: usize,
    /// Live blocks, those that wait for a delayed free included.
    pub blocks: usize,
    /// Bytes of the live blocks, as handed out: at least what was asked for.
    pub block_bytes: usize,
    /// Bytes that the areas' blocks take, live or free.
    pub committed_bytes: usize,
    /// Bytes that the areas can grow to.
    pub reserved_bytes: usize,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.areas += other.areas;
        self.blocks += other.blocks;
        self.block_bytes += other.block_bytes;
        self.committed_bytes += other.committed_bytes;
        self.reserved_bytes += other.reserved_bytes;
    }
}

/// One heap's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HeapUsage {
    /// The number of the heap set; see [`Area::set`](crate::Area::set).
    pub set: usize,
    /// Which heap of the set.
    pub kind: HeapKind,
    /// Whether a thread owns the set at the moment.
    pub is_owned: bool,
    /// What it holds.
    pub usage: Usage,
}

/// What an interpreter's heaps hold, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Statistics {
    /// Every heap that has an area.
    pub heaps: Vec<HeapUsage>,
    /// Threads that are attached.
    pub attached_threads: usize,
    /// Heap sets that wait for a thread.
    pub abandoned_sets: usize,
    /// Blocks in the attached threads' queues for delayed free.
    pub delayed_blocks: usize,
    /// Bytes of those blocks.
    pub delayed_bytes: usize,
}

impl Statistics {
    /// What all heaps of `kind` hold together.
    #[must_use]
    pub fn of_kind(&self, kind: HeapKind) -> Usage {
        self.sum(|heap| heap.kind == kind)
    }

    /// What all heaps hold together.
    #[must_use]
    pub fn total(&self) -> Usage {
        self.sum(|_| true)
    }

    fn sum(&self, mut filter: impl FnMut(&HeapUsage) -> bool) -> Usage {
        let mut sum = Usage::default();
        self.heaps.iter().filter(|heap| filter(heap)).for_each(|heap| sum += heap.usage);
        sum
    }
}

/// What the heaps of the interpreter with this number hold.
pub(crate) fn count<W: World + ?Sized>(stopped: &Stopped<'_, W>, interpreter: u64) -> Statistics {
    let mut statistics = Statistics::default();
    for set in HeapSet::all(&registry::lock()).filter(|set| set.interpreter() == interpreter) {
        // SAFETY: (1) the owner is the caller, or stopped.
        match unsafe { set.state() } {
            None => statistics.abandoned_sets += 1,
            Some(state) => {
                let Pending { items, bytes } = state.delayed.pending();
                statistics.attached_threads += 1;
                statistics.delayed_blocks += items;
                statistics.delayed_bytes += bytes;
            }
        }
    }
    // Before the walk: during it nothing may be allocated, as the global allocator may be one of ours.
    let sets = statistics.abandoned_sets + statistics.attached_threads;
    let mut heaps = Vec::with_capacity(sets * HeapKind::COUNT);
    let _all = visit::areas(stopped, interpreter, &mut |area| {
        add(&mut heaps, area);
        ControlFlow::Continue(())
    });
    Statistics { heaps, ..statistics }
}

/// Adds `area` to its heap, which is the last one or a new one.
fn add(heaps: &mut Vec<HeapUsage>, area: Area) {
    let usage = Usage {
        areas: 1,
        blocks: area.used_blocks,
        block_bytes: area.used_blocks * area.block_bytes,
        committed_bytes: area.committed_bytes,
        reserved_bytes: area.reserved_bytes,
    };
    match heaps.last_mut() {
        Some(heap) if (heap.set, heap.kind) == (area.set, area.kind) => heap.usage += usage,
        _ => {
            heaps.push(HeapUsage { set: area.set, kind: area.kind, is_owned: area.is_owned, usage })
        }
    }
}
