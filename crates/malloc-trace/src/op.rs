//! Owns `Op` and `Event`: what an allocation operation is. Leaves the bytes of a file to `codec.rs`, and what it means to
//! run an operation to `shadow.rs` and `replay.rs`.

use std::fmt;

use malloc_api::Domain;

/// Which method of `Malloc` an operation calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum OpKind {
    /// `malloc(size)` into an empty slot.
    Malloc = 0,
    /// `calloc` of `size` bytes in all into an empty slot.
    Calloc = 1,
    /// `realloc` of the slot's block to `size` bytes; the slot keeps the new pointer. An empty slot is `None`.
    Realloc = 2,
    /// `free` of the slot's block, which empties the slot.
    Free = 3,
}

impl OpKind {
    /// The method's name.
    const fn name(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::Calloc => "calloc",
            Self::Realloc => "realloc",
            Self::Free => "free",
        }
    }
}

/// One call of the malloc family: a kind, a slot, a domain and a size, in 8 bytes.
///
/// A slot is the index of the block's pointer in a table that the program keeps; slots are reused after a free. A size
/// is in bytes and saturates at [`Op::MAX_SIZE`]; the size of a `free` is 0.
///
/// Any sequence of operations is a program. An operation that does not fit the state of its slot is completed: `malloc` and `calloc` into a full slot free its block first, `realloc` of an empty slot is `realloc(None, size)`,
/// `free` of an empty slot is `free(None)`. The block's own domain wins over the domain of the operation.
///
/// # Examples
///
/// ```
/// use malloc_trace::{Domain, Op, OpKind};
///
/// let op = Op::realloc(7, Domain::Obj, 100);
/// assert_eq!((op.kind(), op.slot(), op.domain(), op.size()), (OpKind::Realloc, 7, Domain::Obj, 100));
/// assert_eq!(op.to_string(), "realloc obj slot 7, 100 bytes");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Op {
    slot: u32,
    /// Bits 0-1 kind, 2-3 domain (never 3), 4-31 size.
    bits: u32,
}

impl Op {
    /// Largest size in bytes that an operation holds; greater ones saturate to it.
    pub const MAX_SIZE: usize = (1 << 28) - 1;

    /// `malloc(size)` in `domain` into `slot`.
    #[must_use]
    pub const fn malloc(slot: u32, domain: Domain, size: usize) -> Self {
        Self::new(OpKind::Malloc, slot, domain, size)
    }

    /// `calloc` of `size` bytes in all in `domain` into `slot`.
    #[must_use]
    pub const fn calloc(slot: u32, domain: Domain, size: usize) -> Self {
        Self::new(OpKind::Calloc, slot, domain, size)
    }

    /// `realloc` of the block in `slot` to `size` bytes in `domain`.
    #[must_use]
    pub const fn realloc(slot: u32, domain: Domain, size: usize) -> Self {
        Self::new(OpKind::Realloc, slot, domain, size)
    }

    /// `free` of the block in `slot` in `domain`.
    #[must_use]
    pub const fn free(slot: u32, domain: Domain) -> Self {
        Self::new(OpKind::Free, slot, domain, 0)
    }

    /// An operation from its parts; the size of a `free` is kept as given.
    #[must_use]
    pub const fn new(kind: OpKind, slot: u32, domain: Domain, size: usize) -> Self {
        let size = if size > Self::MAX_SIZE { Self::MAX_SIZE } else { size };
        Self { slot, bits: kind as u32 | (domain as u32) << 2 | (size as u32) << 4 }
    }

    /// The operation whose two words in a trace file are `slot` and `bits`; `None` if they name domain 3.
    #[must_use]
    pub const fn from_words(slot: u32, bits: u32) -> Option<Self> {
        if bits >> 2 & 3 == 3 { None } else { Some(Self { slot, bits }) }
    }

    /// The two words of the operation in a trace file: slot, and kind, domain and size.
    #[must_use]
    pub const fn to_words(self) -> (u32, u32) {
        (self.slot, self.bits)
    }

    /// The method that the operation calls.
    #[must_use]
    #[inline]
    pub const fn kind(self) -> OpKind {
        match self.bits & 3 {
            0 => OpKind::Malloc,
            1 => OpKind::Calloc,
            2 => OpKind::Realloc,
            _ => OpKind::Free,
        }
    }

    /// The slot of its block.
    #[must_use]
    #[inline]
    pub const fn slot(self) -> u32 {
        self.slot
    }

    /// Its domain.
    #[must_use]
    #[inline]
    pub const fn domain(self) -> Domain {
        match self.bits >> 2 & 3 {
            0 => Domain::Raw,
            1 => Domain::Mem,
            _ => Domain::Obj,
        }
    }

    /// The two bits of its domain, for a table of four.
    #[inline]
    pub(crate) const fn domain_bits(self) -> usize {
        (self.bits >> 2 & 3) as usize
    }

    /// Whether the operation is a `realloc` or a `free`.
    #[inline]
    pub(crate) const fn has_block(self) -> bool {
        self.bits & 2 != 0
    }

    /// Whether an operation that [has a block](Op::has_block) is a `free`.
    #[inline]
    pub(crate) const fn ends_block(self) -> bool {
        self.bits & 1 != 0
    }

    /// Whether an operation that has no block is a `calloc`.
    #[inline]
    pub(crate) const fn is_zeroed(self) -> bool {
        self.bits & 1 != 0
    }

    /// Its size in bytes, at most [`Op::MAX_SIZE`].
    #[must_use]
    #[inline]
    pub const fn size(self) -> usize {
        (self.bits >> 4) as usize
    }

    /// The same operation on another slot.
    #[must_use]
    pub const fn with_slot(self, slot: u32) -> Self {
        Self { slot, bits: self.bits }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} slot {}", self.kind().name(), self.domain(), self.slot())?;
        if self.kind() == OpKind::Free { Ok(()) } else { write!(f, ", {} bytes", self.size()) }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, slot, domain) = (self.kind(), self.slot(), self.domain());
        write!(f, "Op::{}({slot}, Domain::{domain:?}", kind.name())?;
        if kind == OpKind::Free { f.write_str(")") } else { write!(f, ", {})", self.size()) }
    }
}

/// An operation with the thread that called it and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Event {
    /// The call.
    pub op: Op,
    /// The number of the calling thread; threads are numbered in the order of their first calls.
    pub thread: u16,
    /// Nanoseconds since the trace began, at most [`Event::MAX_NANOS`]; 0 where the trace has no times.
    pub nanos: u64,
}

impl Event {
    /// The latest time in nanoseconds that an event holds (78 hours); later ones saturate to it.
    pub const MAX_NANOS: u64 = (1 << 48) - 1;
}

impl From<Op> for Event {
    /// An event of thread 0 at time 0.
    fn from(op: Op) -> Self {
        Self { op, thread: 0, nanos: 0 }
    }
}

/// A whole program of operations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    /// The operations in the order of the calls.
    pub ops: Vec<Op>,
    /// Length of the slot table: greater than every slot that the operations name.
    pub slots: u32,
}

impl Trace {
    /// A trace of `ops` with the shortest slot table that holds them.
    ///
    /// # Panics
    ///
    /// If an operation names slot `u32::MAX`, since no `u32` counts that many slots.
    #[must_use]
    pub fn new(ops: Vec<Op>) -> Self {
        let slots =
            ops.iter().map(|op| op.slot().checked_add(1).expect("slot below u32::MAX")).max();
        Self { ops, slots: slots.unwrap_or(0) }
    }
}
