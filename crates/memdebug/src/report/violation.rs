//! Owns what a violation is: its kind, the call that met it, and the facts about the block, read once: header, guard, serial
//! number and the ends of its data.
//! Leaves making one to `host.rs`, the text to `dump.rs` and what follows from it to `handler.rs`.

use core::fmt;

use malloc_api::Domain;

use crate::block::{Extra, HEADER_BYTES, SERIAL_BYTES, TAIL_BYTES, max_request};
use crate::os::probe;
use crate::pattern::{DEADBYTE, FORBIDDENBYTE};
use crate::report::frames::Traceback;
use crate::sites::site::Site;

/// The function of the hooks that met a violation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Call {
    /// `malloc`.
    Malloc,
    /// `calloc`.
    Calloc,
    /// `realloc`.
    Realloc,
    /// `free`.
    Free,
    /// A freed block leaving the quarantine, or a walk over blocks that were not handed to a call.
    Check,
    /// A memory access that hit a guard page.
    Access,
}

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ViolationKind {
    /// The id byte before the block is that of no live block; nothing more is known.
    BadId,
    /// The block belongs to another domain.
    WrongDomain {
        /// The domain that allocated it.
        allocated: Domain,
    },
    /// A pad byte before the block was changed: a write in front of the block.
    LeadingPad,
    /// A guard byte after the block was changed: a write past its end.
    TrailingPad,
    /// The block was freed before.
    DoubleFree,
    /// A freed block was written to.
    UseAfterFree {
        /// Offset in bytes of the first changed byte from the start of the data; negative in the header.
        offset: isize,
        /// What stands there instead of DEADBYTE.
        found: u8,
        /// How many bytes were changed.
        changed: usize,
    },
    /// The pointer is inside a live block instead of at its start.
    InteriorPointer {
        /// Start of that block's data.
        block: usize,
        /// Its size in bytes.
        size: usize,
    },
    /// The pointer was never returned by these hooks.
    ForeignPointer,
    /// The calling thread must not call this domain now.
    WrongThread,
    /// The C library's `free` or `realloc` refused a pointer: a block of hooks, if one is known, else one of any origin.
    GivenToC,
    /// A guarded block was overrun, underrun or used after its free, and the guard page caught the access.
    GuardPage {
        /// Offset in bytes of the access from the start of the data.
        offset: isize,
        /// Whether the block had been freed.
        freed: bool,
        /// Whether it was a write; `None` where the processor does not say.
        write: Option<bool>,
    },
}

/// One broken rule: what, where, in which call, and the block's bytes at that moment.
///
/// `Display` is CPython's dump of the block (`_PyObject_DebugDumpAddress`), followed where we know more than CPython by
/// a `memdebug:` line and the sites of allocation and free. [`func`](Self::func) and [`message`](Self::message) are the two
/// parts of its fatal error.
///
/// Nothing in it is a pointer: it may be kept, compared and sent to other threads.
#[derive(Clone)]
pub struct Violation {
    pub(crate) kind: ViolationKind,
    pub(crate) call: Call,
    pub(crate) domain: Domain,
    pub(crate) block: Option<BlockFacts>,
    pub(crate) allocated: Option<Site>,
    pub(crate) freed: Option<Site>,
    pub(crate) caller: Option<Site>,
    pub(crate) traceback: Option<Traceback>,
    pub(crate) thread_message: &'static str,
}

impl Violation {
    /// What was found.
    #[must_use]
    pub fn kind(&self) -> ViolationKind {
        self.kind
    }

    /// The call that met it.
    #[must_use]
    pub fn call(&self) -> Call {
        self.call
    }

    /// The domain whose hooks met it.
    #[must_use]
    pub fn domain(&self) -> Domain {
        self.domain
    }

    /// Address of the block's data as the caller gave it; `None` where no block is involved.
    #[must_use]
    pub fn address(&self) -> Option<usize> {
        self.block.as_ref().map(|b| b.address)
    }

    /// Size in bytes that the block's header states; `None` where there is no block or it cannot be read.
    ///
    /// After a write in front of the block this may be any number.
    #[must_use]
    pub fn stated_size(&self) -> Option<u64> {
        self.block.as_ref().and_then(BlockFacts::size)
    }

    /// Where the block was allocated; `None` unless backtraces were on.
    #[must_use]
    pub fn allocated(&self) -> Option<Site> {
        self.allocated
    }

    /// Where the block was freed; `None` unless it was freed while backtraces were on.
    #[must_use]
    pub fn freed(&self) -> Option<Site> {
        self.freed
    }

    /// The frames of the call that met the violation: native ones, and the host's where backtraces are on. `None` if no call
    /// met the violation, or if there is no memory to keep the frames.
    #[must_use]
    pub fn caller(&self) -> Option<Site> {
        self.caller
    }

    /// Name of the C function in CPython's fatal error.
    #[must_use]
    pub fn func(&self) -> &'static str {
        let thread = self.kind == ViolationKind::WrongThread;
        if self.kind == ViolationKind::GivenToC {
            return if self.call == Call::Realloc { "realloc" } else { "free" };
        }
        match (self.call, thread) {
            (Call::Malloc, _) => "_PyMem_DebugMalloc",
            (Call::Calloc, _) => "_PyMem_DebugCalloc",
            (Call::Realloc, true) => "_PyMem_DebugRealloc",
            (Call::Free, true) => "_PyMem_DebugFree",
            // The block check is one function for all domains, and carries the raw name in CPython too.
            (Call::Realloc, false) => "_PyMem_DebugRawRealloc",
            (Call::Free | Call::Check, _) => "_PyMem_DebugRawFree",
            (Call::Access, _) => "_PyMem_DebugGuardPage",
        }
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Violation")
            .field("kind", &self.kind)
            .field("call", &self.call)
            .field("domain", &self.domain)
            .field("block", &self.block)
            .finish_non_exhaustive()
    }
}

/// Decides what follows a violation: it may end the process, panic, or return to go on.
///
/// After a return the faulty call has no effect: a bad block is neither freed nor resized, and a call from the wrong
/// thread is carried out.
pub type ViolationHandler = fn(&Violation);

/// Bytes shown from each end of the data.
pub(crate) const SHOWN_BYTES: usize = 8;

/// `N` bytes of memory, if they could be read.
pub(crate) type Peek<const N: usize> = Option<[u8; N]>;

/// How much of the hooks' layout a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All of it, or so it should be.
    Full,
    /// Filled dead; size and domain are known from elsewhere.
    #[cfg_attr(not(feature = "std"), expect(dead_code, reason = "made by the quarantine alone"))]
    Freed,
    /// Between guard pages, without header and guard bytes.
    #[cfg_attr(not(feature = "std"), expect(dead_code, reason = "made by guard pages alone"))]
    Guarded,
}

/// What stood at and around a pointer when a violation was met. A copy: nothing in it is read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockFacts {
    /// The caller's pointer.
    pub(crate) address: usize,
    pub(crate) shape: Shape,
    /// Size, id and pads.
    pub(crate) header: Peek<HEADER_BYTES>,
    /// The guard after the data; `None` too if the size is none that a block can have.
    pub(crate) tail: Peek<TAIL_BYTES>,
    /// Whether serial numbers are on, and the number if it could be read.
    pub(crate) serial: Option<Peek<SERIAL_BYTES>>,
    /// Bytes of data from the pointer on, whose ends follow; 0 if it is not known how many there are.
    pub(crate) data_bytes: usize,
    /// The first bytes of the data; only the first `min(data_bytes, 8)` count.
    pub(crate) first: Peek<SHOWN_BYTES>,
    /// The bytes after those, up to 8, or the last 8.
    pub(crate) last: Peek<SHOWN_BYTES>,
}

impl BlockFacts {
    /// Reads the block at `address`, trusting nothing: neither the pointer nor the size in front of it.
    pub(crate) fn read(address: usize, serial: bool) -> Self {
        let header = probe::peek::<HEADER_BYTES>(address.wrapping_sub(HEADER_BYTES));
        let mut facts = Self {
            address,
            shape: Shape::Full,
            header,
            tail: None,
            serial: serial.then_some(None),
            data_bytes: 0,
            first: None,
            last: None,
        };
        let Some(size) = facts.plausible_size() else {
            return facts;
        };
        let tail = address.wrapping_add(size);
        facts.tail = probe::peek(tail);
        if serial {
            facts.serial = Some(probe::peek(tail.wrapping_add(TAIL_BYTES)));
        }
        facts.read_data(size);
        facts
    }

    fn read_data(&mut self, size: usize) {
        self.data_bytes = size;
        self.first = peek_up_to(self.address, size.min(SHOWN_BYTES));
        let rest = size.saturating_sub(SHOWN_BYTES).min(SHOWN_BYTES);
        self.last = peek_up_to(self.address.wrapping_add(size - rest), rest);
    }

    /// The facts of a block whose size and domain are known, with the ends of its data as they are now.
    #[cfg(feature = "std")]
    pub(crate) fn known(block: usize, size: usize, domain: Domain, shape: Shape) -> Self {
        Self::known_at(block, block, size, domain, shape)
    }

    /// [`known`](Self::known) of the block near `address`: what is shown is its data from there on.
    #[cfg(feature = "std")]
    pub(crate) fn known_at(
        address: usize,
        block: usize,
        size: usize,
        domain: Domain,
        shape: Shape,
    ) -> Self {
        let mut header = [FORBIDDENBYTE; HEADER_BYTES];
        header[..8].copy_from_slice(&(size as u64).to_be_bytes());
        header[8] = domain.letter();
        let mut facts = Self {
            address,
            shape,
            header: Some(header),
            tail: None,
            serial: None,
            data_bytes: 0,
            first: None,
            last: None,
        };
        let offset = address.checked_sub(block);
        facts.read_data(offset.map_or(0, |offset| size.saturating_sub(offset)));
        facts
    }

    /// The size that the header states.
    pub(crate) fn size(&self) -> Option<u64> {
        let header = self.header?;
        Some(u64::from_be_bytes(*header.first_chunk()?))
    }

    /// The stated size, if a block can have it.
    pub(crate) fn plausible_size(&self) -> Option<usize> {
        let size = usize::try_from(self.size()?).ok()?;
        let limit = max_request(Extra { serial: self.serial.is_some(), site: false });
        (size <= limit && self.address.checked_add(size).is_some()).then_some(size)
    }

    /// Where the block was allocated, if it has a site after its guard or its serial number, and that was not overwritten.
    #[cfg(feature = "std")]
    pub(crate) fn site(&self) -> Option<Site> {
        let guard = self.address.wrapping_add(self.plausible_size()?);
        let places = [TAIL_BYTES, TAIL_BYTES + SERIAL_BYTES].map(|at| guard.wrapping_add(at));
        let words = places.into_iter().filter_map(probe::peek).map(u64::from_ne_bytes);
        let site = words.filter_map(|word| crate::block::site_of(self.address, word)).next()?;
        Site::from_bits(site)
    }

    /// The id byte.
    pub(crate) fn id(&self) -> Option<u8> {
        self.header.map(|h| h[8])
    }

    /// The seven pads before the data.
    pub(crate) fn pads(&self) -> Option<&[u8]> {
        self.header.as_ref().map(|h| &h[9..])
    }

    /// Whether header and guard are those of a live block.
    #[cfg(feature = "std")]
    pub(crate) fn is_intact(&self) -> bool {
        self.id().and_then(Domain::from_letter).is_some()
            && self.pads_intact()
            && self.tail == Some([FORBIDDENBYTE; TAIL_BYTES])
    }

    /// Whether all seven pads before the data are intact.
    pub(crate) fn pads_intact(&self) -> bool {
        self.pads().is_some_and(|pads| pads.iter().all(|&b| b == FORBIDDENBYTE))
    }

    /// Whether id and pads are DEADBYTE: what a free leaves behind.
    pub(crate) fn header_is_dead(&self) -> bool {
        self.header.is_some_and(|h| h[8..].iter().all(|&b| b == DEADBYTE))
    }
}

/// Reads `len` bytes, which is at most 8, into the front of an array.
fn peek_up_to(address: usize, len: usize) -> Peek<SHOWN_BYTES> {
    let mut bytes = [0; SHOWN_BYTES];
    probe::read(address, &mut bytes[..len]).then_some(bytes)
}
