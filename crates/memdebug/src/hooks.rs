//! Owns `DebugHooks`: its parts, its options, and which path each of the four calls takes.
//! Leaves the path without options to `plain.rs`, serial numbers and full erasing to `numbered.rs`, every other option to
//! `checked.rs`, and the naming of a violation to `verdict.rs`.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

use malloc_api::{Domain, Malloc, annotate};

use crate::block::{self, HEADER_BYTES};
use crate::checks::checked::{Checked, is_guarded};
use crate::host::Host;
use crate::options::Options;
use crate::os::load;
use crate::report::dump::BlockDump;
use crate::report::facts::BlockFacts;
use crate::report::verdict;
use crate::report::violation::{Call, Violation, ViolationKind};
use crate::sites::capture::Outermost;
use crate::thread::ThreadGate;

/// Serial numbers are on.
pub(crate) const SERIAL: u8 = 1;
/// Every byte that leaves a block is filled dead.
pub(crate) const FULL_ERASE: u8 = 2;
/// The host's `debug_offset` rules.
pub(crate) const FREE_THREADED: u8 = 4;
/// An option of `checked.rs` is on.
pub(crate) const CHECKED: u8 = 8;
/// Guard pages are on, and nothing else: blocks without them take the plain path.
pub(crate) const SAMPLED: u8 = 16;

/// CPython's debug hooks around the allocator `A`: each block gets a size, a domain letter and guards, is filled when
/// handed out and when freed, and is verified when it comes back.
///
/// A block costs 24 bytes more than asked for, 32 with serial numbers. Requests above `isize::MAX` less these bytes
/// give `None` without a call of `A`. Content: CLEANBYTE after `malloc` and in what `realloc` adds, zero after `calloc`,
/// DEADBYTE after `free`; `realloc` fills the old header, guard and at least 64 bytes at each end with DEADBYTE before
/// the block moves. The layout, the fills and the reports are CPython's byte for byte (`Objects/obmalloc.c`).
///
/// A violation goes to the [`Host`]'s handler, which by default writes a report and aborts. If the handler returns, the
/// call has no effect: the block is not freed, and `realloc` gives `None`. Options beyond CPython's are in [`Options`].
///
/// The hooks never find by themselves what no check looks at: a write into a live neighbour, a read of freed memory, a
/// write to freed memory without the quarantine.
///
/// # Examples
///
/// ```
/// use malloc_api::{LibcMalloc, Malloc};
/// use memdebug::{Domain, DebugHooks};
///
/// static HOOKS: DebugHooks<LibcMalloc> = DebugHooks::new(LibcMalloc, Domain::Mem);
///
/// let block = HOOKS.malloc(5).unwrap();
/// // SAFETY: five bytes, all of them written by the hooks.
/// assert_eq!(unsafe { block.cast::<[u8; 5]>().read() }, [0xCD; 5]);
/// // SAFETY: live, and not used again.
/// unsafe { HOOKS.free(Some(block)) };
/// ```
pub struct DebugHooks<A> {
    pub(crate) inner: A,
    pub(crate) domain: Domain,
    /// The second header word of an intact block.
    pub(crate) id_word: u64,
    /// Lets calls take the plain path: shut while an option is on.
    gate: ThreadGate,
    pub(crate) host: Host,
    flags: AtomicU8,
    serial: AtomicUsize,
    pub(crate) checked: Checked,
}

impl<A> DebugHooks<A> {
    /// Plain hooks of `domain` around `inner`, with a host that supplies nothing.
    #[must_use]
    pub const fn new(inner: A, domain: Domain) -> Self {
        Self {
            inner,
            domain,
            id_word: block::id_word(domain),
            gate: ThreadGate::open(),
            host: Host::new(),
            flags: AtomicU8::new(0),
            serial: AtomicUsize::new(0),
            checked: Checked::new(),
        }
    }

    /// Sets what the surroundings supply.
    #[must_use]
    pub const fn with_host(mut self, host: Host) -> Self {
        let gate = match (self.domain, host.thread_check) {
            (Domain::Raw, _) | (_, None) => ThreadGate::open(),
            (Domain::Mem | Domain::Obj, Some(check)) => ThreadGate::new(check, host.thread_word),
        };
        let free_threaded = host.debug_offset.is_some();
        self.gate = if free_threaded { gate.into_shut() } else { gate };
        self.flags = AtomicU8::new(if free_threaded { FREE_THREADED } else { 0 });
        self.host = host;
        self
    }

    /// The allocator below.
    #[must_use]
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    /// The domain whose letter the blocks carry.
    #[must_use]
    pub const fn domain(&self) -> Domain {
        self.domain
    }

    /// How many allocations and resizes were numbered: 0 unless serial numbers are on.
    #[must_use]
    pub fn serial(&self) -> usize {
        self.serial.load(Relaxed)
    }

    #[inline]
    pub(crate) fn flags(&self) -> u8 {
        self.flags.load(Relaxed)
    }

    #[inline]
    pub(crate) fn has_serial(&self) -> bool {
        self.flags() & SERIAL != 0
    }

    /// Whether a new block is as without options: no number, and all of it filled.
    #[cfg(feature = "std")]
    #[inline]
    pub(crate) fn makes_plain_blocks(&self) -> bool {
        self.flags() & (SERIAL | FREE_THREADED) == 0
    }

    /// The next serial number, where they are on.
    pub(crate) fn next_serial(&self) -> Option<u64> {
        self.has_serial().then(|| self.serial.fetch_add(1, Relaxed) as u64 + 1)
    }

    /// Data bytes at the front of a block that fills leave alone.
    pub(crate) fn unfilled(&self, base: Option<NonNull<u8>>, size: usize) -> usize {
        match self.host.debug_offset {
            Some(offset) if self.domain == Domain::Obj => {
                offset(base).saturating_sub(HEADER_BYTES).min(size)
            }
            _ => 0,
        }
    }

    /// Whether a call may take the plain path: no option is on, and the thread is known to be allowed.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.gate.passes()
    }

    /// Checks the thread of a call that may not take the plain path at once, in full.
    fn check_thread(&self, call: Call) {
        if !self.gate.ask(self.flags() != 0) {
            self.wrong_thread(call);
        }
    }

    #[cold]
    #[inline(never)]
    fn wrong_thread(&self, call: Call) {
        let kind = ViolationKind::WrongThread;
        (self.host.handler)(&Violation::new(kind, call, self.domain, None, &self.host));
    }

    /// Reports a block that failed its check.
    #[cold]
    #[inline(never)]
    pub(crate) fn bad_block(&self, p: NonNull<u8>, call: Call) {
        let violation = verdict::on_block(p, call, self.domain, self.has_serial(), &self.host);
        (self.host.handler)(&violation);
    }

    /// Describes the block at `ptr` as it is now, in CPython's words. Any pointer may be asked for.
    #[must_use]
    pub fn dump(&self, ptr: Option<NonNull<u8>>) -> BlockDump {
        let address = ptr.map_or(0, |p| p.as_ptr().addr());
        BlockDump::new(BlockFacts::read(address, self.has_serial()), self.host.traceback)
    }

    /// The size of the block at `p` if its id, its pads and its guard are intact.
    ///
    /// Nothing is believed before it is checked: a pointer to nowhere and a size that leads to nowhere are no intact block,
    /// where the fault handler is installed.
    #[inline(always)]
    pub(crate) fn intact_size(&self, p: NonNull<u8>) -> Option<usize> {
        let size = annotate::unreported(|| load::intact_size(p.as_ptr(), self.id_word));
        (size != usize::MAX).then_some(size)
    }

    /// [`intact_size`](Self::intact_size), with a report of a block that is not intact.
    pub(crate) fn verified_size(&self, p: NonNull<u8>, call: Call) -> Option<usize> {
        let size = self.intact_size(p);
        if size.is_none() {
            self.bad_block(p, call);
        }
        size
    }
}

impl<A: Malloc> DebugHooks<A> {
    /// Switches `options` on.
    ///
    /// # Errors
    ///
    /// What cannot be had on this system, or was switched on before.
    pub fn with_options(self, options: &Options) -> Result<Self, crate::ConfigureError> {
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
    pub unsafe fn configure(&self, options: &Options) -> Result<(), crate::ConfigureError> {
        let mut flags = self.flags();
        if options.serial {
            flags |= SERIAL;
        }
        if options.full_erase {
            flags |= FULL_ERASE;
        }
        if self.checked.configure(options, self.domain, &self.host)? {
            flags |= if flags == 0 && options.is_guard_alone() { SAMPLED } else { CHECKED };
        }
        self.flags.store(flags, Relaxed);
        if flags != 0 {
            self.gate.shut();
        }
        Ok(())
    }

    /// Whether a block is freed and resized on the plain path with these flags.
    #[inline(always)]
    fn is_plain_block(&self, p: NonNull<u8>, flags: u8) -> bool {
        flags == 0 || flags == SAMPLED && !is_guarded(p)
    }

    /// `malloc` when it cannot take the plain path at once.
    #[cold]
    #[inline(never)]
    fn malloc_unsure(&self, size: usize) -> Option<NonNull<u8>> {
        self.check_thread(Call::Malloc);
        match self.flags() {
            0 => self.malloc_plain(size),
            SAMPLED => self.malloc_guarded(size).or_else(|| self.malloc_plain(size)),
            flags if flags & CHECKED != 0 => self.malloc_checked(size, Outermost::here()),
            _ => self.malloc_numbered(size),
        }
    }

    /// `calloc` when it cannot take the plain path at once.
    #[cold]
    #[inline(never)]
    fn calloc_unsure(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.check_thread(Call::Calloc);
        let size = nelem.checked_mul(elsize)?;
        match self.flags() {
            0 => self.calloc_plain(size),
            flags if flags & (CHECKED | SAMPLED) != 0 => {
                self.calloc_checked(size, Outermost::here())
            }
            _ => self.calloc_bytes(size),
        }
    }

    /// `realloc` when it cannot take the plain path at once.
    ///
    /// # Safety
    ///
    /// As [`Malloc::realloc`].
    #[cold]
    #[inline(never)]
    unsafe fn realloc_unsure(&self, ptr: Option<NonNull<u8>>, size: usize) -> Option<NonNull<u8>> {
        // CPython names the malloc it falls through to only after the check of the call itself.
        self.check_thread(Call::Realloc);
        let flags = self.flags();
        match ptr {
            // SAFETY: 1 and 2: the caller's.
            Some(p) if self.is_plain_block(p, flags) => unsafe { self.realloc_plain(p, size) },
            None if flags == 0 => self.malloc_plain(size),
            None if flags & (CHECKED | SAMPLED) != 0 => {
                self.malloc_checked(size, Outermost::here())
            }
            None => self.malloc_numbered(size),
            // SAFETY: 1 and 2: the caller's.
            Some(p) if flags & (CHECKED | SAMPLED) != 0 => unsafe {
                self.realloc_checked(p, size, Outermost::here())
            },
            // SAFETY: 1 and 2: the caller's.
            Some(p) => unsafe { self.realloc_numbered(p, size) },
        }
    }

    /// `free` when it cannot take the plain path at once.
    ///
    /// # Safety
    ///
    /// As [`Malloc::free`].
    #[cold]
    #[inline(never)]
    unsafe fn free_unsure(&self, ptr: Option<NonNull<u8>>) {
        self.check_thread(Call::Free);
        let Some(p) = ptr else {
            return;
        };
        match self.flags() {
            // SAFETY: 1 and 2: the caller's.
            flags if self.is_plain_block(p, flags) => unsafe { self.free_plain(p) },
            // SAFETY: 1 and 2: the caller's.
            flags if flags & (CHECKED | SAMPLED) != 0 => unsafe {
                self.free_checked(p, Outermost::here())
            },
            _ => {
                if let Some(size) = self.verified_size(p, Call::Free) {
                    // SAFETY: 1: the caller's duties 1 and 2; the block is intact.
                    unsafe { self.free_numbered(p, size) };
                }
            }
        }
    }
}

// SAFETY: a block of the hooks is the data part of a block of `A`, which keeps promises 1-3 for it (16 bytes of header keep
// its alignment, `resize` keeps content and restores a block whose resize failed); 4: no method unwinds unless the
// host's handler does on a violation, after which no promise is owed; no method allocates but from `A`.
unsafe impl<A: Malloc> Malloc for DebugHooks<A> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        if self.is_plain() { self.malloc_plain(size) } else { self.malloc_unsure(size) }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        if !self.is_plain() {
            return self.calloc_unsure(nelem, elsize);
        }
        self.calloc_plain(nelem.checked_mul(elsize)?)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        if !self.is_plain() {
            // SAFETY: 1 and 2: the caller's.
            return unsafe { self.realloc_unsure(ptr, new_size) };
        }
        match ptr {
            None => self.malloc_plain(new_size),
            // SAFETY: 1 and 2: the caller's.
            Some(p) => unsafe { self.realloc_plain(p, new_size) },
        }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        if !self.is_plain() {
            // SAFETY: 1 and 2: the caller's.
            return unsafe { self.free_unsure(ptr) };
        }
        if let Some(p) = ptr {
            // SAFETY: 1 and 2: the caller's.
            unsafe { self.free_plain(p) };
        }
    }
}

impl<A: fmt::Debug> fmt::Debug for DebugHooks<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugHooks")
            .field("inner", &self.inner)
            .field("domain", &self.domain)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}
