//! Owns the field's benchmark loads as programs: the same sequence of calls for every allocator. The originals are C
//! programs whose threads race; here the program fixes the order of the calls.

use std::collections::VecDeque;

use fastrand::Rng;
use malloc_api::Domain;

use crate::op::{Event, Op};

/// A server: every thread replaces random blocks of an array, and arrays pass from thread to thread.
///
/// Sizes are 10 to 500 bytes, evenly, and each array holds 1,000 blocks. After 100,000 replacements by each thread, 100 for
/// each block as in the original's usual setting, every array goes to the next thread, which frees what another one
/// allocated. 0 threads count as 1.
///
/// After P. Larson and M. Krishnan, "Memory Allocation for Long-Running Server Applications", 1998.
#[must_use]
pub fn larson(seed: u64, threads: u16, n_ops: usize) -> Vec<Event> {
    const BLOCKS: usize = 1000;
    const REPLACEMENTS: usize = 100 * BLOCKS;
    let (mut rng, threads) = (Rng::with_seed(seed), threads.max(1));
    let mut load = Load::new(n_ops);
    let mut arrays: VecDeque<Vec<u32>> = VecDeque::new();
    for thread in 0..threads {
        arrays.push_back((0..BLOCKS).map(|_| load.malloc(thread, rng.usize(10..=500))).collect());
    }
    while !load.is_done() {
        for _ in 0..REPLACEMENTS {
            for (thread, array) in (0..threads).zip(&mut arrays) {
                let block = &mut array[rng.usize(0..BLOCKS)];
                load.free(thread, *block);
                *block = load.malloc(thread, rng.usize(10..=500));
            }
        }
        arrays.rotate_right(1);
    }
    load.finish()
}

/// A stress test: threads keep some blocks, free most, and exchange others through a shared table.
///
/// Sizes are 8 to 256 bytes, one in 100 ten times and one in 1,000 a hundred times as long. Half the operations
/// allocate; of the new blocks one in five is kept until the end of a round, and one in 50 is exchanged for a block of
/// a table of 100, which is freed by the thread that finds it. 0 threads count as 1.
///
/// After `mstress` of mimalloc-bench.
#[must_use]
pub fn mstress(seed: u64, threads: u16, n_ops: usize) -> Vec<Event> {
    const EXCHANGE: usize = 100;
    const ROUND: usize = 10_000;
    let (mut rng, threads) = (Rng::with_seed(seed), threads.max(1));
    let mut load = Load::new(n_ops);
    let mut exchange: Vec<Option<u32>> = vec![None; EXCHANGE];
    let mut kept: Vec<Vec<u32>> = vec![Vec::new(); usize::from(threads)];
    let mut passing = kept.clone();
    while !load.is_done() {
        for _ in 0..ROUND {
            for thread in 0..threads {
                let (kept, passing) =
                    (&mut kept[usize::from(thread)], &mut passing[usize::from(thread)]);
                if passing.is_empty() || rng.bool() {
                    let block = load.malloc(thread, mstress_size(&mut rng));
                    match rng.u8(0..100) {
                        0..=1 => {
                            let place = &mut exchange[rng.usize(0..EXCHANGE)];
                            if let Some(found) = place.replace(block) {
                                load.free(thread, found);
                            }
                        }
                        2..=21 => kept.push(block),
                        _ => passing.push(block),
                    }
                } else {
                    let at = rng.usize(0..passing.len());
                    load.free(thread, passing.swap_remove(at));
                }
            }
        }
        for (thread, kept) in (0..threads).zip(&mut kept) {
            for block in kept.drain(..) {
                load.free(thread, block);
            }
        }
    }
    load.finish()
}

fn mstress_size(rng: &mut Rng) -> usize {
    let factor = match rng.u32(0..1000) {
        0 => 100,
        1..=10 => 10,
        _ => 1,
    };
    8 * rng.usize(1..=32) * factor
}

/// Producers and consumers: every block is freed by another thread than the one that allocated it.
///
/// Batches of 120 blocks go from each thread to the next, which frees them in the order of their allocation. Sizes are
/// multiples of 8 from 16 to 512 bytes. A single thread frees its own blocks; 0 threads count as 1.
///
/// After C. Lever and D. Boreham, "malloc() Performance in a Multithreaded Linux Environment", 2000.
#[must_use]
pub fn xmalloc(seed: u64, threads: u16, n_ops: usize) -> Vec<Event> {
    const BATCH: usize = 120;
    let (mut rng, threads) = (Rng::with_seed(seed), threads.max(1));
    let mut load = Load::new(n_ops);
    let mut batches: VecDeque<Vec<u32>> = vec![Vec::new(); usize::from(threads)].into();
    while !load.is_done() {
        for (thread, batch) in (0..threads).zip(&mut batches) {
            for block in batch.drain(..) {
                load.free(thread, block);
            }
            batch.extend((0..BATCH).map(|_| load.malloc(thread, 8 * rng.usize(2..=64))));
        }
        batches.rotate_right(1);
    }
    load.finish()
}

/// Passive false sharing: threads get neighbouring blocks from one thread, free them, and go on with small blocks.
///
/// An allocator that hands the freed memory out again gives several threads blocks in one cache line. Every block has
/// 8 bytes, and a thread has one at a time. 0 threads count as 1.
///
/// After `cache-scratch` of E. Berger et al., "Hoard: A Scalable Memory Allocator for Multithreaded Applications", 2000.
#[must_use]
pub fn cache_scratch(threads: u16, n_ops: usize) -> Vec<Event> {
    let threads = threads.max(1);
    let mut load = Load::new(n_ops);
    let mut blocks: Vec<u32> = (0..threads).map(|_| load.malloc(0, 8)).collect();
    while !load.is_done() {
        for (thread, block) in (0..threads).zip(&mut blocks) {
            load.free(thread, *block);
            *block = load.malloc(thread, 8);
        }
    }
    load.finish()
}

/// Batches of growing sizes, freed partly and out of order.
///
/// Each round allocates one block of every size from 1 to 1,000 bytes, small ones ten times as often as large ones.
/// Then it frees the newest quarter in reverse order, the oldest quarter in order, and of the rest every second block;
/// what remains goes in the next round. 0 threads count as 1; threads do not share blocks.
///
/// After MicroQuill's `sh6bench`.
#[must_use]
pub fn sh6bench(threads: u16, n_ops: usize) -> Vec<Event> {
    let threads = threads.max(1);
    let mut load = Load::new(n_ops);
    let mut remaining: Vec<Vec<u32>> = vec![Vec::new(); usize::from(threads)];
    while !load.is_done() {
        for (thread, remaining) in (0..threads).zip(&mut remaining) {
            let mut blocks = Vec::new();
            for size in 1..=1000 {
                let times = 1 + 900 / (size + 99);
                blocks.extend((0..times).map(|_| load.malloc(thread, size)));
            }
            for block in remaining.drain(..) {
                load.free(thread, block);
            }
            let quarter = blocks.len() / 4;
            let newest = blocks.split_off(blocks.len() - quarter);
            let middle = blocks.split_off(quarter);
            for block in newest.into_iter().rev().chain(blocks) {
                load.free(thread, block);
            }
            for (index, block) in middle.into_iter().enumerate() {
                if index % 2 == 0 {
                    load.free(thread, block);
                } else {
                    remaining.push(block);
                }
            }
        }
    }
    load.finish()
}

/// The domain of all loads: obj, where most small blocks of an interpreter live.
const DOMAIN: Domain = Domain::Obj;

/// A program under construction, of at most `limit` operations.
#[derive(Debug)]
struct Load {
    events: Vec<Event>,
    free_slots: Vec<u32>,
    used_slots: u32,
    limit: usize,
}

impl Load {
    fn new(limit: usize) -> Self {
        Self { events: Vec::with_capacity(limit), free_slots: Vec::new(), used_slots: 0, limit }
    }

    fn is_done(&self) -> bool {
        self.events.len() >= self.limit
    }

    /// `malloc` by `thread`; the block's slot.
    fn malloc(&mut self, thread: u16, size: usize) -> u32 {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.used_slots += 1;
            self.used_slots - 1
        });
        self.push(thread, Op::malloc(slot, DOMAIN, size));
        slot
    }

    /// `free` by `thread` of the block in `slot`.
    fn free(&mut self, thread: u16, slot: u32) {
        self.free_slots.push(slot);
        self.push(thread, Op::free(slot, DOMAIN));
    }

    /// Adds an operation unless the program is long enough already.
    fn push(&mut self, thread: u16, op: Op) {
        if !self.is_done() {
            // Loads have no clock: time is the operation's place.
            self.events.push(Event { op, thread, nanos: self.events.len() as u64 });
        }
    }

    fn finish(self) -> Vec<Event> {
        self.events
    }
}
