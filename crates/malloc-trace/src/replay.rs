//! Owns the bare replay: a program as fast as its calls, for timing. Leaves checks to `run.rs` and threads to
//! `threads.rs`.

use std::hint::black_box;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use malloc_api::Malloc;

use crate::fitting::Fitting;
use crate::functions::Functions;
use crate::op::{DOMAINS, Event, Op, OpKind};

/// Blocks of at least this many bytes get two words written when they are new.
pub(crate) const TOUCHED_BYTES: usize = 16;

/// A call of a replay answered `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of memory at {op}: replay a shorter trace, or raise the memory limit")]
pub struct OutOfMemory {
    /// The operation.
    pub op: Op,
}

/// How long one pass took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// The operations of the program.
    pub program: Duration,
    /// Freeing the blocks that the program left live.
    pub leftovers: Duration,
}

/// A program made ready to be timed.
///
/// Every call goes through a function pointer, as an interpreter calls its allocators. Each new block of 16 bytes or
/// more gets its first two words written, and each freed block's first word is read once, so that the cost of cold
/// memory is part of the time. Nothing is checked. Calls of `free(None)` are left out.
///
/// # Examples
///
/// ```
/// use malloc_api::LibcMalloc;
/// use malloc_trace::{Functions, Replay, generate};
///
/// let mut replay = Replay::new(&generate::random(1, 1000, 512));
/// let libc = Functions::of(&LibcMalloc);
/// let pass = replay.pass([libc; 3], || ())?;
/// assert!(pass.program.as_nanos() > 0);
/// # Ok::<(), malloc_trace::OutOfMemory>(())
/// ```
#[derive(Debug)]
pub struct Replay {
    ops: Vec<Op>,
    leftovers: Vec<Op>,
    /// Empty between two passes.
    slots: Vec<Option<NonNull<u8>>>,
}

impl Replay {
    /// Prepares `ops`; their slot table and everything else that a pass needs is allocated here.
    #[must_use]
    pub fn new(ops: &[Op]) -> Self {
        let fitting = Fitting::new(ops.iter().copied().map(Event::from));
        Self {
            ops: fitting.events.into_iter().map(|event| event.op).collect(),
            leftovers: fitting.leftovers,
            slots: vec![None; fitting.slots as usize],
        }
    }

    /// Number of calls that a pass makes before it frees the leftovers.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.ops.len()
    }

    /// Replays the program once, with one allocator a domain (raw, mem, obj), and frees what it leaves live.
    ///
    /// `at_end` is called in between, untimed: the place to read the memory in use.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] at the first call that answered `None`; all blocks are freed then too.
    pub fn pass(
        &mut self,
        allocators: [Functions<'_>; DOMAINS],
        at_end: impl FnOnce(),
    ) -> Result<Pass, OutOfMemory> {
        let start = Instant::now();
        let failed = self.ops.iter().position(|&op| !perform(&mut self.slots, allocators, op));
        let program = start.elapsed();
        if let Some(failed) = failed {
            // A prefix of a fitting program fits, and its slots keep their numbers.
            let done = self.ops[..failed].iter().copied().map(Event::from);
            for op in Fitting::new(done).leftovers {
                perform(&mut self.slots, allocators, op);
            }
            return Err(OutOfMemory { op: self.ops[failed] });
        }
        at_end();
        let start = Instant::now();
        for &op in &self.leftovers {
            perform(&mut self.slots, allocators, op);
        }
        Ok(Pass { program, leftovers: start.elapsed() })
    }
}

/// Performs an operation that fits its slot; whether it succeeded.
#[inline(always)]
fn perform(
    slots: &mut [Option<NonNull<u8>>],
    allocators: [Functions<'_>; DOMAINS],
    op: Op,
) -> bool {
    let allocator = &allocators[usize::from(op.domain())];
    let slot = &mut slots[op.slot() as usize];
    call(allocator, op, slot)
}

/// Performs an operation that fits `slot`; on failure the slot is as before.
#[inline(always)]
pub(crate) fn call(allocator: &impl Malloc, op: Op, slot: &mut Option<NonNull<u8>>) -> bool {
    let size = op.size();
    let block = match op.kind() {
        OpKind::Malloc => allocator.malloc(size),
        OpKind::Calloc => allocator.calloc(1, size),
        OpKind::Realloc => {
            // SAFETY: (1) the slot is empty or holds a live block of this allocator, since operations have the domain
            // of their block; (2) on success the slot is overwritten.
            let block = unsafe { allocator.realloc(*slot, size) };
            *slot = block.or(*slot);
            return block.is_some();
        }
        OpKind::Free => {
            read_first_word(*slot, size);
            // SAFETY: (1) as above; (2) the slot is emptied.
            unsafe { allocator.free(slot.take()) };
            return true;
        }
    };
    *slot = block;
    match block {
        Some(block) if size >= TOUCHED_BYTES => {
            // SAFETY: the block is new, at least two words long, and aligned to `MIN_ALIGN`, which a word needs.
            unsafe { block.cast::<[usize; 2]>().write([size, size]) };
            true
        }
        block => block.is_some(),
    }
}

/// Reads the first word of a block that was written when it was new.
#[inline(always)]
fn read_first_word(block: Option<NonNull<u8>>, size: usize) {
    let Some(block) = block else { return };
    if size >= TOUCHED_BYTES {
        // SAFETY: the block is live and holds at least one word. Where it grew by `realloc` from less than
        // `TOUCHED_BYTES` the word may be uninitialised: `MaybeUninit` allows that.
        let word = unsafe { block.cast::<std::mem::MaybeUninit<usize>>().read() };
        black_box(word);
    }
}
