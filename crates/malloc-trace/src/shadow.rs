//! Owns the shadow model: the pattern that every live block must hold, checked at every operation of a program. `run` is the one
//! interpreter that tests, fuzzers and trace checks share. Leaves timing to `replay.rs`, which checks nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use malloc_api::{Domain, MIN_ALIGN, Malloc};

use crate::op::{Op, OpKind};

/// What an allocator did wrong; addresses, sizes and offsets are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A block is not aligned to [`MIN_ALIGN`].
    #[error("it answered {address:#x}, which is not a multiple of {MIN_ALIGN}")]
    Misaligned {
        /// The address answered.
        address: usize,
    },
    /// A block shares bytes with a live one; a zero-size block takes one byte, since its address must be its own.
    #[error(
        "it answered {address:#x}, which overlaps the live block of slot {slot}: {size} bytes at {start:#x}"
    )]
    Overlap {
        /// The address answered.
        address: usize,
        /// The slot of the live block.
        slot: u32,
        /// The address of the live block.
        start: usize,
        /// The size of the live block.
        size: usize,
    },
    /// A byte from `calloc` is not zero.
    #[error("the byte at offset {offset} is {found:#04x}; expected zeroed memory")]
    NotZeroed {
        /// The first byte that is wrong.
        offset: usize,
        /// The byte.
        found: u8,
    },
    /// `realloc` did not keep a byte within `min(old_size, new_size)`.
    #[error("the byte at offset {offset} was lost; expected the first {kept} bytes kept")]
    ContentLost {
        /// The first byte that is wrong.
        offset: usize,
        /// How many bytes had to be kept.
        kept: usize,
    },
    /// `realloc` answered `None` and changed the old block nevertheless.
    #[error("it answered None but changed the old block at offset {offset}; expected it untouched")]
    FailedReallocTouched {
        /// The first byte that is wrong.
        offset: usize,
    },
    /// A live block changed although its owner did not write to it.
    #[error(
        "the block of slot {slot} ({size} bytes) changed at offset {offset}; expected nobody to write to it while it is live"
    )]
    Changed {
        /// The slot of the block.
        slot: u32,
        /// Its size.
        size: usize,
        /// The first byte that is wrong.
        offset: usize,
    },
}

/// What a program of operations did, when nothing was wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Operations performed.
    pub ops: usize,
    /// Calls that answered `None`: out of memory is not a fault, a caller that expects none asserts 0 here.
    pub failed: usize,
    /// Live blocks after the last operation.
    pub live_blocks: usize,
    /// Bytes requested for the live blocks after the last operation.
    pub live_bytes: usize,
    /// The most blocks ever live at one time.
    pub peak_blocks: usize,
    /// The most bytes ever live at one time, by the sizes requested.
    pub peak_bytes: usize,
}

/// One allocator per domain, and what its live blocks must hold.
///
/// Every block is filled with a pattern of its own. A block's alignment, its overlap with every other live block, the
/// zeros of `calloc`, and the content of the block that an operation touches are checked at every operation; the
/// content of all others when they are next touched and by [`check_all`](ShadowModel::check_all).
///
/// The model's own memory comes from the program's global allocator, never from the allocators under test.
/// Dropping a model leaks its live blocks; [`free_all`](ShadowModel::free_all) frees them.
#[derive(Debug)]
pub struct ShadowModel<'a, A: ?Sized> {
    allocators: [&'a A; 3],
    /// The block in each slot that has one, and its domain.
    slots: HashMap<u32, (Block, Domain)>,
    /// The slot of each live block by its address.
    by_address: BTreeMap<usize, u32>,
    next_id: u64,
    summary: Summary,
}

impl<'a, A: Malloc + ?Sized> ShadowModel<'a, A> {
    /// A model with no blocks; `allocators` serve the domains raw, mem and obj and may be the same.
    #[must_use]
    pub fn new(allocators: [&'a A; 3]) -> Self {
        Self {
            allocators,
            slots: HashMap::new(),
            by_address: BTreeMap::new(),
            next_id: 0,
            summary: Summary::default(),
        }
    }

    /// What was done so far.
    pub const fn summary(&self) -> Summary {
        self.summary
    }

    /// Performs one operation and checks the result.
    ///
    /// # Errors
    ///
    /// The first [`Fault`] seen. The allocator's state is then unknown: the model must not be used any more.
    pub fn step(&mut self, op: Op) -> Result<(), Fault> {
        self.summary.ops += 1;
        let slot = op.slot();
        match op.kind() {
            OpKind::Malloc => {
                self.free(slot)?;
                let answer = self.allocator(op.domain()).malloc(op.size());
                self.fill_slot(op, answer).map(drop)
            }
            OpKind::Calloc => {
                self.free(slot)?;
                let (nelem, elsize) = factors(op.size());
                let answer = self.allocator(op.domain()).calloc(nelem, elsize);
                self.fill_slot(op, answer)
            }
            OpKind::Realloc => match self.take(slot)? {
                Some((old, domain)) => self.realloc(op, old, domain),
                None => {
                    // SAFETY: (1) `None` is allowed; (2) there is no old block.
                    let answer = unsafe { self.allocator(op.domain()).realloc(None, op.size()) };
                    self.fill_slot(op, answer)
                }
            },
            OpKind::Free => {
                if !self.free(slot)? {
                    // SAFETY: (1) `None` is allowed; (2) there is no block.
                    unsafe { self.allocator(op.domain()).free(None) };
                }
                Ok(())
            }
        }
    }

    /// Checks that every live block still holds its pattern.
    ///
    /// # Errors
    ///
    /// [`Fault::Changed`] for the live block with the lowest address that does not.
    pub fn check_all(&self) -> Result<(), Fault> {
        for slot in self.by_address.values() {
            let (block, _) = &self.slots[slot];
            check_unchanged(*slot, block)?;
        }
        Ok(())
    }

    /// Checks and frees every live block, in the order of the addresses.
    ///
    /// # Errors
    ///
    /// [`Fault::Changed`] for the first block that does not hold its pattern; the later ones are then leaked.
    pub fn free_all(mut self) -> Result<(), Fault> {
        while let Some((_, &slot)) = self.by_address.first_key_value() {
            self.free(slot)?;
        }
        Ok(())
    }

    fn allocator(&self, domain: Domain) -> &'a A {
        self.allocators[domain.index()]
    }

    /// Puts the answer of a fresh allocation into the slot of `op`, which is empty.
    fn fill_slot(&mut self, op: Op, answer: Option<NonNull<u8>>) -> Result<(), Fault> {
        let Some(ptr) = answer else {
            self.summary.failed += 1;
            return Ok(());
        };
        let mut block = self.inspect(ptr, op.size())?;
        if op.kind() == OpKind::Calloc {
            if let Some((offset, found)) = block.first_nonzero() {
                return Err(Fault::NotZeroed { offset, found });
            }
        }
        self.next_id += 1;
        block.fill(self.next_id);
        self.insert(op.slot(), block, op.domain());
        Ok(())
    }

    /// Resizes the block `old`, which was taken out of the slot of `op`.
    fn realloc(&mut self, op: Op, old: Block, domain: Domain) -> Result<(), Fault> {
        let (slot, new_size) = (op.slot(), op.size());
        // SAFETY: (1) `old` is live and its domain's own; (2) after success only the answer is used.
        let answer = unsafe { self.allocator(domain).realloc(Some(old.ptr), new_size) };
        let Some(ptr) = answer else {
            self.summary.failed += 1;
            if let Some(offset) = old.first_changed() {
                return Err(Fault::FailedReallocTouched { offset });
            }
            self.insert(slot, old, domain);
            return Ok(());
        };
        let mut block = self.inspect(ptr, new_size)?;
        let kept = old.size.min(new_size);
        if let Some(offset) = block.first_unlike(&old, kept) {
            return Err(Fault::ContentLost { offset, kept });
        }
        block.fill(old.id);
        self.insert(slot, block, domain);
        Ok(())
    }

    /// Frees the block in `slot`; whether there was one.
    fn free(&mut self, slot: u32) -> Result<bool, Fault> {
        let Some((block, domain)) = self.take(slot)? else { return Ok(false) };
        // SAFETY: (1) the block is live and its domain's own; (2) it was taken out of the table.
        unsafe { self.allocator(domain).free(Some(block.ptr)) };
        Ok(true)
    }

    fn inspect(&self, ptr: NonNull<u8>, size: usize) -> Result<Block, Fault> {
        let address = ptr.addr().get();
        if address % MIN_ALIGN != 0 {
            return Err(Fault::Misaligned { address });
        }
        let end = address.saturating_add(size.max(1));
        if let Some((&start, &slot)) = self.by_address.range(..end).next_back() {
            let size = self.slots[&slot].0.size;
            if start + size.max(1) > address {
                return Err(Fault::Overlap { address, slot, start, size });
            }
        }
        Ok(Block { ptr, size, id: 0 })
    }

    fn insert(&mut self, slot: u32, block: Block, domain: Domain) {
        let summary = &mut self.summary;
        summary.live_blocks += 1;
        summary.live_bytes += block.size;
        summary.peak_blocks = summary.peak_blocks.max(summary.live_blocks);
        summary.peak_bytes = summary.peak_bytes.max(summary.live_bytes);
        self.by_address.insert(block.ptr.addr().get(), slot);
        self.slots.insert(slot, (block, domain));
    }

    fn take(&mut self, slot: u32) -> Result<Option<(Block, Domain)>, Fault> {
        let Some((block, domain)) = self.slots.remove(&slot) else { return Ok(None) };
        self.by_address.remove(&block.ptr.addr().get());
        self.summary.live_blocks -= 1;
        self.summary.live_bytes -= block.size;
        check_unchanged(slot, &block)?;
        Ok(Some((block, domain)))
    }
}

/// An allocator did something wrong: at which operation, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelError {
    /// Index of the operation, from 0; the number of operations if the fault was seen when the remaining blocks were freed.
    pub index: usize,
    /// The operation; `None` if the fault was seen when the remaining blocks were freed.
    pub op: Option<Op>,
    /// What was wrong.
    pub fault: Fault,
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.op {
            Some(op) => write!(f, "operation {} ({op}): {}", self.index, self.fault),
            None => write!(f, "after {} operations: {}", self.index, self.fault),
        }
    }
}

/// Without a source: the text has the fault.
impl std::error::Error for ModelError {}

/// Runs `ops` through one allocator that serves all domains, with the shadow model, and frees what is left.
///
/// `None` answers are counted, not errors: a caller that expects none asserts [`Summary::failed`] to be 0. The live
/// counts of the summary are those before the remaining blocks were freed.
///
/// # Errors
///
/// The first [`ModelError`]; the live blocks are then leaked.
///
/// # Examples
///
/// ```
/// use malloc_trace::{Domain, Op, run};
///
/// let ops = [Op::malloc(0, Domain::Raw, 100), Op::realloc(0, Domain::Raw, 1000), Op::calloc(1, Domain::Raw, 8), Op::free(0, Domain::Raw)];
/// let summary = run(&ops, &malloc_api::LibcMalloc)?;
/// assert_eq!((summary.failed, summary.live_blocks, summary.peak_bytes), (0, 1, 1008));
/// # Ok::<(), malloc_trace::ModelError>(())
/// ```
pub fn run<A: Malloc + ?Sized>(ops: &[Op], allocator: &A) -> Result<Summary, ModelError> {
    run_domains(ops, [allocator; 3])
}

/// Runs `ops` through one allocator a domain (raw, mem, obj), as [`run`] does.
///
/// Different types go in as `&dyn Malloc`.
///
/// # Errors
///
/// The first [`ModelError`]; the live blocks are then leaked.
pub fn run_domains<A: Malloc + ?Sized>(
    ops: &[Op],
    allocators: [&A; 3],
) -> Result<Summary, ModelError> {
    let mut model = ShadowModel::new(allocators);
    for (index, &op) in ops.iter().enumerate() {
        model.step(op).map_err(|fault| ModelError { index, op: Some(op), fault })?;
    }
    let summary = model.summary();
    let at_end = |fault| ModelError { index: ops.len(), op: None, fault };
    model.free_all().map_err(at_end)?;
    Ok(summary)
}

fn check_unchanged(slot: u32, block: &Block) -> Result<(), Fault> {
    match block.first_changed() {
        Some(offset) => Err(Fault::Changed { slot, size: block.size, offset }),
        None => Ok(()),
    }
}

/// Splits a size into the two factors of a `calloc`: elements of 8 bytes where that divides it.
const fn factors(size: usize) -> (usize, usize) {
    if size % 8 == 0 { (size / 8, 8) } else { (size, 1) }
}

/// A live block. Word `i` of a filled block is `pattern(id) + i * STEP`, so that content which moved by a word is seen.
///
/// Invariant: a `Block` exists only while its `size` bytes are the model's to read and write, and `ptr` is aligned to
/// `MIN_ALIGN`, which is at least the alignment of a `u64`.
#[derive(Debug, Clone, Copy)]
struct Block {
    ptr: NonNull<u8>,
    size: usize,
    id: u64,
}

const WORD_BYTES: usize = size_of::<u64>();
/// 2^64 divided by the golden ratio: consecutive multiples differ in every byte.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Block {
    fn fill(&mut self, id: u64) {
        self.id = id;
        let mut expected = pattern(id);
        let (words, tail) = self.parts::<MaybeUninit<u64>, MaybeUninit<u8>>();
        // SAFETY: the words are the block's (the type's invariant) and may be uninitialised.
        for word in unsafe { &mut *words.as_ptr() } {
            word.write(expected);
            expected = expected.wrapping_add(STEP);
        }
        // SAFETY: as above, for the bytes after the last whole word.
        let tail = unsafe { &mut *tail.as_ptr() };
        for (byte, expected) in tail.iter_mut().zip(expected.to_le_bytes()) {
            byte.write(expected);
        }
    }

    /// The first offset that does not hold the block's own pattern. Only for a filled block.
    fn first_changed(&self) -> Option<usize> {
        self.first_unlike(self, self.size)
    }

    /// The first offset below `size` without the pattern of `other`; `size` is at most the size of the block.
    fn first_unlike(&self, other: &Self, size: usize) -> Option<usize> {
        let mut expected = pattern(other.id);
        let (words, tail) = Self { size, ..*self }.parts::<u64, u8>();
        // SAFETY: the words are the block's (the type's invariant), and were filled, or kept by `realloc`, which an
        // allocator under test may get wrong: then they hold what the memory below the block held.
        let words = unsafe { words.as_ref() };
        for (i, &word) in words.iter().enumerate() {
            if word != expected {
                let differing = (word ^ expected).to_le().trailing_zeros() / u8::BITS;
                return Some(i * WORD_BYTES + differing as usize);
            }
            expected = expected.wrapping_add(STEP);
        }
        // SAFETY: as above, for the bytes after the last whole word.
        let tail = unsafe { tail.as_ref() };
        let differing = tail.iter().zip(expected.to_le_bytes()).position(|(&a, b)| a != b);
        differing.map(|at| words.len() * WORD_BYTES + at)
    }

    /// The first byte that is not zero. Only for a block from `calloc`.
    fn first_nonzero(&self) -> Option<(usize, u8)> {
        let bytes = NonNull::slice_from_raw_parts(self.ptr, self.size);
        // SAFETY: the bytes are the block's (the type's invariant) and `calloc` initialised them.
        let bytes = unsafe { bytes.as_ref() };
        let at = bytes.iter().position(|&byte| byte != 0)?;
        Some((at, bytes[at]))
    }

    /// The block's whole words, and its bytes after them.
    fn parts<Word, Byte>(&self) -> (NonNull<[Word]>, NonNull<[Byte]>) {
        let words = self.size / WORD_BYTES;
        // SAFETY: `words * WORD_BYTES <= size`, so the offset stays within the block or at its end.
        let tail = unsafe { self.ptr.add(words * WORD_BYTES) };
        let words = NonNull::slice_from_raw_parts(self.ptr.cast::<Word>(), words);
        (words, NonNull::slice_from_raw_parts(tail.cast::<Byte>(), self.size % WORD_BYTES))
    }
}

/// The first word of a block's pattern, little-endian in memory: never zero, and far from the word of the next id.
const fn pattern(id: u64) -> u64 {
    let mixed = (id ^ id >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ mixed >> 27) | 1
}
