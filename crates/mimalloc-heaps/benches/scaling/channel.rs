//! Owns the way of blocks from one thread to another: in batches, so that the hand-over costs little beside the frees.

use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// Batches that may be on their way.
const DEPTH: usize = 16;

/// A live block of `size` bytes.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) start: NonNull<u8>,
    pub(crate) size: u32,
}

/// Blocks whose owner is whoever holds the batch.
#[derive(Default)]
pub(crate) struct Batch(pub(crate) Vec<Block>);

// SAFETY: the blocks are the holder's alone, and the allocators free blocks of any thread.
unsafe impl Send for Batch {}

/// From one thread to one other: full batches, of which the newest goes first as in `xmalloc-test`, and empty ones.
#[derive(Default)]
pub(crate) struct Channel(Mutex<(Vec<Batch>, Vec<Batch>)>);

impl Channel {
    /// Puts `batch` in and leaves an empty one; leaves it as it is if the receiver is too far behind.
    pub(crate) fn send(&self, batch: &mut Batch) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.len() < DEPTH {
            let empty = state.1.pop().unwrap_or_default();
            state.0.push(std::mem::replace(batch, empty));
        }
    }

    /// Changes the empty `batch` for a full one, if there is one.
    pub(crate) fn receive(&self, batch: &mut Batch) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(full) = state.0.pop() {
            state.1.push(std::mem::replace(batch, full));
        }
    }
}
