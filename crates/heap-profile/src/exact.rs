//! Owns `ExactProfiler`: every block has its site in front of it, so that a free looks nothing up.
//!
//! ```text
//!         | size | site |  data ...
//! base    +0     +8     +16            (64-bit; half of it on 32-bit)
//! ```

use std::ptr::NonNull;

use malloc_api::{Domain, MAX_REQUEST, MIN_ALIGN, Malloc};

use crate::profile::Profile;
use crate::site::{SiteEntry, address_of, site_at};
use crate::snapshot::Amount;
use crate::source::StackSource;

/// What stands in front of a block.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    /// Bytes as they were requested.
    size: usize,
    /// Null for a block that is not recorded.
    site: *const SiteEntry,
}

/// Bytes that a block costs beyond the request.
const HEADER_BYTES: usize = size_of::<Header>();

// The header keeps the alignment of the block below it.
const _: () = assert!(HEADER_BYTES == MIN_ALIGN);

/// An allocator that notes for each block which stack allocated it.
///
/// A block costs two words more, and no table is asked when it is freed. All blocks of the allocator have them, those too that
/// are allocated while the profile does not record: an exact profiler stands in place from a program's first block on. A
/// moved block belongs to the stack that moved it.
///
/// # Examples
///
/// ```
/// use heap_profile::{ExactProfiler, Frame, Location, Options, Profile, StackSource, Walk};
/// use malloc_api::{Domain, LibcMalloc, Malloc};
///
/// struct Main;
///
/// impl StackSource for Main {
///     fn capture(&self, walk: &mut Walk<'_>) {
///         let _ = walk.visit(1, Frame { code: 1, at: 7 });
///     }
///
///     fn locate(&self, frame: Frame) -> Location {
///         Location { function: "main".into(), file: "main.rs".into(), line: frame.at as u32 }
///     }
/// }
///
/// let profile = Profile::new(Main, Options::default())?;
/// let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Mem);
/// let block = heap.malloc(100);
/// let site = &profile.snapshot().sites[0];
/// assert_eq!((site.stack[0].line, site.live.bytes), (7, 100));
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { heap.free(block) };
/// assert_eq!(profile.live_bytes(), 0);
/// # Ok::<(), heap_profile::ProfileError>(())
/// ```
#[derive(Debug)]
pub struct ExactProfiler<A, S: 'static> {
    inner: A,
    profile: &'static Profile<S>,
    domain: Domain,
}

impl<A: Malloc, S: StackSource> ExactProfiler<A, S> {
    /// Notes the blocks of `inner` in `profile`, as those of `domain`.
    pub const fn new(inner: A, profile: &'static Profile<S>, domain: Domain) -> Self {
        Self { inner, profile, domain }
    }

    /// The bytes to ask `inner` for; `None` for a request that is too large.
    #[inline]
    const fn padded(size: usize) -> Option<usize> {
        if size > MAX_REQUEST - HEADER_BYTES { None } else { Some(size + HEADER_BYTES) }
    }

    /// Records a block of `size` bytes and writes its header; returns the data.
    ///
    /// # Safety
    ///
    /// 1. `base` is a block of `inner` of `size + HEADER_BYTES` bytes.
    #[inline]
    unsafe fn record(&self, base: NonNull<u8>, size: usize) -> NonNull<u8> {
        let site = self.profile.allocate(self.domain as u8, size, Amount::block(size));
        let header = Header { size, site: address_of(site) };
        // SAFETY: the block begins with room for a header (1), aligned as blocks are.
        unsafe { base.cast::<Header>().write(header) };
        // SAFETY: within the block (1).
        unsafe { base.add(HEADER_BYTES) }
    }

    /// The block and the header of the data at `ptr`.
    ///
    /// # Safety
    ///
    /// 1. `ptr` is a live block of this allocator.
    #[inline]
    unsafe fn open(ptr: NonNull<u8>) -> (NonNull<u8>, Header) {
        // SAFETY: data follows its header (1).
        let base = unsafe { ptr.sub(HEADER_BYTES) };
        // SAFETY: `record` wrote it (1).
        (base, unsafe { base.cast::<Header>().read() })
    }

    #[inline]
    fn forget(&self, header: Header) {
        // SAFETY: (1) `record` made the address from a site.
        if let Some(site) = unsafe { site_at(header.site) } {
            self.profile.free(site, Amount::block(header.size));
        }
    }
}

// SAFETY: 1: blocks of `inner` that are two words longer, handed out behind these words, whose size keeps the alignment. 2:
// `calloc` zeroes all of the block before the header is written, and `realloc` moves header and data as one; 3: nothing is
// written before the inner call succeeded; 4: neither the profile nor `inner` unwinds, and the profile's tables are not of
// `inner`; 5: as `inner`, since the profile is a reference.
unsafe impl<A: Malloc, S: StackSource> Malloc for ExactProfiler<A, S> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let base = self.inner.malloc(Self::padded(size)?)?;
        // SAFETY: (1) just allocated.
        Some(unsafe { self.record(base, size) })
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let size = nelem.checked_mul(elsize)?;
        let base = self.inner.calloc(1, Self::padded(size)?)?;
        // SAFETY: (1) just allocated.
        Some(unsafe { self.record(base, size) })
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let Some(ptr) = ptr else { return self.malloc(new_size) };
        let padded = Self::padded(new_size)?;
        // SAFETY: (1) the caller's duty 1.
        let (base, header) = unsafe { Self::open(ptr) };
        // SAFETY: (1) a block of `inner`; (2) `base` is not used after success.
        let base = unsafe { self.inner.realloc(Some(base), padded) }?;
        self.forget(header);
        // SAFETY: (1) just allocated.
        Some(unsafe { self.record(base, new_size) })
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let Some(ptr) = ptr else { return };
        // SAFETY: (1) the caller's duty 1.
        let (base, header) = unsafe { Self::open(ptr) };
        self.forget(header);
        // SAFETY: (1) a live block of `inner`; (2) the caller's duty 2.
        unsafe { self.inner.free(Some(base)) };
    }
}
