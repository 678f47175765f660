//! Owns `GuardSampler`, the layer of guard pages: around any allocator in production, or around the debug hooks.
//! Leaves guarded blocks to `pool.rs`, whose turn it is to `countdown.rs`, and faults to `fault.rs`.

use core::fmt;
use core::num::NonZeroU32;
use core::ptr::{self, NonNull};

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use crate::guard::countdown::Countdowns;
use crate::guard::fault;
use crate::guard::pool::{self, Guarded};
use crate::host::Host;
use crate::options::{ConfigureError, Options};
use crate::process;
use crate::report::violation::{Call, ViolationKind};
use crate::sites::native::Outermost;
use crate::sites::site::{Depth, Site};
use malloc_api::Domain;
use malloc_api::Malloc;

/// Puts about one block in N between guard pages, and hands every other call to the allocator `A` as it is.
///
/// A guarded block is alone on its pages: an access past its end or before its start, or after its free, faults at the
/// instruction, and is reported with the block and, with `backtrace`, where it was allocated and freed. So are a second
/// free of it, and a free of an address inside it. Nothing is seen or changed of all other blocks: they have
/// no header and are not filled. A program that runs on many machines thus finds in time what no single run finds.
///
/// A call costs a counter and a comparison. Guarded blocks take memory of their own, each in a slot of 16 KiB and a page of
/// address space; a larger block is not guarded. The first sampler of a process makes the slots, by default 2^20 / N of them,
/// but from 4,096 to 131,072. Blocks that live long do not use them up: when more than 8,192 are live, old ones keep their
/// slots without guard pages, and from half of the slots on fewer and fewer blocks get one, which
/// [`GuardCoverage`](crate::GuardCoverage) tells, and a line on stderr once.
///
/// What follows a violation is the [`Host`]'s; if its handler returns, the faulty call had no effect. The host's rule for
/// threads is applied only [where asked for](Self::with_thread_rule).
///
/// The idea and the name of the sampling are GWP-ASan's (Serebryany et al., "GWP-ASan: Sampling-Based Detection of
/// Memory-Safety Bugs in Production", 2024).
///
/// # Examples
///
/// ```
/// use malloc_api::{LibcMalloc, Malloc};
/// use memdebug::{Domain, GuardSampler};
///
/// static SAMPLER: GuardSampler<LibcMalloc> = GuardSampler::new(LibcMalloc, Domain::Raw);
///
/// SAMPLER.configure(&"guard=1/5000,backtrace=8".parse()?)?;
/// let block = SAMPLER.malloc(100).expect("out of memory");
/// // SAFETY: live, and not used again.
/// unsafe { SAMPLER.free(Some(block)) };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct GuardSampler<A, const THREAD_GROUPS: usize = 64> {
    inner: A,
    domain: Domain,
    host: Host,
    /// The first address of the guard pages, and their bytes: 0 before they are switched on. They are here since a static
    /// of another crate costs a load more.
    start: AtomicUsize,
    bytes: AtomicUsize,
    countdowns: Countdowns<THREAD_GROUPS>,
    /// Whether the host's rule for threads holds for guarded blocks.
    has_thread_rule: bool,
    setting: OnceLock<Setting>,
}

/// What was switched on.
#[derive(Clone, Copy, Debug)]
struct Setting {
    /// One block in how many.
    rate: NonZeroU32,
    /// Which frames a site has, if there are sites.
    depth: Option<Depth>,
    /// The number of this sampler, from 1 on.
    sampler: u32,
}

/// How many samplers were switched on.
static SAMPLERS: AtomicU32 = AtomicU32::new(0);

impl<A> GuardSampler<A> {
    /// A sampler of blocks of `domain` over `inner`, which guards nothing yet, with a host that supplies nothing.
    #[must_use]
    pub const fn new(inner: A, domain: Domain) -> Self {
        Self::with_groups(inner, domain)
    }
}

impl<A> GuardSampler<A, 1> {
    /// [`new`](GuardSampler::new) for callers that seldom overlap, as those that hold one lock: all threads share a
    /// counter, which costs five instructions less. Where calls do overlap the rate is less exact, and nothing else.
    #[must_use]
    pub const fn serialized(inner: A, domain: Domain) -> Self {
        Self::with_groups(inner, domain)
    }
}

impl<A, const THREAD_GROUPS: usize> GuardSampler<A, THREAD_GROUPS> {
    const fn with_groups(inner: A, domain: Domain) -> Self {
        Self {
            inner,
            domain,
            host: Host::new(),
            start: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            countdowns: Countdowns::new(),
            has_thread_rule: false,
            setting: OnceLock::new(),
        }
    }

    /// Sets what the surroundings supply.
    #[must_use]
    pub const fn with_host(mut self, host: Host) -> Self {
        self.host = host;
        self
    }

    /// Applies the host's rule for threads to guarded blocks too, as [`DebugHooks`](crate::DebugHooks) below apply it to
    /// all others.
    #[must_use]
    pub const fn with_thread_rule(mut self) -> Self {
        self.has_thread_rule = true;
        self
    }

    /// The allocator below.
    #[must_use]
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    /// Switches `options` on: `guard`, and `backtrace` for the guarded blocks. Without `guard` nothing is guarded.
    ///
    /// # Errors
    ///
    /// As [`configure`](Self::configure).
    pub fn with_options(self, options: &Options) -> Result<Self, ConfigureError> {
        self.configure(options)?;
        Ok(self)
    }

    /// Switches `options` on, for a sampler that is a static. Any thread may do so at any time, once; threads that
    /// allocate meanwhile follow within some thousand allocations.
    ///
    /// # Errors
    ///
    /// [`ConfigureError::NeedsHooks`] for an option other than `guard` and `backtrace`, [`ConfigureError::AlreadySet`] for a
    /// second `guard`, and what cannot be had on this system.
    pub fn configure(&self, options: &Options) -> Result<(), ConfigureError> {
        options.check()?;
        if let Some(option) = options.needs_hooks() {
            return Err(ConfigureError::NeedsHooks { option });
        }
        let Some(rate) = options.guard else {
            return Ok(());
        };
        if self.setting.get().is_some() {
            return Err(ConfigureError::AlreadySet);
        }
        fault::set_up(options.slots(rate))?;
        process::guard_forks();
        fault::number_of(&self.host).ok_or(ConfigureError::TooManyHosts)?;
        // Before the setting, by which a thread comes to have a guarded block.
        let (start, bytes) = pool::range();
        self.start.store(start, Relaxed);
        self.bytes.store(bytes, Relaxed);
        let sampler = SAMPLERS.fetch_add(1, Relaxed) + 1;
        let setting = Setting { rate, depth: Depth::of(options), sampler };
        self.setting.set(setting).map_err(|_| ConfigureError::AlreadySet)
    }

    /// Whether the pointer is among the guard pages, so that it cannot be a block of the allocator below.
    #[inline(always)]
    fn is_guarded(&self, p: NonNull<u8>) -> bool {
        p.as_ptr().addr().wrapping_sub(self.start.load(Relaxed)) < self.bytes.load(Relaxed)
    }

    /// A guarded block, if it is this one's turn and there are pages for it.
    #[inline(always)]
    fn due(&self, size: usize, zero: bool) -> Option<NonNull<u8>> {
        if self.countdowns.passes() { None } else { self.guarded(size, zero) }
    }

    #[cold]
    #[inline(never)]
    fn guarded(&self, size: usize, zero: bool) -> Option<NonNull<u8>> {
        let entry = Outermost::here();
        let setting = self.setting.get();
        if !self.countdowns.is_due(setting.map(|setting| setting.rate)) {
            return None;
        }
        let owner = (fault::number_of(&self.host)?, setting?.sampler);
        let block = pool::malloc(size, self.domain, zero, owner, self.site(entry))?;
        self.check_thread(if zero { Call::Calloc } else { Call::Malloc }, entry);
        Some(block)
    }

    /// Reports the call of a thread that must not call this domain now.
    fn check_thread(&self, call: Call, entry: Outermost) {
        let rule = self.host.thread_check.filter(|_| self.has_thread_rule);
        if self.domain != Domain::Raw && rule.is_some_and(|passes| !passes()) {
            let host = &self.host;
            let mut violation = host.violation(ViolationKind::WrongThread, call, self.domain, None);
            violation.caller = Site::of_caller(self.depth(), None, entry);
            host.tell(&violation);
        }
    }

    /// Whether `p` lies inside a block of another sampler: an allocator below got that block, and made `p` of its memory.
    fn is_nested(&self, p: NonNull<u8>) -> bool {
        let own = self.setting.get().map_or(0, |setting| setting.sampler);
        let address = p.as_ptr().addr();
        pool::at(address).is_some_and(|outer| outer.sampler != own && outer.encloses(address))
    }

    fn site(&self, entry: Outermost) -> Option<Site> {
        Site::here(self.depth()?, self.host.stacks, entry)
    }

    fn depth(&self) -> Option<Depth> {
        self.setting.get()?.depth
    }

    /// Checks that `p` is the start of a live guarded block of this domain; reports it otherwise.
    fn verify(&self, p: NonNull<u8>, call: Call, entry: Outermost) -> Option<Guarded> {
        let address = p.as_ptr().addr();
        let block = pool::at(address);
        match pool::check(address, block.as_ref(), self.domain) {
            None => block,
            Some(kind) => {
                self.tell(kind, call, p, block.as_ref(), entry);
                None
            }
        }
    }

    fn tell(
        &self,
        kind: ViolationKind,
        call: Call,
        p: NonNull<u8>,
        block: Option<&Guarded>,
        entry: Outermost,
    ) {
        let address = p.as_ptr().addr();
        let host = &self.host;
        let mut violation = fault::violation(kind, call, address, block, self.domain, host);
        let depth = self.depth();
        violation.caller = Site::of_caller(depth, depth.and(self.host.stacks), entry);
        host.tell(&violation);
    }

    /// Frees a verified block.
    fn release(&self, p: NonNull<u8>, block: &Guarded, call: Call, entry: Outermost) {
        if !pool::free(block, self.site(entry)) {
            // Another thread freed it since it was verified.
            self.tell(ViolationKind::DoubleFree, call, p, Some(block), entry);
        }
    }
}

impl<A: Malloc, const THREAD_GROUPS: usize> GuardSampler<A, THREAD_GROUPS> {
    /// `realloc` of an address among the guard pages: always to a new block.
    ///
    /// # Safety
    ///
    /// As [`Malloc::realloc`].
    #[cold]
    #[inline(never)]
    unsafe fn realloc_guarded(&self, p: NonNull<u8>, new_size: usize) -> Option<NonNull<u8>> {
        if self.is_nested(p) {
            // SAFETY: 1 and 2: the caller's; the block is `A`'s.
            return unsafe { self.inner.realloc(Some(p), new_size) };
        }
        self.check_thread(Call::Realloc, Outermost::here());
        let block = self.verify(p, Call::Realloc, Outermost::here())?;
        let fresh = self.malloc(new_size)?;
        let kept = block.size.min(new_size);
        // SAFETY: two live blocks that do not overlap, each of at least this size.
        unsafe { ptr::copy_nonoverlapping(p.as_ptr(), fresh.as_ptr(), kept) };
        self.release(p, &block, Call::Realloc, Outermost::here());
        Some(fresh)
    }

    /// `free` of an address among the guard pages.
    ///
    /// # Safety
    ///
    /// As [`Malloc::free`].
    #[cold]
    #[inline(never)]
    unsafe fn free_guarded(&self, p: NonNull<u8>) {
        if self.is_nested(p) {
            // SAFETY: 1 and 2: the caller's; the block is `A`'s.
            return unsafe { self.inner.free(Some(p)) };
        }
        self.check_thread(Call::Free, Outermost::here());
        if let Some(block) = self.verify(p, Call::Free, Outermost::here()) {
            self.release(p, &block, Call::Free, Outermost::here());
        }
    }
}

// SAFETY: 1-3: a block is one of `A`'s, which keeps them, or a guarded one: 16-aligned, alone on its pages, clean or zero,
// and resized by a copy. The two are told apart by their address: guard pages are mapped for that alone. 4: no method
// unwinds unless the host's handler does on a violation, after which no promise is owed; guarded blocks are mapped, all
// others `A`'s. 5: the sampler shares what `A` shares.
unsafe impl<A: Malloc, const THREAD_GROUPS: usize> Malloc for GuardSampler<A, THREAD_GROUPS> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        // One call of `A`, so that a line of the program is one site whether its turn came or not.
        match self.due(size, false) {
            None => self.inner.malloc(size),
            guarded => guarded,
        }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = nelem.saturating_mul(elsize);
        match self.due(size, true) {
            None => self.inner.calloc(nelem, elsize),
            guarded => guarded,
        }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        match ptr {
            None => self.malloc(new_size),
            // SAFETY: 1 and 2: the caller's.
            Some(p) if self.is_guarded(p) => unsafe { self.realloc_guarded(p, new_size) },
            // SAFETY: 1 and 2: the caller's; outside of the guard pages every block is `A`'s.
            Some(_) => unsafe { self.inner.realloc(ptr, new_size) },
        }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        match ptr {
            // SAFETY: 1 and 2: the caller's.
            Some(p) if self.is_guarded(p) => unsafe { self.free_guarded(p) },
            // SAFETY: 1 and 2: the caller's; outside of the guard pages every block is `A`'s.
            _ => unsafe { self.inner.free(ptr) },
        }
    }
}

impl<A: fmt::Debug, const THREAD_GROUPS: usize> fmt::Debug for GuardSampler<A, THREAD_GROUPS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardSampler")
            .field("inner", &self.inner)
            .field("domain", &self.domain)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}
