//! Owns `DebugHooks`: the four calls, what they fill, and what they verify.
//! Leaves the byte layout to `block.rs`, the naming of a violation to `verdict.rs`, and every option beyond serial
//! numbers and erasing to `checked.rs`.

use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

use malloc_api::Malloc;

use crate::block::{self, ApiId, HEADER_BYTES, base_of, max_request, overhead};
use crate::checked::Checked;
use crate::dump::BlockDump;
use crate::erase::Erased;
use crate::facts::BlockFacts;
use crate::host::{Host, ThreadCheck};
use crate::load;
use crate::options::Options;
use crate::pattern::{CLEANBYTE, DEADBYTE, INLINE_FILL_BYTES, fill_small};
use crate::verdict;
use crate::violation::{Call, Violation, ViolationKind};

/// Serial numbers are on.
const SERIAL: u8 = 1;
/// Every byte that leaves a block is filled dead.
const FULL_ERASE: u8 = 2;
/// The host's `debug_offset` rules.
const FREE_THREADED: u8 = 4;
/// An option of `checked.rs` is on.
const CHECKED: u8 = 8;

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
/// use memdebug::{ApiId, DebugHooks};
///
/// static HOOKS: DebugHooks<LibcMalloc> = DebugHooks::new(LibcMalloc, ApiId::Mem);
///
/// let block = HOOKS.malloc(5).unwrap();
/// // SAFETY: five bytes, all of them written by the hooks.
/// assert_eq!(unsafe { block.cast::<[u8; 5]>().read() }, [0xCD; 5]);
/// // SAFETY: live, and not used again.
/// unsafe { HOOKS.free(Some(block)) };
/// ```
pub struct DebugHooks<A> {
    pub(crate) inner: A,
    pub(crate) api: ApiId,
    /// [`ApiId::word`] of `api`.
    id_word: u64,
    /// The host's rule, or `None` for the raw domain.
    thread_check: Option<ThreadCheck>,
    pub(crate) host: Host,
    flags: AtomicU8,
    serial: AtomicUsize,
    pub(crate) checked: Checked,
}

impl<A> DebugHooks<A> {
    /// Plain hooks of `api` around `inner`, with a host that supplies nothing.
    #[must_use]
    pub const fn new(inner: A, api: ApiId) -> Self {
        Self {
            inner,
            api,
            id_word: api.word(),
            thread_check: None,
            host: Host::new(),
            flags: AtomicU8::new(0),
            serial: AtomicUsize::new(0),
            checked: Checked::new(),
        }
    }

    /// Sets what the surroundings supply.
    #[must_use]
    pub const fn with_host(mut self, host: Host) -> Self {
        self.thread_check = match self.api {
            ApiId::Raw => None,
            ApiId::Mem | ApiId::Obj => host.thread_check,
        };
        self.host = host;
        let flags = if host.debug_offset.is_some() { FREE_THREADED } else { 0 };
        self.flags = AtomicU8::new(flags);
        self
    }

    /// The allocator below.
    #[must_use]
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    /// The domain whose letter the blocks carry.
    #[must_use]
    pub const fn api(&self) -> ApiId {
        self.api
    }

    /// How many allocations and resizes were numbered: 0 unless serial numbers are on.
    #[must_use]
    pub fn serial(&self) -> usize {
        self.serial.load(Relaxed)
    }

    #[inline]
    fn flags(&self) -> u8 {
        self.flags.load(Relaxed)
    }

    #[inline]
    pub(crate) fn has_serial(&self) -> bool {
        self.flags() & SERIAL != 0
    }

    /// The next serial number, where they are on.
    fn next_serial(&self) -> Option<u64> {
        self.has_serial().then(|| self.serial.fetch_add(1, Relaxed) as u64 + 1)
    }

    /// Data bytes at the front of a block that fills leave alone.
    fn unfilled(&self, base: Option<NonNull<u8>>, size: usize) -> usize {
        match self.host.debug_offset {
            Some(offset) if self.api == ApiId::Obj => {
                offset(base).saturating_sub(HEADER_BYTES).min(size)
            }
            _ => 0,
        }
    }

    #[inline]
    fn check_thread(&self, call: Call) {
        if self.thread_check.is_some_and(|check| !check()) {
            self.wrong_thread(call);
        }
    }

    #[cold]
    #[inline(never)]
    fn wrong_thread(&self, call: Call) {
        let kind = ViolationKind::WrongThread;
        (self.host.handler)(&Violation::new(kind, call, self.api, None, &self.host));
    }

    /// Reports a block that failed its check.
    #[cold]
    #[inline(never)]
    fn bad_block(&self, p: NonNull<u8>, call: Call) {
        let violation = verdict::on_block(p, call, self.api, self.has_serial(), &self.host);
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
    #[inline]
    pub(crate) fn intact_size(&self, p: NonNull<u8>) -> Option<usize> {
        let size = load::intact_size(p.as_ptr(), self.id_word);
        (size != usize::MAX).then_some(size)
    }

    /// [`intact_size`](Self::intact_size), with a report of a block that is not intact.
    #[inline]
    fn verified_size(&self, p: NonNull<u8>, call: Call) -> Option<usize> {
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
        if self.checked.configure(options, self.api, &self.host)? {
            flags |= CHECKED;
        }
        self.flags.store(flags, Relaxed);
        Ok(())
    }

    /// A block of the inner allocator for `size` bytes of data.
    #[inline]
    fn underlying(&self, size: usize, serial: bool) -> Option<NonNull<u8>> {
        if size > max_request(serial) {
            return None;
        }
        self.inner.malloc(size + overhead(serial))
    }

    /// Makes a new underlying block of `size` bytes a debug block with clean data.
    ///
    /// # Safety
    ///
    /// 1. `base` is a block of `size + overhead` bytes, unused.
    #[inline]
    unsafe fn dress(&self, base: NonNull<u8>, size: usize) -> NonNull<u8> {
        if size > INLINE_FILL_BYTES {
            // SAFETY: 1: duty 1.
            return unsafe { dress_large(base, size, self.id_word) };
        }
        let data = base.as_ptr().wrapping_add(HEADER_BYTES);
        // SAFETY: 1 and 2: the front of a block, 8-aligned at least.
        unsafe { block::write_header(base.as_ptr(), size, self.id_word) };
        // SAFETY: 1: the data, or its guard where the data is shorter than 8; the guard is written below. 2: tested above.
        unsafe { fill_small(data, CLEANBYTE, size) };
        // SAFETY: 1: the block has room for the guard after the data.
        unsafe { block::write_tail(base.as_ptr(), size, None) };
        // SAFETY: 16 bytes into a block of more than 16.
        unsafe { base.add(HEADER_BYTES) }
    }

    /// `malloc` with any of the options of this file.
    #[cold]
    #[inline(never)]
    pub(crate) fn malloc_numbered(&self, size: usize) -> Option<NonNull<u8>> {
        let base = self.underlying(size, self.has_serial())?;
        let skip = self.unfilled(None, size);
        let data = base.as_ptr().wrapping_add(HEADER_BYTES);
        // SAFETY: 1 and 2: the front of a block, 8-aligned at least.
        unsafe { block::write_header(base.as_ptr(), size, self.id_word) };
        // SAFETY: inside the data.
        unsafe { ptr::write_bytes(data.wrapping_add(skip), CLEANBYTE, size - skip) };
        // SAFETY: 1: the block has room for guard and serial number after the data.
        unsafe { block::write_tail(base.as_ptr(), size, self.next_serial()) };
        NonNull::new(data)
    }

    /// `calloc` of `size` bytes.
    pub(crate) fn calloc_bytes(&self, size: usize) -> Option<NonNull<u8>> {
        let serial = self.has_serial();
        if size > max_request(serial) {
            return None;
        }
        let base = self.inner.calloc(1, size + overhead(serial))?;
        // SAFETY: 1 and 2: the front of a block, 8-aligned at least.
        unsafe { block::write_header(base.as_ptr(), size, self.id_word) };
        // SAFETY: 1: the block has room for guard and serial number after the data.
        unsafe { block::write_tail(base.as_ptr(), size, self.next_serial()) };
        // SAFETY: 16 bytes into a block of more than 16.
        Some(unsafe { base.add(HEADER_BYTES) })
    }

    /// Fills a whole block dead, but for the bytes at the front of the data that the host keeps readable; gives how many
    /// these are.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these hooks of `size` bytes, not used again.
    pub(crate) unsafe fn fill_dead(&self, p: NonNull<u8>, size: usize) -> usize {
        let base = base_of(p);
        let skip = self.unfilled(NonNull::new(base), size);
        // SAFETY: the header of a live block (duty 1).
        unsafe { ptr::write_bytes(base, DEADBYTE, HEADER_BYTES) };
        let rest = size - skip + overhead(self.has_serial()) - HEADER_BYTES;
        // SAFETY: the rest of it.
        unsafe { ptr::write_bytes(p.as_ptr().wrapping_add(skip), DEADBYTE, rest) };
        skip
    }

    /// `free` with any of the options of this file.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these hooks of `size` bytes, not used again.
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn free_numbered(&self, p: NonNull<u8>, size: usize) {
        // SAFETY: 1: duty 1.
        unsafe { self.fill_dead(p, size) };
        // SAFETY: duty 1: the underlying block is live, and never used again.
        unsafe { self.inner.free(NonNull::new(base_of(p))) };
    }

    /// Resizes a verified block.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these hooks of `old` bytes.
    /// 2. After a successful call `p` is dead.
    unsafe fn resize(&self, p: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
        let flags = self.flags();
        let serial = flags & SERIAL != 0;
        if new > max_request(serial) {
            return None;
        }
        if flags & FULL_ERASE != 0 {
            // SAFETY: 1 and 2: those of this function.
            return unsafe { self.replace(p, old, new) };
        }
        let base = base_of(p);
        // SAFETY: duty 1: the block was written with a serial number.
        let number = serial.then(|| unsafe { block::read_serial(base, old) });
        let erased = if flags & FREE_THREADED == 0 {
            // SAFETY: 1: duty 1.
            Some(unsafe { Erased::take(base, old, serial) })
        } else {
            None
        };
        // SAFETY: duty 1: `base` is a live block of the inner allocator.
        let moved = unsafe { self.inner.realloc(NonNull::new(base), new + overhead(serial)) };
        let (base, size, number) = match moved {
            Some(base) => (base.as_ptr(), new, self.next_serial()),
            None => (base, old, number),
        };
        // SAFETY: 1 and 2: the front of a live block: the new one, or the old one that stayed.
        unsafe { block::write_header(base, size, self.id_word) };
        // SAFETY: 1: the block has room for guard and serial number after `size` bytes.
        unsafe { block::write_tail(base, size, number) };
        let data = base.wrapping_add(HEADER_BYTES);
        if let Some(erased) = erased {
            // SAFETY: 1: `size` bytes of data; 2: they are the erased block's, moved or not.
            unsafe { erased.restore(data, size) };
        }
        moved?;
        if new > old {
            // SAFETY: the bytes that the block grew by.
            unsafe { ptr::write_bytes(data.wrapping_add(old), CLEANBYTE, new - old) };
        }
        NonNull::new(data)
    }

    /// Resizes by a new block, a copy and a free, so that every byte of the old block is filled dead.
    ///
    /// # Safety
    ///
    /// As [`resize`](Self::resize).
    unsafe fn replace(&self, p: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
        let fresh = self.malloc_numbered(new)?;
        // SAFETY: two live blocks that do not overlap, each of at least this size.
        unsafe { ptr::copy_nonoverlapping(p.as_ptr(), fresh.as_ptr(), old.min(new)) };
        // SAFETY: 1: duties 1 and 2.
        unsafe { self.free_numbered(p, old) };
        Some(fresh)
    }

    /// `realloc` with the options of this file.
    ///
    /// # Safety
    ///
    /// As [`Malloc::realloc`].
    #[inline]
    pub(crate) unsafe fn realloc_plain(&self, p: NonNull<u8>, new: usize) -> Option<NonNull<u8>> {
        let old = self.verified_size(p, Call::Realloc)?;
        // SAFETY: 1 and 2: the caller's; the block is intact.
        unsafe { self.resize(p, old, new) }
    }

    /// `free` without options.
    ///
    /// # Safety
    ///
    /// As [`Malloc::free`].
    #[inline]
    pub(crate) unsafe fn free_plain(&self, p: NonNull<u8>) {
        let Some(size) = self.intact_size(p) else {
            return self.bad_block(p, Call::Free);
        };
        let bytes = size + overhead(false);
        if bytes > INLINE_FILL_BYTES {
            // SAFETY: 1: the caller's duties 1 and 2; the block is intact.
            return unsafe { self.free_large(p, bytes) };
        }
        let base = base_of(p);
        // SAFETY: 1: all of a live block that nobody uses any more; 2: tested above.
        unsafe { fill_small(base, DEADBYTE, bytes) };
        // SAFETY: the underlying block of a live block, not used again.
        unsafe { self.inner.free(NonNull::new(base)) };
    }

    /// `free` of a block whose bytes, `bytes` with header and guard, are too many to be filled inline.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live block of these hooks, intact and not used again.
    #[inline(never)]
    unsafe fn free_large(&self, p: NonNull<u8>, bytes: usize) {
        let base = base_of(p);
        // SAFETY: all of the block (duty 1).
        unsafe { ptr::write_bytes(base, DEADBYTE, bytes) };
        // SAFETY: the underlying block of a live block, not used again (duty 1).
        unsafe { self.inner.free(NonNull::new(base)) };
    }

    /// `free` with any option.
    ///
    /// # Safety
    ///
    /// As [`Malloc::free`].
    #[cold]
    #[inline(never)]
    unsafe fn free_with_options(&self, p: NonNull<u8>) {
        if self.flags() & CHECKED != 0 {
            // SAFETY: 1 and 2: the caller's.
            return unsafe { self.free_checked(p) };
        }
        if let Some(size) = self.verified_size(p, Call::Free) {
            // SAFETY: 1: the caller's duties 1 and 2; the block is intact.
            unsafe { self.free_numbered(p, size) };
        }
    }

    /// `malloc` with any option.
    #[cold]
    #[inline(never)]
    fn malloc_with_options(&self, size: usize) -> Option<NonNull<u8>> {
        if self.flags() & CHECKED != 0 {
            return self.malloc_checked(size);
        }
        self.malloc_numbered(size)
    }
}

/// [`DebugHooks::dress`] for data too large to be filled inline.
///
/// # Safety
///
/// 1. `base` is a block of `size + overhead` bytes, unused.
#[inline(never)]
unsafe fn dress_large(base: NonNull<u8>, size: usize, id: u64) -> NonNull<u8> {
    // SAFETY: 1 and 2: the front of a block, 8-aligned at least.
    unsafe { block::write_header(base.as_ptr(), size, id) };
    // SAFETY: 1: the block has room for the guard after the data.
    unsafe { block::write_tail(base.as_ptr(), size, None) };
    // SAFETY: 16 bytes into a block of more than 16.
    let data = unsafe { base.add(HEADER_BYTES) };
    // SAFETY: the data of the block (duty 1).
    unsafe { ptr::write_bytes(data.as_ptr(), CLEANBYTE, size) };
    data
}

// SAFETY: a block of the hooks is the data part of a block of `A`, which keeps promises 1-3 for it (16 bytes of header keep
// its alignment, `resize` keeps content and restores a block whose resize failed); 4: no method unwinds unless the
// host's handler does on a violation, after which no promise is owed; no method allocates but from `A`.
unsafe impl<A: Malloc> Malloc for DebugHooks<A> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.check_thread(Call::Malloc);
        if self.flags() != 0 {
            return self.malloc_with_options(size);
        }
        let base = self.underlying(size, false)?;
        // SAFETY: 1: just allocated with this size.
        Some(unsafe { self.dress(base, size) })
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.check_thread(Call::Calloc);
        let size = nelem.checked_mul(elsize)?;
        if self.flags() & CHECKED != 0 {
            return self.calloc_checked(size);
        }
        self.calloc_bytes(size)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(p) = ptr else {
            // CPython names the malloc it falls through to only after the check of the call itself.
            self.check_thread(Call::Realloc);
            return match self.flags() {
                flags if flags & CHECKED != 0 => self.malloc_checked(new_size),
                _ => self.malloc_numbered(new_size),
            };
        };
        self.check_thread(Call::Realloc);
        if self.flags() & CHECKED != 0 {
            // SAFETY: 1 and 2: the caller's.
            return unsafe { self.realloc_checked(p, new_size) };
        }
        // SAFETY: 1 and 2: the caller's.
        unsafe { self.realloc_plain(p, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        self.check_thread(Call::Free);
        let Some(p) = ptr else {
            return;
        };
        if self.flags() != 0 {
            // SAFETY: 1 and 2: the caller's.
            return unsafe { self.free_with_options(p) };
        }
        // SAFETY: 1 and 2: the caller's.
        unsafe { self.free_plain(p) };
    }
}

impl<A: fmt::Debug> fmt::Debug for DebugHooks<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugHooks")
            .field("inner", &self.inner)
            .field("api", &self.api)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}
