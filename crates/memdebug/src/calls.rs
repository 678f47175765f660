//! Owns malloc, calloc, realloc and free of blocks with a header: one text, of which `PLAIN` is the case without serial
//! numbers, full erasing and the rules of free-threaded hosts.
//!
//! Most calls of most programs are plain, so every instruction of them counts: small blocks are filled by stores inline,
//! and larger ones leave for functions of their own, so that the rest saves no registers.
//! Leaves which case a call is to `hooks.rs`, and the naming of a violation to `verdict.rs`.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

use malloc_api::{Domain, Malloc, annotate};

use crate::block::{self, Erased, Extra, HEADER_BYTES, base_of, max_request, overhead};
use crate::host::Host;
use crate::os::machine;
use crate::pattern::{CLEANBYTE, DEADBYTE, INLINE_BYTES, fill_at_least_8};
use crate::report::verdict;
use crate::report::violation::{BlockFacts, Call, Violation, ViolationKind};
use crate::sites::native::Outermost;
use crate::sites::site::Site;

/// Serial numbers are on.
pub(crate) const SERIAL: u8 = 1;
/// Every byte that leaves a block is filled dead.
pub(crate) const FULL_ERASE: u8 = 2;
/// The host's `debug_offset` rules.
pub(crate) const FREE_THREADED: u8 = 4;
/// An option of `checked.rs` is on.
pub(crate) const CHECKED: u8 = 8;
/// Each block has a site, which `checked.rs` writes.
pub(crate) const SITES: u8 = 16;

/// The blocks of one allocator in one domain, each with header and guard, by the rules that `flags` says.
pub(crate) struct Blocks<A> {
    pub(crate) inner: A,
    pub(crate) domain: Domain,
    /// The second header word of an intact block.
    id_word: u64,
    pub(crate) host: Host,
    flags: AtomicU8,
    serial: AtomicUsize,
}

impl<A> Blocks<A> {
    pub(crate) const fn new(inner: A, domain: Domain) -> Self {
        Self {
            inner,
            domain,
            id_word: block::id_word(domain),
            host: Host::new(),
            flags: AtomicU8::new(0),
            serial: AtomicUsize::new(0),
        }
    }

    /// Sets what the surroundings supply; `true` if no flag is on.
    pub(crate) const fn set_host(&mut self, host: Host) -> bool {
        // SAFETY: an initialized byte, which `&mut self` keeps others from writing.
        let before = unsafe { self.flags.as_ptr().read() };
        let free_threaded = if host.debug_offset.is_some() { FREE_THREADED } else { 0 };
        let flags = before & !FREE_THREADED | free_threaded;
        self.flags = AtomicU8::new(flags);
        self.host = host;
        flags == 0
    }

    #[inline]
    pub(crate) fn flags(&self) -> u8 {
        self.flags.load(Relaxed)
    }

    /// Adds flags, while no block is live.
    pub(crate) fn add_flags(&self, flags: u8) {
        self.flags.fetch_or(flags, Relaxed);
    }

    /// How many allocations and resizes were numbered.
    pub(crate) fn serial(&self) -> usize {
        self.serial.load(Relaxed)
    }

    #[inline]
    pub(crate) fn has_serial(&self) -> bool {
        self.flags() & SERIAL != 0
    }

    /// What a block has after its guard.
    #[inline]
    pub(crate) fn extra(&self) -> Extra {
        let flags = self.flags();
        Extra { serial: flags & SERIAL != 0, site: flags & SITES != 0 }
    }

    /// Whether a new block is as in the plain case: no number, no site, and all of it filled.
    #[cfg(feature = "std")]
    #[inline]
    pub(crate) fn makes_plain_blocks(&self) -> bool {
        self.flags() & (SERIAL | FREE_THREADED | SITES) == 0
    }

    /// The next serial number, where they are on.
    fn next_serial(&self) -> Option<u64> {
        self.has_serial().then(|| self.serial.fetch_add(1, Relaxed) as u64 + 1)
    }

    /// Data bytes at the front of a block that fills leave alone.
    fn unfilled(&self, base: Option<NonNull<u8>>, size: usize) -> usize {
        match self.host.debug_offset {
            Some(offset) if self.domain == Domain::Obj => {
                offset(base).saturating_sub(HEADER_BYTES).min(size)
            }
            _ => 0,
        }
    }

    /// The size of the block at `p` if its id, its pads and its guard are intact.
    ///
    /// Nothing is believed before it is checked. Where the fault handler is installed, a pointer to nowhere and a size that
    /// leads to nowhere are no intact block.
    #[inline(always)]
    pub(crate) fn intact_size(&self, p: NonNull<u8>) -> Option<usize> {
        let size = annotate::unreported(|| machine::intact_size(p.as_ptr(), self.id_word));
        (size != usize::MAX).then_some(size)
    }

    /// What stands at and around `p`.
    pub(crate) fn facts(&self, p: NonNull<u8>) -> BlockFacts {
        BlockFacts::read(p.as_ptr().addr(), self.has_serial())
    }

    /// A violation of this domain.
    pub(crate) fn violation(
        &self,
        kind: ViolationKind,
        call: Call,
        facts: Option<BlockFacts>,
    ) -> Violation {
        self.host.violation(kind, call, self.domain, facts)
    }

    /// What is wrong with the block at `p`, which failed its check.
    pub(crate) fn verdict(&self, p: NonNull<u8>, call: Call) -> Violation {
        let facts = self.facts(p);
        self.violation(verdict::kind(&facts, self.domain), call, Some(facts))
    }

    /// Reports a block that failed its check.
    #[cold]
    #[inline(never)]
    fn bad_block(&self, p: NonNull<u8>, call: Call) {
        let mut violation = self.verdict(p, call);
        violation.caller = Site::of_caller(None, None, Outermost::here());
        self.host.tell(&violation);
    }
}

impl<A: Malloc> Blocks<A> {
    /// `malloc`, and `calloc` if `zero`.
    #[inline(always)]
    fn make<const PLAIN: bool>(&self, size: usize, zero: bool) -> Option<NonNull<u8>> {
        let extra = if PLAIN { Extra::NONE } else { self.extra() };
        if size > max_request(extra) {
            return None;
        }
        let bytes = size + overhead(extra);
        let base = if zero { self.inner.calloc(1, bytes) } else { self.inner.malloc(bytes) }?;
        let data = base.as_ptr().wrapping_add(HEADER_BYTES);
        // SAFETY: 1 and 2: the front of a new block, 8-aligned at least.
        unsafe { block::write_header(base.as_ptr(), size, self.id_word) };
        if !zero {
            let skip = if PLAIN { 0 } else { self.unfilled(None, size) };
            // SAFETY: 1: inside the data, and the guard, which is written below.
            unsafe { fill_at_least_8(data.wrapping_add(skip), CLEANBYTE, size - skip) };
        }
        let number = if PLAIN { None } else { self.next_serial() };
        // SAFETY: 1: the block has room for guard and serial number after the data.
        unsafe { block::write_tail(base.as_ptr(), size, number) };
        block::dressed(base.as_ptr(), size, extra);
        if !zero {
            block::fresh(data, size);
        }
        // SAFETY: 16 bytes into a block of more than 16.
        Some(unsafe { base.add(HEADER_BYTES) })
    }

    /// `malloc` of the plain case.
    #[inline(always)]
    pub(crate) fn malloc_plain(&self, size: usize) -> Option<NonNull<u8>> {
        if size > INLINE_BYTES { self.malloc_large(size) } else { self.make::<true>(size, false) }
    }

    /// [`malloc_plain`](Self::malloc_plain) of data too large to be filled inline.
    #[inline(never)]
    fn malloc_large(&self, size: usize) -> Option<NonNull<u8>> {
        self.make::<true>(size, false)
    }

    /// `malloc`.
    #[inline(never)]
    pub(crate) fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.make::<false>(size, false)
    }

    /// `calloc` of `size` bytes.
    #[inline]
    pub(crate) fn calloc<const PLAIN: bool>(&self, size: usize) -> Option<NonNull<u8>> {
        self.make::<PLAIN>(size, true)
    }

    /// Fills a whole block dead, but for the bytes at the front of the data that the host keeps readable; gives how many
    /// these are.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these of `size` bytes, not used again.
    #[inline(always)]
    pub(crate) unsafe fn fill_dead<const PLAIN: bool>(&self, p: NonNull<u8>, size: usize) -> usize {
        let base = base_of(p);
        let extra = if PLAIN { Extra::NONE } else { self.extra() };
        let bytes = size + overhead(extra);
        block::undressed(base, size, extra);
        let skip = if PLAIN { 0 } else { self.unfilled(NonNull::new(base), size) };
        if skip == 0 {
            // SAFETY: 1: the whole block (duty 1).
            unsafe { fill_at_least_8(base, DEADBYTE, bytes) };
            return 0;
        }
        // SAFETY: 1: the header (duty 1).
        unsafe { fill_at_least_8(base, DEADBYTE, HEADER_BYTES) };
        let rest = bytes - HEADER_BYTES - skip;
        // SAFETY: 1: the rest, of which the guard alone has 8 bytes (duty 1).
        unsafe { fill_at_least_8(p.as_ptr().wrapping_add(skip), DEADBYTE, rest) };
        skip
    }

    /// Fills a block dead, and gives it back to its allocator.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these of `size` bytes, not used again.
    #[inline(always)]
    unsafe fn end<const PLAIN: bool>(&self, p: NonNull<u8>, size: usize) {
        // SAFETY: 1: duty 1.
        unsafe { self.fill_dead::<PLAIN>(p, size) };
        // SAFETY: a block has 16 bytes before its data (duty 1).
        let base = unsafe { p.sub(HEADER_BYTES) };
        // SAFETY: the underlying block is live, and never used again (duty 1).
        unsafe { self.inner.free(Some(base)) };
    }

    /// `free` of the plain case.
    ///
    /// # Safety
    ///
    /// As [`Malloc::free`].
    #[inline(always)]
    pub(crate) unsafe fn free_plain(&self, p: NonNull<u8>) {
        let Some(size) = self.intact_size(p) else {
            return self.bad_block(p, Call::Free);
        };
        if size > INLINE_BYTES - overhead(Extra::NONE) {
            // SAFETY: 1: the caller's duties 1 and 2; the block is intact.
            return unsafe { self.end_large(p, size) };
        }
        // SAFETY: 1: the caller's duties 1 and 2; the block is intact.
        unsafe { self.end::<true>(p, size) };
    }

    /// `end` in the plain case, of a block too large to be filled inline.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these of `size` bytes, not used again.
    #[inline(never)]
    unsafe fn end_large(&self, p: NonNull<u8>, size: usize) {
        // SAFETY: 1: duty 1.
        unsafe { self.end::<true>(p, size) };
    }

    /// `free`.
    ///
    /// # Safety
    ///
    /// As [`Malloc::free`].
    pub(crate) unsafe fn free(&self, p: NonNull<u8>) {
        let Some(size) = self.intact_size(p) else {
            return self.bad_block(p, Call::Free);
        };
        // SAFETY: 1: the caller's duties 1 and 2; the block is intact.
        unsafe { self.free_intact(p, size) };
    }

    /// `free` of a verified block.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these of `size` bytes, not used again.
    #[inline(never)]
    pub(crate) unsafe fn free_intact(&self, p: NonNull<u8>, size: usize) {
        // SAFETY: 1: duty 1.
        unsafe { self.end::<false>(p, size) };
    }

    /// `realloc`.
    ///
    /// # Safety
    ///
    /// As [`Malloc::realloc`].
    pub(crate) unsafe fn realloc<const PLAIN: bool>(
        &self,
        p: NonNull<u8>,
        new: usize,
    ) -> Option<NonNull<u8>> {
        let Some(old) = self.intact_size(p) else {
            self.bad_block(p, Call::Realloc);
            return None;
        };
        let flags = if PLAIN { 0 } else { self.flags() };
        // Blocks with sites are resized by `checked.rs`.
        let extra = Extra { serial: flags & SERIAL != 0, site: false };
        if new > max_request(extra) {
            return None;
        }
        if flags & FULL_ERASE != 0 {
            // SAFETY: 1 and 2: the caller's; the block is intact.
            return unsafe { self.replace(p, old, new) };
        }
        let base = base_of(p);
        block::undressed(base, old, extra);
        // SAFETY: 1: intact, and written with a serial number.
        let number = extra.serial.then(|| unsafe { block::read_serial(base, old) });
        let erased = if flags & FREE_THREADED == 0 {
            // SAFETY: 1: intact, so a live block (the caller's duty 1).
            Some(unsafe { Erased::take(base, old, extra) })
        } else {
            None
        };
        // SAFETY: `base` is a live block of the inner allocator (the caller's duty 1).
        let moved = unsafe { self.inner.realloc(NonNull::new(base), new + overhead(extra)) };
        let (base, size, number) = match moved {
            Some(base) => (base.as_ptr(), new, if PLAIN { None } else { self.next_serial() }),
            None => (base, old, number),
        };
        let data = base.wrapping_add(HEADER_BYTES);
        if let Some(erased) = erased {
            // SAFETY: 1: `size` bytes of data with 8 of guard, which are written below; 2: the erased data, moved or not.
            unsafe { erased.restore(data, size) };
        }
        if size > old {
            // SAFETY: 1: the bytes that the block grew by, and the guard.
            unsafe { fill_at_least_8(data.wrapping_add(old), CLEANBYTE, size - old) };
        }
        // SAFETY: 1 and 2: the front of a live block: the new one, or the old one that stayed.
        unsafe { block::write_header(base, size, self.id_word) };
        // SAFETY: 1: the block has room for guard and serial number after `size` bytes.
        unsafe { block::write_tail(base, size, number) };
        block::dressed(base, size, extra);
        moved?;
        if size > old {
            block::fresh(data.wrapping_add(old), size - old);
        }
        NonNull::new(data)
    }

    /// Resizes by a new block, a copy and a free, so that every byte of the old block is filled dead.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these of `old` bytes.
    /// 2. After a successful call `p` is dead.
    unsafe fn replace(&self, p: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
        let fresh = self.malloc(new)?;
        // SAFETY: two live blocks that do not overlap, each of at least this size.
        unsafe { ptr::copy_nonoverlapping(p.as_ptr(), fresh.as_ptr(), old.min(new)) };
        // SAFETY: 1: duties 1 and 2.
        unsafe { self.free_intact(p, old) };
        Some(fresh)
    }
}
