//! Owns the client requests to Valgrind's memcheck. A request is an instruction sequence that does nothing on a processor
//! and that Valgrind recognises. Without the feature, and on other targets, a request is nothing.

use core::ptr::NonNull;

pub(super) const IS_ON: bool = cfg!(all(
    feature = "valgrind",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
));

/// Numbers of requests, from `valgrind.h`.
const MALLOCLIKE_BLOCK: usize = 0x1301;
const FREELIKE_BLOCK: usize = 0x1302;
const RESIZEINPLACE_BLOCK: usize = 0x130b;
const CHANGE_ERR_DISABLEMENT: usize = 0x1801;
/// And from `memcheck.h`: two letters name the tool.
const MEMCHECK: usize = ('M' as usize) << 24 | ('C' as usize) << 16;
const MAKE_MEM_NOACCESS: usize = MEMCHECK;
const MAKE_MEM_UNDEFINED: usize = MEMCHECK + 1;
const MAKE_MEM_DEFINED: usize = MEMCHECK + 2;

/// Makes a request with its arguments; the answer is not needed.
#[cfg(all(feature = "valgrind", target_os = "linux", target_arch = "x86_64"))]
#[inline(always)]
fn request(arguments: [usize; 6]) {
    // SAFETY: the rotations add up to two whole turns, and the exchange is of a register with itself: nothing changes
    // but flags and the answer's register. Valgrind reads the six words.
    unsafe {
        core::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") arguments.as_ptr(),
            inout("rdx") 0_usize => _,
            options(nostack),
        );
    }
}

/// Makes a request with its arguments; the answer is not needed.
#[cfg(all(feature = "valgrind", target_os = "linux", target_arch = "aarch64"))]
#[inline(always)]
fn request(arguments: [usize; 6]) {
    // SAFETY: the rotations add up to two whole turns, and the last instruction copies a register to itself: nothing
    // changes but the answer's register. Valgrind reads the six words.
    unsafe {
        core::arch::asm!(
            "ror x12, x12, #3",
            "ror x12, x12, #13",
            "ror x12, x12, #51",
            "ror x12, x12, #61",
            "orr x10, x10, x10",
            in("x4") arguments.as_ptr(),
            inout("x3") 0_usize => _,
            options(nostack),
        );
    }
}

/// No request.
#[cfg(not(all(
    feature = "valgrind",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
#[inline(always)]
fn request(_arguments: [usize; 6]) {}

/// Nobody may touch these bytes.
#[inline(always)]
pub(super) fn no_access(start: NonNull<u8>, size: usize) {
    request([MAKE_MEM_NOACCESS, start.addr().get(), size, 0, 0, 0]);
}

/// These bytes may be written.
#[inline(always)]
pub(super) fn undefined(start: NonNull<u8>, size: usize) {
    request([MAKE_MEM_UNDEFINED, start.addr().get(), size, 0, 0, 0]);
}

/// These bytes may be read and written.
#[inline(always)]
pub(super) fn defined(start: NonNull<u8>, size: usize) {
    request([MAKE_MEM_DEFINED, start.addr().get(), size, 0, 0, 0]);
}

/// A block was handed out: no bytes round it are the tool's, and its content is undefined.
#[inline(always)]
pub(super) fn allocated(block: NonNull<u8>, size: usize) {
    request([MALLOCLIKE_BLOCK, block.addr().get(), size, 0, 0, 0]);
}

/// A block has another size.
#[inline(always)]
pub(super) fn resized(block: NonNull<u8>, old: usize, new: usize) {
    request([RESIZEINPLACE_BLOCK, block.addr().get(), old, new, 0, 0]);
}

/// A block came back.
#[inline(always)]
pub(super) fn freed(block: NonNull<u8>) {
    request([FREELIKE_BLOCK, block.addr().get(), 0, 0, 0, 0]);
}

/// This thread's errors are not reported until [`resume_reports`].
#[inline(always)]
pub(super) fn pause_reports() {
    request([CHANGE_ERR_DISABLEMENT, 1, 0, 0, 0, 0]);
}

/// Ends [`pause_reports`].
#[inline(always)]
pub(super) fn resume_reports() {
    request([CHANGE_ERR_DISABLEMENT, usize::MAX, 0, 0, 0, 0]);
}
