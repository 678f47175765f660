//! Owns the calls to AddressSanitizer, where the program has it: its functions are weak symbols, null elsewhere. Without the
//! feature, and on other targets, they are null as well, and every call compiles to nothing.

use core::ffi::c_void;
use core::ptr::NonNull;

pub(super) const IS_ON: bool = cfg!(all(
    feature = "asan",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
));

type Mark = unsafe extern "C" fn(*const c_void, usize);

/// The address of a weak function; null where nobody defines it.
#[cfg(all(feature = "asan", target_os = "linux", target_arch = "x86_64"))]
macro_rules! weak {
    ($name:literal) => {{
        let address: *const ();
        // SAFETY: reads the symbol's slot in the global offset table.
        unsafe {
            core::arch::asm!(
                concat!(".weak ", $name),
                concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                out(reg) address,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        address
    }};
}

/// The address of a weak function; null where nobody defines it.
#[cfg(all(feature = "asan", target_os = "linux", target_arch = "aarch64"))]
macro_rules! weak {
    ($name:literal) => {{
        let address: *const ();
        // SAFETY: reads the symbol's slot in the global offset table.
        unsafe {
            core::arch::asm!(
                concat!(".weak ", $name),
                concat!("adrp {0}, :got:", $name),
                concat!("ldr {0}, [{0}, :got_lo12:", $name, "]"),
                out(reg) address,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        address
    }};
}

/// The address of a function that is not there.
#[cfg(not(all(
    feature = "asan",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
macro_rules! weak {
    ($name:literal) => {
        core::ptr::null()
    };
}

/// Calls `mark` where it is there.
///
/// # Safety
///
/// 1. `mark` is null or the address of a [`Mark`].
#[inline(always)]
unsafe fn call(mark: *const (), start: NonNull<u8>, size: usize) {
    // SAFETY: duty 1; null is `None`.
    if let Some(mark) = unsafe { core::mem::transmute::<*const (), Option<Mark>>(mark) } {
        // SAFETY: it marks bytes in the tool's own map.
        unsafe { mark(start.as_ptr().cast(), size) };
    }
}

/// Nobody may touch these bytes.
#[inline(always)]
pub(super) fn poison(start: NonNull<u8>, size: usize) {
    let mark = weak!("__asan_poison_memory_region");
    // SAFETY: 1: a function of the tool with this signature.
    unsafe { call(mark, start, size) };
}

/// Anybody may touch these bytes.
#[inline(always)]
pub(super) fn unpoison(start: NonNull<u8>, size: usize) {
    let mark = weak!("__asan_unpoison_memory_region");
    // SAFETY: 1: a function of the tool with this signature.
    unsafe { call(mark, start, size) };
}
