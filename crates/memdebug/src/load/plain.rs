//! Owns the reads of a block's header and guard before it is known to be a block.
//! This twin reads them as they are: a pointer to nowhere faults here. See `x86_64.rs` for the other.

/// The two words at `address`.
#[inline]
pub(crate) fn header(address: *const u8) -> [u64; 2] {
    // SAFETY: a block's header; what a caller that breaks `free`'s contract passes is beyond this twin.
    unsafe { address.cast::<[u64; 2]>().read_unaligned() }
}

/// The word at `address`.
#[inline]
pub(crate) fn word(address: *const u8) -> u64 {
    // SAFETY: a block's guard; as above.
    unsafe { address.cast::<u64>().read_unaligned() }
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
