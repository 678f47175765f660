//! Owns the bare replay: a program as fast as its calls, for timing. Leaves checks to `shadow.rs` and threads to
//! `threads.rs`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ptr::{self, NonNull};

use malloc_api::{Domain, Malloc};

use crate::op::{Op, OpKind};

/// Blocks of at least this many bytes get two words written when they are new.
const WRITTEN_BYTES: usize = 16;

/// Where a program keeps the pointer of a block.
pub(crate) type Slot = Option<NonNull<u8>>;

/// A call of a replay answered `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of memory at {op}: replay a shorter trace, or raise the memory limit")]
pub struct OutOfMemory {
    /// The operation.
    pub op: Op,
}

/// A program made ready to be timed.
///
/// Each new block of 16 bytes or more gets its first two words written, and one byte of each block is read before its
/// `free`, so that the cost of cold memory is part of the time. Nothing is checked. Calls of `free(None)` are left out,
/// `realloc(None, size)` is `malloc(size)`, and a request for 0 bytes asks for 1, so that every block has a byte.
///
/// # Examples
///
/// ```
/// use std::time::Instant;
///
/// use malloc_api::{AllocatorRecord, LibcMalloc};
/// use malloc_trace::{Replay, generate};
///
/// let mut replay = Replay::new(&generate::random(1, 1000, 512));
/// // Through function pointers, as an interpreter calls its allocators.
/// let libc = AllocatorRecord::new(&LibcMalloc);
/// let start = Instant::now();
/// let live = replay.pass([libc; 3])?;
/// let time = start.elapsed();
/// drop(live);
/// assert!(time.as_nanos() > 0);
/// # Ok::<(), malloc_trace::OutOfMemory>(())
/// ```
#[derive(Debug)]
pub struct Replay {
    /// The program, then a `free` for each block that the program leaves live.
    ///
    /// Invariant 1: every slot is inside the table.
    /// Invariant 2: from an empty table on, `malloc` and `calloc` meet empty slots, `realloc` and `free` full ones, every
    /// operation has the domain of its block, and asks for at least one byte.
    ops: Cow<'static, [Op]>,
    /// Operations of the program alone. Invariant 3: behind them are frees only.
    calls: usize,
    table: Table,
}

/// The pointers of the blocks; a slot that is empty in the program may hold any pointer, which no operation reads.
#[derive(Debug)]
enum Table {
    Own(Vec<Slot>),
    Lent(&'static mut [Slot]),
}

impl Replay {
    /// Prepares `ops`; everything that a pass needs is allocated here.
    #[must_use]
    pub fn new(ops: &[Op]) -> Self {
        let mut fitter = Fitter::default();
        let mut fitting = Vec::with_capacity(ops.len());
        for &op in ops {
            fitting.extend(fitter.fit(op));
        }
        let calls = fitting.len();
        fitting.extend(fitter.leftovers());
        // Written, so that the first pass does not touch the table's pages for the first time.
        let mut slots = Vec::with_capacity(fitter.slots());
        slots.resize(fitter.slots(), None);
        Self { ops: fitting.into(), calls, table: Table::Own(slots) }
    }

    /// A replay in memory that the caller lends, so that neither program nor table is in a heap that is measured.
    ///
    /// `ops` are what [`ops`](Replay::ops) of another replay were, and `calls` and the length of `slots` too. `None` if an
    /// operation does not fit its slot. The check writes and leaves empty all of `slots`.
    pub fn lent(
        ops: &'static [Op],
        calls: usize,
        slots: &'static mut [Option<NonNull<u8>>],
    ) -> Option<Self> {
        slots.fill(None);
        for op in ops {
            // A full slot holds the number of its domain, which is no block's address.
            let full = NonNull::new(ptr::without_provenance_mut(1 + op.domain().index()));
            let (before, after) = match op.kind() {
                OpKind::Malloc | OpKind::Calloc => (None, full),
                OpKind::Realloc => (full, full),
                OpKind::Free => (full, None),
            };
            let slot = slots.get_mut(op.slot() as usize)?;
            if *slot != before || (op.size() == 0 && after.is_some()) {
                return None;
            }
            *slot = after;
        }
        let frees = ops.get(calls..)?.iter().all(|op| op.kind() == OpKind::Free);
        let is_empty = slots.iter().all(Option::is_none);
        (frees && is_empty).then(|| Self { ops: ops.into(), calls, table: Table::Lent(slots) })
    }

    /// The operations of a pass: the program, then the frees of the blocks that the program leaves live.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Number of operations of the program, without the frees behind.
    #[must_use]
    pub const fn calls(&self) -> usize {
        self.calls
    }

    /// Length of the table of slots.
    #[must_use]
    pub fn slots(&self) -> usize {
        match &self.table {
            Table::Own(slots) => slots.len(),
            Table::Lent(slots) => slots.len(),
        }
    }

    /// Replays the program once, with one allocator a domain (raw, mem, obj).
    ///
    /// The blocks that the program leaves live are freed when the answer is dropped. An answer that is forgotten leaks
    /// them, and the next pass is as good as the first.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] at the first call that answered `None`; all blocks are freed then too.
    pub fn pass<A: Malloc + Copy>(
        &mut self,
        allocators: [A; 3],
    ) -> Result<Live<'_, A>, OutOfMemory> {
        let (program, leftovers) = self.ops.split_at(self.calls);
        let slots = match &mut self.table {
            Table::Own(slots) => slots.as_mut_slice(),
            Table::Lent(slots) => slots,
        };
        let allocators = by_bits(allocators);
        // SAFETY: 1 and 2 are invariants 1 and 2; the first operation on a slot overwrites whatever the slot holds.
        match unsafe { perform(program, slots, &allocators) } {
            Ok(()) => Ok(Live { leftovers, slots, allocators }),
            Err(failed) => {
                // SAFETY: 1. these operations stand, with these allocators.
                unsafe { free_all(standing(program, failed), slots, &allocators) };
                Err(OutOfMemory { op: program[failed] })
            }
        }
    }
}

/// The blocks that a pass left live; dropping it frees them.
pub struct Live<'a, A: Malloc> {
    leftovers: &'a [Op],
    slots: &'a mut [Slot],
    allocators: [A; 4],
}

impl<A: Malloc> fmt::Debug for Live<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("blocks", &self.leftovers.len()).finish_non_exhaustive()
    }
}

impl<A: Malloc> Drop for Live<'_, A> {
    fn drop(&mut self) {
        // SAFETY: 1. invariant 1 of `Replay`; 2. these frees follow the program in `Replay::ops` (invariant 2), and the
        // pass with the same allocators has performed that.
        let freed = unsafe { perform(self.leftovers, self.slots, &self.allocators) };
        debug_assert!(freed.is_ok(), "frees do not fail: invariant 3 of `Replay`");
    }
}

/// One allocator a domain as two bits index them; domain 3, which no operation names, saves the check.
pub(crate) fn by_bits<A: Copy>([raw, mem, obj]: [A; 3]) -> [A; 4] {
    [raw, mem, obj, obj]
}

/// Performs `ops`.
///
/// # Errors
///
/// The index of the first operation that was answered by `None`; the slot is then as before.
///
/// # Safety
///
/// 1. Every slot that `ops` name is inside `slots`.
/// 2. Each `realloc` and `free` meets a slot that holds a live block of the allocator of the operation's domain, as the
///    operations before leave the slot.
pub(crate) unsafe fn perform<A: Malloc>(
    ops: &[Op],
    slots: &mut [Slot],
    allocators: &[A; 4],
) -> Result<(), usize> {
    let mut rest = ops.iter();
    while let Some(&op) = rest.next() {
        let allocator = &allocators[op.domain_bits()];
        // SAFETY: duty 1.
        let slot = unsafe { slots.get_unchecked_mut(op.slot() as usize) };
        let size = op.size();
        // By bits, so that these stay branches: an indirect jump for each operation, which a `match` becomes, is predicted
        // worse, and would be half of the time of the replay.
        let block = if op.has_block() {
            if op.ends_block() {
                if let Some(block) = *slot {
                    // SAFETY: live (duty 2), and every block has a byte.
                    unsafe { block.read_volatile() };
                }
                // SAFETY: 1. live and the allocator's own (duty 2); 2. no operation reads the slot before one fills it.
                unsafe { allocator.free(*slot) };
                continue;
            }
            // SAFETY: 1. live and the allocator's own (duty 2); 2. the slot is overwritten below on success.
            unsafe { allocator.realloc(*slot, size) }
        } else if op.is_zeroed() {
            written(allocator.calloc(1, size), size)
        } else {
            written(allocator.malloc(size), size)
        };
        if block.is_none() {
            return Err(ops.len() - rest.len() - 1);
        }
        *slot = block;
    }
    Ok(())
}

/// Writes the first two words of a new block that has them.
#[inline(always)]
fn written(block: Slot, size: usize) -> Slot {
    if let (Some(block), true) = (block, size >= WRITTEN_BYTES) {
        // Two writes: the compiler would carry a pair through the stack.
        let words = block.cast::<usize>();
        // SAFETY: a new block of at least two words, aligned to `MIN_ALIGN`, which a word needs.
        unsafe { words.write_volatile(size) };
        // SAFETY: inside the two words.
        let second = unsafe { words.add(1) };
        // SAFETY: as above.
        unsafe { second.write_volatile(1) };
    }
    block
}

/// The operations whose effect stands when the one at `failed` was answered by `None`: a `realloc` has left its block, which
/// a thread may have taken over just before.
pub(crate) fn standing(ops: &[Op], failed: usize) -> &[Op] {
    &ops[..failed + usize::from(ops[failed].kind() == OpKind::Realloc)]
}

/// Frees what `ops` have left live.
///
/// # Safety
///
/// 1. The operations were performed on `slots` with `allocators`, or are [`standing`]; a slot that was emptied otherwise since
///    is `None`.
#[cold]
pub(crate) unsafe fn free_all<A: Malloc>(ops: &[Op], slots: &mut [Slot], allocators: &[A; 4]) {
    for op in ops.iter().rev() {
        // The last operation on a slot says whether the slot is full; to those before it the slot is empty.
        let block = slots[op.slot() as usize].take();
        if op.kind() != OpKind::Free && block.is_some() {
            // SAFETY: 1. live, of the allocator of this domain (duty 1); 2. taken out of the table.
            unsafe { allocators[op.domain_bits()].free(block) };
        }
    }
}

/// Rewrites a program into one that fits its slots, so that a replay need not look. [`Op`] says what an operation that does
/// not fit is completed to.
#[derive(Debug, Default)]
pub(crate) struct Fitter {
    /// The slots are numbered anew, in the order of their first use.
    numbers: HashMap<u32, u32>,
    /// The domain of the block in each slot.
    domains: Vec<Option<Domain>>,
}

impl Fitter {
    /// The calls that `op` is completed to, in their order.
    pub(crate) fn fit(&mut self, op: Op) -> impl Iterator<Item = Op> + use<> {
        let slot = *self.numbers.entry(op.slot()).or_insert_with(|| {
            self.domains.push(None);
            (self.domains.len() - 1) as u32
        });
        let held = &mut self.domains[slot as usize];
        let free = held.map(|domain| Op::free(slot, domain));
        let size = op.size().max(1);
        let (free, call) = match (op.kind(), *held) {
            (OpKind::Free, _) => (free, None),
            (OpKind::Realloc, Some(domain)) => (None, Some(Op::realloc(slot, domain, size))),
            (OpKind::Realloc, None) => (None, Some(Op::malloc(slot, op.domain(), size))),
            (kind @ (OpKind::Malloc | OpKind::Calloc), _) => {
                (free, Some(Op::new(kind, slot, op.domain(), size)))
            }
        };
        *held = call.map(Op::domain);
        free.into_iter().chain(call)
    }

    /// Frees of what is live now, in the order of the slots.
    pub(crate) fn leftovers(&self) -> impl Iterator<Item = Op> {
        (0..)
            .zip(&self.domains)
            .filter_map(|(slot, held)| held.map(|domain| Op::free(slot, domain)))
    }

    /// Length of the table of slots.
    pub(crate) fn slots(&self) -> usize {
        self.domains.len()
    }
}
