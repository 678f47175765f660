//! Owns what the benchmark loads share: a program under construction, whose slots are reused as blocks are freed.

use crate::op::{Event, Op};

/// The domain of all loads: obj, where most small blocks of an interpreter live.
const DOMAIN: u8 = 2;

/// A program under construction, of at most `limit` operations.
#[derive(Debug)]
pub(super) struct Load {
    events: Vec<Event>,
    free_slots: Vec<u32>,
    used_slots: u32,
    limit: usize,
}

impl Load {
    pub(super) fn new(limit: usize) -> Self {
        Self { events: Vec::with_capacity(limit), free_slots: Vec::new(), used_slots: 0, limit }
    }

    pub(super) fn is_done(&self) -> bool {
        self.events.len() >= self.limit
    }

    /// `malloc` by `thread`; the block's slot.
    pub(super) fn malloc(&mut self, thread: u16, size: usize) -> u32 {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.used_slots += 1;
            self.used_slots - 1
        });
        self.push(thread, Op::malloc(slot, DOMAIN, size));
        slot
    }

    /// `free` by `thread` of the block in `slot`.
    pub(super) fn free(&mut self, thread: u16, slot: u32) {
        self.free_slots.push(slot);
        self.push(thread, Op::free(slot, DOMAIN));
    }

    /// Adds an operation unless the program is long enough already.
    pub(super) fn push(&mut self, thread: u16, op: Op) {
        if !self.is_done() {
            // Loads have no clock: time is the operation's place.
            self.events.push(Event { op, thread, nanos: self.events.len() as u64 });
        }
    }

    pub(super) fn finish(self) -> Vec<Event> {
        self.events
    }
}
