//! Owns what the surroundings supply: the thread rule, what to do on a violation, and traceback lines.
//! Leaves when to ask for them to `hooks.rs`, and ready-made violation handlers to `handler.rs`.

use core::fmt;
use core::ptr::NonNull;

use malloc_api::Domain;

use crate::report::frames::{HostStacks, Traceback};
use crate::report::handler;
use crate::report::violation::{BlockFacts, Call, Violation, ViolationHandler, ViolationKind};
use crate::thread::{ThreadCheck, ThreadWord};

/// Bytes from the start of the underlying block that a fill must leave alone, for blocks of the obj domain in a
/// free-threaded host: readers without a lock may still read these fields.
///
/// `None` asks for a block about to be allocated by the calling thread, `Some(base)` for one about to be freed. The
/// count includes the 16 header bytes of the hooks, as CPython's `debug_offset` does; less than 16 means no data byte.
pub type DebugOffset = fn(Option<NonNull<u8>>) -> usize;

/// What the surroundings supply to [`DebugHooks`](crate::DebugHooks).
///
/// Without any of it: no thread rule; a violation is written to stderr and aborts the process (without the `std`
/// feature, it panics); no traceback lines.
///
/// # Examples
///
/// ```
/// use memdebug::{Host, handler};
///
/// fn gil_held() -> bool {
///     true
/// }
/// static HOST: Host = Host::new().with_thread_check(gil_held).with_handler(handler::panic);
/// # let _ = &HOST;
/// ```
#[derive(Clone, Copy)]
pub struct Host {
    pub(crate) thread_check: Option<ThreadCheck>,
    pub(crate) thread_word: Option<ThreadWord>,
    pub(crate) thread_message: &'static str,
    pub(crate) handler: ViolationHandler,
    pub(crate) traceback: Option<Traceback>,
    pub(crate) stacks: Option<&'static HostStacks>,
    pub(crate) debug_offset: Option<DebugOffset>,
}

impl Host {
    /// CPython's words for a call without the GIL (3.13 and before, and GIL builds).
    pub const WITHOUT_GIL: &'static str = "Python memory allocator called without holding the GIL";
    /// CPython's words for a call without an attached thread state (free-threaded builds after 3.13).
    pub const WITHOUT_THREAD_STATE: &'static str = "Python memory allocator called without an active thread state. \
        Are you trying to call it inside of a Py_BEGIN_ALLOW_THREADS block?";

    /// A host that supplies nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            thread_check: None,
            thread_word: None,
            thread_message: Self::WITHOUT_GIL,
            handler: handler::DEFAULT,
            traceback: None,
            stacks: None,
            debug_offset: None,
        }
    }

    /// Sets the thread rule of the mem and obj domains; raw has none.
    #[must_use]
    pub const fn with_thread_check(mut self, check: ThreadCheck) -> Self {
        self.thread_check = Some(check);
        self
    }

    /// Sets the word by which most calls pass the thread rule without asking.
    #[must_use]
    pub const fn with_thread_word(mut self, word: ThreadWord) -> Self {
        self.thread_word = Some(word);
        self
    }

    /// Sets the words of the report when the thread rule is broken.
    #[must_use]
    pub const fn with_thread_message(mut self, message: &'static str) -> Self {
        self.thread_message = message;
        self
    }

    /// Sets what a violation leads to.
    #[must_use]
    pub const fn with_handler(mut self, handler: ViolationHandler) -> Self {
        self.handler = handler;
        self
    }

    /// Sets the supplier of a block's allocation traceback.
    #[must_use]
    pub const fn with_traceback(mut self, traceback: Traceback) -> Self {
        self.traceback = Some(traceback);
        self
    }

    /// Sets who keeps the host's stacks, used when backtraces are on.
    #[must_use]
    pub const fn with_stacks(mut self, stacks: &'static HostStacks) -> Self {
        self.stacks = Some(stacks);
        self
    }

    /// Follows the rules of free-threaded hosts: fills of obj blocks leave the first fields alone, and `realloc` does
    /// not erase the old block.
    #[must_use]
    pub const fn with_debug_offset(mut self, offset: DebugOffset) -> Self {
        self.debug_offset = Some(offset);
        self
    }

    /// A violation of `domain` met in `call`, about the block of `block`.
    pub(crate) fn violation(
        &self,
        kind: ViolationKind,
        call: Call,
        domain: Domain,
        block: Option<BlockFacts>,
    ) -> Violation {
        Violation {
            kind,
            call,
            domain,
            block,
            allocated: None,
            freed: None,
            caller: None,
            traceback: self.traceback,
            thread_message: self.thread_message,
        }
    }

    /// Hands a violation to the handler.
    pub(crate) fn tell(&self, violation: &Violation) {
        (self.handler)(violation);
    }
}

#[cfg(feature = "std")]
impl Host {
    /// Whether both supply the same functions.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.addresses() == other.addresses()
    }

    fn addresses(&self) -> [usize; 6] {
        [
            self.thread_check.map_or(0, |f| f as usize),
            self.thread_message.as_ptr().addr(),
            self.handler as usize,
            self.traceback.map_or(0, |f| f as usize),
            self.stacks.map_or(0, |stacks| core::ptr::from_ref(stacks).addr()),
            self.debug_offset.map_or(0, |f| f as usize),
        ]
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("thread_check", &self.thread_check.is_some())
            .field("traceback", &self.traceback.is_some())
            .field("stacks", &self.stacks.is_some())
            .field("debug_offset", &self.debug_offset.is_some())
            .finish_non_exhaustive()
    }
}
