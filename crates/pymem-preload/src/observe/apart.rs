//! Owns `Apart`: a sampled profile over the pools, for mem and obj. A sampled block lies beside the pools, which pass its free on; so
//! the pools' own `free` serves these domains, and an allocation asks a countdown and goes on in the pools by a jump.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::num::NonZeroU64;
use std::sync::OnceLock;

use heap_profile::{ApartProfiler, Countdown, Profile, Stack};
use malloc_api::{Malloc, MallocFn, immortal};
use pymalloc_core::POOLED_MAX;
use pymem_domains::{AllocatorRecord, Domain, Domains, RawWatch};
use pymem_sync::{ForkLock, Rank, hold_over_forks};

use crate::host::python_stacks::PythonStacks;
use crate::observe::moments;

/// The profiler of mem and obj, whose record is that of the pools.
#[derive(Debug)]
pub(crate) struct Apart {
    profiler: ApartProfiler<PythonStacks>,
    pools: AllocatorRecord,
    domains: Domains,
}

/// That of this process.
static APART: OnceLock<Apart> = OnceLock::new();

/// Bytes of both domains until the next sample.
static COUNTDOWN: Countdown = Countdown::new();

/// The pools' `malloc`, at hand for each call.
static POOLS_MALLOC: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// The record by which `domain` of `domains` is profiled, which `inner` serves, the pools' own; `None` for raw.
pub(crate) fn profiled(
    domains: Domains,
    domain: Domain,
    inner: AllocatorRecord,
    profile: &'static Profile<PythonStacks>,
    interval: NonZeroU64,
) -> Option<AllocatorRecord> {
    let apart = APART.get_or_init(|| {
        let profiler = ApartProfiler::new(profile, interval, &COUNTDOWN);
        if let Some(malloc) = inner.to_c().malloc {
            POOLS_MALLOC.store(malloc as *mut c_void, Relaxed);
        }
        // Without memory for the handler a child may find the lock held.
        let _ = hold_over_forks(immortal::leak(ForkLock::new(Rank::Wrapper, profiler.lock())));
        let watch = RawWatch { wrap: |raw| AllocatorRecord::leak(Below(raw)), freed: forget };
        // SAFETY: 1: its blocks are those of the record that it was given. 2: it is a word, which is leaked.
        unsafe { domains.watch_raw_below(watch) };
        Apart { profiler, pools: inner, domains }
    });
    let (malloc, calloc, realloc) = match domain {
        Domain::Raw => return None,
        Domain::Mem => (malloc::<MEM> as MallocFn, calloc::<MEM> as _, realloc::<MEM> as _),
        Domain::Obj => (malloc::<OBJ> as MallocFn, calloc::<OBJ> as _, realloc::<OBJ> as _),
    };
    let inner = inner.to_c();
    let free = inner.free.filter(|_| apart.pools.to_c().ctx == inner.ctx)?;
    // SAFETY: 1: the pools' own context, which they take for ever. 2: the blocks are theirs and those of raw, which they pass on. 3: as the
    // pools' functions may be; what is added is atomic, or of the thread.
    Some(unsafe { AllocatorRecord::from_parts(inner.ctx, malloc, calloc, realloc, free) })
}

/// The stack that allocated the live block at `block`; `None` where no block that is noted begins.
pub(crate) fn traceback_of(block: NonNull<u8>) -> Option<Stack> {
    APART.get()?.profiler.traceback_of(block)
}

const MEM: bool = false;
const OBJ: bool = true;

impl Apart {
    /// Notes `block` of `size` bytes, which the countdown did not let pass, if it is chosen; where it lies now.
    #[cold]
    #[inline(never)]
    fn record<const IS_OBJ: bool>(&self, block: NonNull<u8>, size: usize) -> NonNull<u8> {
        let domain = if IS_OBJ { Domain::Obj } else { Domain::Mem };
        self.profiler.record(domain, block, size, |block| self.outside(block, size))
    }

    /// A block outside of the pools with what `block` of `size` bytes has, in its place; `None` without memory.
    fn outside(&self, block: NonNull<u8>, size: usize) -> Option<NonNull<u8>> {
        if self.domains.pool_block_bytes(block.as_ptr()).is_none() {
            return Some(block);
        }
        // More than pools have: in the span beside them, a page of which is touched, or below. The C library's heap would keep what is free
        // behind it.
        let outside = self.pools.malloc(size.max(POOLED_MAX + 1))?;
        // SAFETY: both have `size` bytes, and are not the same.
        unsafe { outside.copy_from_nonoverlapping(block, size) };
        // SAFETY: a live block of the pools, which nobody has seen.
        unsafe { self.pools.free(Some(block)) };
        Some(outside)
    }
}

/// # Safety
///
/// 1. That of the pools' function.
unsafe extern "C" fn malloc<const IS_OBJ: bool>(
    ctx: *mut c_void,
    size: usize,
) -> Option<NonNull<u8>> {
    if moments::is_noted() || !COUNTDOWN.passes(size) {
        return malloc_due::<IS_OBJ>(size);
    }
    // SAFETY: the function was stored before anybody had the record of this one, and is never null.
    let malloc: MallocFn = unsafe { core::mem::transmute(POOLS_MALLOC.load(Relaxed)) };
    // SAFETY: duty 1.
    unsafe { malloc(ctx, size) }
}

/// As [`malloc`], with a note to look at, or of bytes that the countdown may not let pass.
#[cold]
#[inline(never)]
fn malloc_due<const IS_OBJ: bool>(size: usize) -> Option<NonNull<u8>> {
    moments::look();
    let apart = APART.get()?;
    let block = apart.pools.malloc(size)?;
    let passes = COUNTDOWN.passes(size);
    Some(if passes { block } else { apart.record::<IS_OBJ>(block, size) })
}

/// # Safety
///
/// 1. That of the pools' function.
unsafe extern "C" fn calloc<const IS_OBJ: bool>(
    _: *mut c_void,
    nelem: usize,
    elsize: usize,
) -> Option<NonNull<u8>> {
    moments::look();
    let apart = APART.get()?;
    let block = apart.pools.calloc(nelem, elsize)?;
    // The pools would have refused a product that overflows.
    let size = nelem.wrapping_mul(elsize);
    Some(if COUNTDOWN.passes(size) { block } else { apart.record::<IS_OBJ>(block, size) })
}

/// # Safety
///
/// 1. That of the pools' function.
unsafe extern "C" fn realloc<const IS_OBJ: bool>(
    _: *mut c_void,
    block: Option<NonNull<u8>>,
    new_size: usize,
) -> Option<NonNull<u8>> {
    moments::look();
    let apart = APART.get()?;
    // SAFETY: duty 1.
    let resize = || unsafe { apart.pools.realloc(block, new_size) };
    let new = apart.profiler.moved(block, resize)?;
    Some(if COUNTDOWN.passes(new_size) { new } else { apart.record::<IS_OBJ>(new, new_size) })
}

/// Ends what is noted of a block.
fn forget(block: NonNull<u8>) {
    if let Some(apart) = APART.get() {
        apart.profiler.forget(block);
    }
}

/// Raw as the pools see it: their blocks outside of the pools and of the span beside them.
#[derive(Debug)]
struct Below(AllocatorRecord);

// SAFETY: 1 to 5 are those of the record, whose blocks are handed out as they are.
unsafe impl Malloc for Below {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.0.malloc(size)
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        self.0.calloc(nelem, elsize)
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // What was noted was taken above.
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.0.realloc(ptr, new_size) }
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        if let Some(block) = ptr {
            forget(block);
        }
        // SAFETY: the caller's duties 1 and 2.
        unsafe { self.0.free(ptr) };
    }
}
