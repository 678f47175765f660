//! Owns what a violation is: its kind, the call that met it, and the facts about the block, taken once.
//! Leaves making one to `host.rs`, the text to `dump.rs` and what follows from it to `handler.rs`.

use core::fmt;

use crate::report::facts::BlockFacts;
use crate::report::frames::Traceback;
use crate::sites::site::Site;
use malloc_api::Domain;

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
    /// The id byte before the block is none of a live block's; nothing more is known.
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

    /// Where the call came from that met the violation; `None` unless backtraces were on, and for what was met in no call.
    #[must_use]
    pub fn caller(&self) -> Option<Site> {
        self.caller
    }

    /// Name of the C function in CPython's fatal error.
    #[must_use]
    pub fn func(&self) -> &'static str {
        let thread = self.kind == ViolationKind::WrongThread;
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
