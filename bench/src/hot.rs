//! Owns the hot paths whose instructions are counted: short loops over one record, without a trace.

use std::ptr::NonNull;

use malloc_api::{AllocatorRecord, Malloc};
use serde::{Deserialize, Serialize};

/// Blocks that [`Path::Batch`] keeps alive at once.
const BATCH_BLOCKS: usize = 1000;

/// A path through an allocator that programs take most of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Path {
    /// `malloc(48)` and `free` of the same block.
    Pair,
    /// `malloc(1024)` and `free` of the same block.
    MediumPair,
    /// `calloc(1, 64)` and `free` of the same block.
    ZeroedPair,
    /// `realloc` from 48 to 44 bytes and back.
    ReallocInPlace,
    /// 1000 blocks of 64 bytes, then their frees in the order of their birth.
    Batch,
}

impl Path {
    /// Every path.
    pub const ALL: [Self; 5] =
        [Self::Pair, Self::MediumPair, Self::ZeroedPair, Self::ReallocInPlace, Self::Batch];

    /// The path's name in the baseline.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pair => "malloc(48) + free",
            Self::MediumPair => "malloc(1024) + free",
            Self::ZeroedPair => "calloc(64) + free",
            Self::ReallocInPlace => "realloc 48 to 44 and back",
            Self::Batch => "malloc(64) + free, 1000 at a time",
        }
    }

    /// Takes the path `repetitions` times; [`Path::Batch`] rounds up to whole batches.
    pub fn run(self, record: &AllocatorRecord, repetitions: usize) {
        match self {
            Self::Pair => pairs(record, 48, repetitions),
            Self::MediumPair => pairs(record, 1024, repetitions),
            Self::ZeroedPair => {
                for _ in 0..repetitions {
                    free(record, record.calloc(1, 64));
                }
            }
            Self::ReallocInPlace => {
                let mut block = record.malloc(48);
                for _ in 0..repetitions {
                    block = realloc(record, block, 44);
                    block = realloc(record, block, 48);
                }
                free(record, block);
            }
            Self::Batch => {
                let mut blocks = Vec::with_capacity(BATCH_BLOCKS);
                for _ in 0..repetitions.div_ceil(BATCH_BLOCKS) {
                    blocks.extend((0..BATCH_BLOCKS).map(|_| record.malloc(64)));
                    blocks.drain(..).for_each(|block| free(record, block));
                }
            }
        }
    }
}

fn pairs(record: &AllocatorRecord, size: usize, repetitions: usize) {
    for _ in 0..repetitions {
        free(record, record.malloc(size));
    }
}

#[inline]
fn realloc(
    record: &AllocatorRecord,
    block: Option<NonNull<u8>>,
    size: usize,
) -> Option<NonNull<u8>> {
    // SAFETY: 1. the callers here pass the only block they have, alive and of this record; 2. and keep only the result.
    unsafe { record.realloc(block, size) }
}

#[inline]
fn free(record: &AllocatorRecord, block: Option<NonNull<u8>>) {
    // SAFETY: 1. the callers here pass a live block of this record, or `None`, 2. and forget it.
    unsafe { record.free(block) }
}
