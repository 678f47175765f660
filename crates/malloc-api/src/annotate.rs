//! Owns what memory checkers are told about blocks that an allocator cuts from larger pieces of memory.
//!
//! AddressSanitizer and Valgrind's memcheck know the C library's blocks. A piece that comes from `mmap` is one piece to
//! them: an overrun from one block into the next, or the use of a freed block, goes unseen. An allocator that calls these
//! functions makes them see its own blocks:
//!
//! | when | call |
//! | --- | --- |
//! | memory is set aside for blocks | [`no_access`] |
//! | a block is handed out | [`allocated`] |
//! | it stays where it is with another size | [`resized`] |
//! | it comes back | [`freed`] |
//! | the allocator itself writes to memory that is in no block | [`undefined`] before, [`no_access`] after |
//! | it reads from such memory | [`defined`] before, [`no_access`] after |
//! | the memory is given back | [`undefined`] |
//!
//! Blocks that follow one another without a gap need [`RED_ZONE_BYTES`] more each, so that the end of one is not the start
//! of the next.
//!
//! Without the features `asan` and `valgrind` every function is empty and `RED_ZONE_BYTES` is 0. With `asan`, in a program
//! that was not built for AddressSanitizer, a call is one test; with `valgrind`, outside of it, a call is a few
//! instructions. Both work on Linux on x86-64 and AArch64, and do nothing elsewhere.
//!
//! Sources: compiler-rt's `asan_interface.h`; "The client request mechanism" in Valgrind's manual, and its `valgrind.h` and
//! `memcheck.h`.

use core::ptr::NonNull;

mod asan;
mod memcheck;

/// Bytes that a block needs after its own for an overrun to be seen: 16 with the feature `asan` or `valgrind`, else 0.
pub const RED_ZONE_BYTES: usize = if IS_ON { 16 } else { 0 };

/// Whether any checker is told anything in this build.
pub const IS_ON: bool = asan::IS_ON || memcheck::IS_ON;

/// Nobody may touch the `size` bytes at `start`. AddressSanitizer rounds the start up and the end down to 8 bytes, where
/// what precedes them may be touched.
#[inline(always)]
pub fn no_access(start: NonNull<u8>, size: usize) {
    asan::poison(start, size);
    memcheck::no_access(start, size);
}

/// The `size` bytes at `start` may be written; what they hold now means nothing.
#[inline(always)]
pub fn undefined(start: NonNull<u8>, size: usize) {
    asan::unpoison(start, size);
    memcheck::undefined(start, size);
}

/// The `size` bytes at `start` may be read and written; what they hold now counts.
#[inline(always)]
pub fn defined(start: NonNull<u8>, size: usize) {
    asan::unpoison(start, size);
    memcheck::defined(start, size);
}

/// A block of `size` bytes at `block` was handed out from memory that nobody might touch. Reports name the caller.
#[inline(always)]
pub fn allocated(block: NonNull<u8>, size: usize) {
    asan::unpoison(block, size);
    memcheck::allocated(block, size);
}

/// The block at `block` has `new` bytes instead of `old`, of the `extent` bytes that are set aside for it.
#[inline(always)]
pub fn resized(block: NonNull<u8>, old: usize, new: usize, extent: usize) {
    asan::poison(block, extent);
    asan::unpoison(block, new);
    memcheck::resized(block, old, new);
}

/// The block at `block` came back; nobody may touch the `extent` bytes that are set aside for it.
#[inline(always)]
pub fn freed(block: NonNull<u8>, extent: usize) {
    asan::poison(block, extent);
    memcheck::freed(block);
}

/// Calls `f`, of which memcheck reports no error: for reads through a pointer that may be wild. AddressSanitizer reports
/// them where they are instrumented.
///
/// Memcheck reports again when `f` returns or panics.
#[inline(always)]
pub fn unreported<T>(f: impl FnOnce() -> T) -> T {
    memcheck::pause_reports();
    let _paused = Paused;
    f()
}

/// Lets memcheck report again when it is dropped.
struct Paused;

impl Drop for Paused {
    #[inline(always)]
    fn drop(&mut self) {
        memcheck::resume_reports();
    }
}
