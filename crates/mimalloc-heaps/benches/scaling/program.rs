//! Owns what one thread does in a load: its own blocks in its own table, the others by way of channels.

use malloc_trace::{Event, OpKind};

/// One call, or half of a block's way to another thread.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    /// Allocates `size` bytes into the thread's own `slot`.
    Malloc { slot: u32, size: u32 },
    /// Frees what is in the thread's own `slot`.
    Free { slot: u32 },
    /// Allocates `size` bytes that thread `to` frees.
    Send { to: u16, size: u32 },
    /// Frees a block from thread `from`: whichever is the next.
    Receive { from: u16 },
}

/// The steps of each thread, and the number of slots that each needs.
pub(crate) struct Load {
    pub(crate) threads: Vec<Vec<Step>>,
    pub(crate) slots: usize,
    /// Blocks that go over at once.
    pub(crate) batch: usize,
    /// Whether a thread lets others run after it has handed blocks over.
    pub(crate) in_turns: bool,
    /// What is done with a block, as in the program that the load is named after.
    pub(crate) touch: Touch,
}

/// What a program does with the bytes of its blocks.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Touch {
    /// Writes the first word: larson writes two bytes.
    Word,
    /// Writes up to this many bytes: xmalloc-test 128.
    Start(usize),
    /// Writes all of a new block and reads all of it before it is freed: mstress.
    All,
}

impl Load {
    /// Takes a generated program apart for `threads` threads, which share the program's own threads.
    ///
    /// Blocks that the thread of their allocation frees stay with it; the order of the calls within a thread stays as it is,
    /// so threads need not wait for each other.
    pub(crate) fn new(events: &[Event], threads: u16) -> Self {
        let slots = events.iter().map(|event| event.op.slot() as usize + 1).max().unwrap_or(0);
        let mut load = Self {
            threads: vec![Vec::new(); usize::from(threads)],
            slots,
            batch: 120,
            in_turns: false,
            touch: Touch::Word,
        };
        // Backwards, to know of each block who frees it; then forwards, who allocated it.
        let mut freed_by: Vec<Option<u16>> = vec![None; slots];
        let mut partners: Vec<Option<u16>> = vec![None; events.len()];
        for (event, partner) in events.iter().zip(&mut partners).rev() {
            let freed_by = &mut freed_by[event.op.slot() as usize];
            match event.op.kind() {
                OpKind::Free => *freed_by = Some(event.thread % threads),
                _ => *partner = freed_by.take(),
            }
        }
        let mut made_by: Vec<u16> = vec![0; slots];
        for (event, partner) in events.iter().zip(partners) {
            let (slot, me) = (event.op.slot(), event.thread % threads);
            let size = u32::try_from(event.op.size()).unwrap_or(u32::MAX);
            let made_by = &mut made_by[slot as usize];
            let step = match (event.op.kind(), partner) {
                (OpKind::Free, _) if *made_by == me => Step::Free { slot },
                (OpKind::Free, _) => Step::Receive { from: *made_by },
                (_, Some(to)) if to != me => Step::Send { to, size },
                _ => Step::Malloc { slot, size },
            };
            if event.op.kind() != OpKind::Free {
                *made_by = me;
            }
            load.threads[usize::from(me)].push(step);
        }
        load
    }

    pub(crate) fn touching(self, touch: Touch) -> Self {
        Self { touch, ..self }
    }

    /// The same calls with `batch` blocks going over at once, and a turn for the other threads each time.
    ///
    /// So the same program runs on one processor too, with as many frees of another thread's blocks.
    pub(crate) fn in_turns(self, batch: usize) -> Self {
        Self { batch, in_turns: true, ..self }
    }
}
