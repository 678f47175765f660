//! Owns the check of a block's header and guard before it is known to be a block.
//! This twin reads them as they are: a pointer to nowhere faults here. See `x86_64.rs` for the other.

use crate::block::{HEADER_BYTES, TAIL_WORD};

/// The size of the block at `p` if the second word of its header is `id` and its guard is intact, else `usize::MAX`.
#[inline]
pub(crate) fn intact_size(p: *const u8, id: u64) -> usize {
    let header = p.wrapping_sub(HEADER_BYTES).cast::<[u64; 2]>();
    // SAFETY: a block's header; what a caller that breaks `free`'s contract passes is beyond this twin.
    let [size, found] = unsafe { header.read_unaligned() };
    if found != id {
        return usize::MAX;
    }
    let size = u64::from_be(size) as usize;
    // SAFETY: a block's guard; as above.
    let tail = unsafe { p.wrapping_add(size).cast::<u64>().read_unaligned() };
    if tail == TAIL_WORD { size } else { usize::MAX }
}

/// Whether [`thread_pointer`] tells threads apart.
pub(crate) const HAS_THREAD_POINTER: bool = false;

/// Nothing that tells threads apart.
#[inline(always)]
pub(crate) fn thread_pointer() -> usize {
    0
}

/// Resumes a read of this module that faulted: there is none that could.
#[cfg(feature = "std")]
pub(crate) unsafe fn resume(_context: *mut libc::c_void) -> bool {
    false
}

/// Whether the access that faulted was a write: not known here.
#[cfg(feature = "std")]
pub(crate) unsafe fn was_write(_context: *mut libc::c_void) -> Option<bool> {
    None
}

/// The stack pointer of what the signal interrupted: not known here.
#[cfg(feature = "std")]
pub(crate) unsafe fn stack_pointer(_context: *mut libc::c_void) -> usize {
    0
}

/// Calls `f(argument)`, on the stack that there is.
#[cfg(feature = "std")]
pub(crate) unsafe fn call_on_stack(
    _top: *mut u8,
    f: extern "C" fn(*mut libc::c_void),
    argument: *mut libc::c_void,
) {
    f(argument);
}
