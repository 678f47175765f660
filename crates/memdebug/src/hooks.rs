//! Owns `DebugHooks`: its options, and which way each of the four calls takes.
//! Leaves blocks with a header to `calls.rs`, and the options beyond CPython's to `checks/checked.rs`.

use core::fmt;
use core::ptr::NonNull;

use malloc_api::{Domain, Malloc};

use crate::calls::{Blocks, CHECKED, FULL_ERASE, SERIAL, SITES};
use crate::checks::checked::{Checked, State};
use crate::host::Host;
use crate::options::{ConfigureError, Options};
use crate::report::dump::BlockDump;
use crate::report::violation::{BlockFacts, Call, ViolationKind};
use crate::sites::native::Outermost;
use crate::sites::site::Site;
use crate::thread::ThreadGate;

/// CPython's debug hooks around the allocator `A`: each block gets a size, a domain letter and guards, is filled when
/// handed out and when freed, and is verified when it comes back.
///
/// A block costs 24 bytes more than asked for, 32 with serial numbers, and 8 more where it says itself where it was allocated. Requests above `isize::MAX` less these bytes
/// give `None` without a call of `A`. Content: CLEANBYTE after `malloc` and in what `realloc` adds, zero after `calloc`,
/// DEADBYTE after `free`; `realloc` fills the old header, guard and at least 64 bytes at each end with DEADBYTE before
/// the block moves. The layout, the fills and the reports are CPython's byte for byte (`Objects/obmalloc.c`).
///
/// A violation goes to the [`Host`]'s handler, which by default writes a report and aborts. If the handler returns, the
/// call has no effect: the block is not freed, and `realloc` gives `None`. Options beyond CPython's are in [`Options`];
/// guard pages are a layer of their own, [`GuardSampler`](crate::GuardSampler), which goes around the hooks.
///
/// The hooks never find by themselves what no check looks at: a write into a live neighbour, a read of freed memory, a
/// write to freed memory without the quarantine.
///
/// # Examples
///
/// ```
/// use malloc_api::{LibcMalloc, Malloc};
/// use memdebug::{DebugHooks, Domain};
///
/// static HOOKS: DebugHooks<LibcMalloc> = DebugHooks::new(LibcMalloc, Domain::Mem);
///
/// let block = HOOKS.malloc(5).unwrap();
/// // SAFETY: five bytes, all of them written by the hooks.
/// assert_eq!(unsafe { block.cast::<[u8; 5]>().read() }, [0xCD; 5]);
/// // SAFETY: live, and not used again.
/// unsafe { HOOKS.free(Some(block)) };
/// ```
pub struct DebugHooks<A: Malloc> {
    blocks: Blocks<A>,
    /// Lets calls take the plain way: shut while an option is on.
    gate: ThreadGate,
    checked: Checked,
}

impl<A: Malloc> DebugHooks<A> {
    /// Plain hooks of `domain` around `inner`, with a host that supplies nothing.
    #[must_use]
    pub const fn new(inner: A, domain: Domain) -> Self {
        Self {
            blocks: Blocks::new(inner, domain),
            gate: ThreadGate::open(),
            checked: Checked::new(),
        }
    }

    /// Sets what the surroundings supply; options that are on stay on.
    #[must_use]
    pub const fn with_host(mut self, host: Host) -> Self {
        let is_plain = self.blocks.set_host(host);
        let gate = match (self.blocks.domain, host.thread_check) {
            (Domain::Raw, _) | (_, None) => ThreadGate::open(),
            (Domain::Mem | Domain::Obj, Some(check)) => ThreadGate::new(check, host.thread_word),
        };
        self.gate = if is_plain { gate } else { gate.into_shut() };
        self
    }

    /// The allocator below.
    #[must_use]
    pub const fn inner(&self) -> &A {
        &self.blocks.inner
    }

    /// The domain whose letter the blocks carry.
    #[must_use]
    pub const fn domain(&self) -> Domain {
        self.blocks.domain
    }

    /// How many allocations and resizes were numbered: 0 unless serial numbers are on.
    #[must_use]
    pub fn serial(&self) -> usize {
        self.blocks.serial()
    }

    /// Switches `options` on.
    ///
    /// # Errors
    ///
    /// What cannot be had on this system, what is out of range, or was switched on before.
    pub fn with_options(self, options: &Options) -> Result<Self, ConfigureError> {
        // SAFETY: 1: the hooks are still the caller's alone, and blocks of them would borrow them.
        unsafe { self.configure(options) }?;
        Ok(self)
    }

    /// Switches `options` on, for hooks that are a static.
    ///
    /// # Errors
    ///
    /// As [`with_options`](Self::with_options).
    ///
    /// # Safety
    ///
    /// 1. No block of these hooks is live, and no other thread uses them during the call: options change the layout.
    pub unsafe fn configure(&self, options: &Options) -> Result<(), ConfigureError> {
        options.check()?;
        if options.guard.is_some() {
            return Err(ConfigureError::NeedsSampler);
        }
        let mut flags = 0;
        if options.serial {
            flags |= SERIAL;
        }
        if options.extra().site {
            flags |= SITES;
        }
        if options.full_erase {
            flags |= FULL_ERASE;
        }
        if self.checked.configure(options, self.blocks.domain)? {
            flags |= CHECKED;
        }
        self.blocks.add_flags(flags);
        if self.blocks.flags() != 0 {
            self.gate.shut();
        }
        Ok(())
    }

    /// Describes the block at `ptr` as it is now, in CPython's words. Any pointer may be asked for.
    #[must_use]
    pub fn dump(&self, ptr: Option<NonNull<u8>>) -> BlockDump {
        let address = ptr.map_or(0, |p| p.as_ptr().addr());
        let facts = BlockFacts::read(address, self.blocks.has_serial());
        BlockDump::new(facts, self.blocks.host.traceback)
    }

    /// Checks the thread of a call that may not take the plain way at once, in full.
    fn check_thread(&self, call: Call, entry: Outermost) {
        if !self.gate.ask(self.blocks.flags() != 0) {
            self.wrong_thread(call, entry);
        }
    }

    #[cold]
    #[inline(never)]
    fn wrong_thread(&self, call: Call, entry: Outermost) {
        let mut violation = self.blocks.violation(ViolationKind::WrongThread, call, None);
        let depth = self.checked.state().and_then(State::depth);
        violation.caller = Site::of_caller(depth, None, entry);
        self.blocks.host.tell(&violation);
    }

    /// Whether a call may take the plain way: at once, or when its thread has been asked for.
    ///
    /// The ways themselves are their callers' code, so that each finds a violation equally deep in the stack; only those with
    /// checks, which are told how deep, are functions.
    #[inline(always)]
    fn is_plain(&self, call: Call) -> bool {
        self.gate.passes() || self.is_plain_after_all(call)
    }

    #[cold]
    #[inline(never)]
    fn is_plain_after_all(&self, call: Call) -> bool {
        self.check_thread(call, Outermost::here());
        self.blocks.flags() == 0
    }

    /// An allocation with checks.
    #[cold]
    #[inline(never)]
    fn make_checked(&self, checks: &State, size: usize, zero: bool) -> Option<NonNull<u8>> {
        checks.allocate(&self.blocks, size, zero, Outermost::here())
    }

    /// `realloc` of a block with checks.
    ///
    /// # Safety
    ///
    /// As [`Malloc::realloc`].
    #[cold]
    #[inline(never)]
    unsafe fn realloc_checked(
        &self,
        checks: &State,
        p: NonNull<u8>,
        size: usize,
    ) -> Option<NonNull<u8>> {
        let entry = Outermost::here();
        // SAFETY: 1 and 2: the caller's.
        unsafe { checks.realloc(&self.blocks, p, size, entry) }
    }

    /// `free` of a block with checks.
    ///
    /// # Safety
    ///
    /// As [`Malloc::free`].
    #[cold]
    #[inline(never)]
    unsafe fn free_checked(&self, checks: &State, p: NonNull<u8>) {
        let entry = Outermost::here();
        // SAFETY: 1 and 2: the caller's.
        unsafe { checks.free(&self.blocks, p, entry) };
    }
}

#[cfg(feature = "std")]
impl<A: Malloc> DebugHooks<A> {
    /// Gives all blocks in the quarantine back to the allocator, each verified first; gives how many there were.
    ///
    /// Where the allocator below needs a lock that its callers hold, so does this. A drop of the hooks does it too.
    pub fn release_quarantine(&self) -> usize {
        self.checked.state().map_or(0, |checks| checks.release_quarantine(&self.blocks))
    }

    /// Bytes and blocks that the quarantine holds.
    #[must_use]
    pub fn quarantined(&self) -> (usize, usize) {
        self.checked.state().map_or((0, 0), State::quarantined)
    }

    /// Verifies all blocks that can be found: those in the quarantine, and with a registry the live ones of these hooks.
    /// Each violation goes to the handler; gives how many there were.
    ///
    /// A block that another thread is writing past the end of right now may be missed; no intact block is reported.
    pub fn check_all(&self) -> usize {
        self.checked.state().map_or(0, |checks| checks.check_all(&self.blocks))
    }

    /// Verifies the blocks in the quarantine when the process exits, too. For up to 64 hooks of a process; further ones
    /// verify blocks as these leave the quarantine.
    pub fn verify_at_exit(&'static self)
    where
        A: Sync,
    {
        crate::process::verify_at_exit(self);
    }
}

#[cfg(feature = "std")]
impl<A: Malloc + Sync> crate::process::Verify for DebugHooks<A> {
    fn verify_held(&self) {
        if let Some(checks) = self.checked.state() {
            checks.verify_held(&self.blocks);
        }
    }

    fn quarantine(&self) -> Option<&crate::checks::quarantine::Quarantine> {
        self.checked.state()?.quarantine()
    }
}

/// What the quarantine holds is verified and goes back to the allocator.
impl<A: Malloc> Drop for DebugHooks<A> {
    fn drop(&mut self) {
        if let Some(checks) = self.checked.state() {
            checks.close(&self.blocks);
        }
    }
}

// SAFETY: a block of the hooks is the data part of a block of `A`, which keeps promises 1-3 for it (16 bytes of header keep
// its alignment, `Blocks::realloc` keeps content and restores a block whose resize failed); 4: no method unwinds unless the
// host's handler does on a violation, after which no promise is owed; no method allocates but from `A`.
unsafe impl<A: Malloc> Malloc for DebugHooks<A> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        if self.is_plain(Call::Malloc) {
            return self.blocks.malloc_plain(size);
        }
        match self.checked.state() {
            Some(checks) => self.make_checked(checks, size, false),
            None => self.blocks.malloc(size),
        }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = nelem.checked_mul(elsize);
        if self.is_plain(Call::Calloc) {
            return self.blocks.calloc::<true>(size?);
        }
        match self.checked.state() {
            Some(checks) => self.make_checked(checks, size?, true),
            None => self.blocks.calloc::<false>(size?),
        }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // CPython names the malloc it falls through to only after the check of the call itself.
        if self.is_plain(Call::Realloc) {
            return match ptr {
                None => self.blocks.malloc_plain(new_size),
                // SAFETY: 1 and 2: the caller's.
                Some(p) => unsafe { self.blocks.realloc::<true>(p, new_size) },
            };
        }
        match (ptr, self.checked.state()) {
            (None, Some(checks)) => self.make_checked(checks, new_size, false),
            (None, None) => self.blocks.malloc(new_size),
            // SAFETY: 1 and 2: the caller's.
            (Some(p), Some(checks)) => unsafe { self.realloc_checked(checks, p, new_size) },
            // SAFETY: 1 and 2: the caller's.
            (Some(p), None) => unsafe { self.blocks.realloc::<false>(p, new_size) },
        }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let is_plain = self.is_plain(Call::Free);
        let Some(p) = ptr else { return };
        if is_plain {
            // SAFETY: 1 and 2: the caller's.
            return unsafe { self.blocks.free_plain(p) };
        }
        match self.checked.state() {
            // SAFETY: 1 and 2: the caller's.
            Some(checks) => unsafe { self.free_checked(checks, p) },
            // SAFETY: 1 and 2: the caller's.
            None => unsafe { self.blocks.free(p) },
        }
    }
}

impl<A: Malloc + fmt::Debug> fmt::Debug for DebugHooks<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugHooks")
            .field("inner", &self.blocks.inner)
            .field("domain", &self.blocks.domain)
            .field("host", &self.blocks.host)
            .finish_non_exhaustive()
    }
}
