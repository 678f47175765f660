//! Owns the refusal of system calls: in a program that takes the place of the C library's memory functions, chosen calls of a
//! thread fail.

extern crate std;

use core::cell::Cell;
use core::marker::PhantomData;

#[doc(hidden)]
pub use libc;

/// A function of the system that maps memory, or changes what is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryCall {
    /// `mmap`: new pages.
    Mmap,
    /// `munmap`: the end of pages; in the middle of a mapping it makes two of it, for which there may be no room.
    Munmap,
    /// `madvise`: advice, and the way back of memory behind pages.
    Madvise,
    /// `mprotect`: other access to pages.
    Mprotect,
}

impl MemoryCall {
    /// Every function.
    pub const ALL: [Self; 4] = [Self::Mmap, Self::Munmap, Self::Madvise, Self::Mprotect];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Lets a chosen number of a thread's [`MemoryCall`]s through and fails those after them with `ENOMEM`, as
/// [`FailAfter`](crate::testing::FailAfter) does with allocations.
///
/// The program must invoke [`refuse_memory_calls!`](crate::refuse_memory_calls) once; otherwise nothing is counted. Calls that
/// the C library makes itself, as in its `malloc`, are not counted. Other threads are unaffected.
#[derive(Debug)]
pub struct Refusals {
    /// The calls are those of the thread that made the value, which is where it must be dropped.
    _of_thread: PhantomData<*const ()>,
}

#[derive(Clone, Copy)]
struct Plan {
    kinds: u8,
    start: usize,
    stop: usize,
    calls: usize,
    failures: usize,
}

std::thread_local! {
    static PLAN: Cell<Plan> = const { Cell::new(Plan::NONE) };
}

impl Plan {
    const NONE: Self = Self { kinds: 0, start: 0, stop: 0, calls: 0, failures: 0 };
}

impl Refusals {
    /// Counts the calling thread's calls of `kinds` from now on; of these, those with `start < number <= stop` fail, until the
    /// value is dropped.
    ///
    /// Numbers begin at 1. A `stop` of at most `start` fails nothing. The thread's last value alone counts.
    #[must_use]
    pub fn of(kinds: &[MemoryCall], start: usize, stop: usize) -> Self {
        let kinds = kinds.iter().fold(0, |bits, kind| bits | kind.bit());
        PLAN.set(Plan { kinds, start, stop, ..Plan::NONE });
        Self { _of_thread: PhantomData }
    }

    /// Calls so far, failed ones included.
    #[must_use]
    pub fn calls(&self) -> usize {
        PLAN.get().calls
    }

    /// Calls that failed.
    #[must_use]
    pub fn failures(&self) -> usize {
        PLAN.get().failures
    }
}

impl Drop for Refusals {
    fn drop(&mut self) {
        PLAN.set(Plan::NONE);
    }
}

/// Whether this call of `kind` fails; `errno` is set then.
#[doc(hidden)]
#[must_use]
pub fn is_refused(kind: MemoryCall) -> bool {
    // The last calls of a thread may come after its locals.
    let refused = PLAN.try_with(|cell| {
        let mut plan = cell.get();
        if plan.kinds & kind.bit() == 0 {
            return false;
        }
        plan.calls += 1;
        let refused = plan.start < plan.calls && plan.calls <= plan.stop;
        plan.failures += usize::from(refused);
        cell.set(plan);
        refused
    });
    let refused = refused.unwrap_or(false);
    if refused {
        // SAFETY: no preconditions.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: the calling thread's own.
        unsafe { errno.write(libc::ENOMEM) };
    }
    refused
}

/// Puts `mmap`, `munmap`, `madvise` and `mprotect` of the program under the control of
/// [`Refusals`](crate::testing::Refusals).
///
/// Invoke it once, in the root of a test program. Everything that the program links, C code too, then calls the functions that
/// the macro defines.
#[macro_export]
macro_rules! refuse_memory_calls {
    () => {
        mod refused_memory_calls {
            use ::core::ffi::{c_int, c_void};
            use $crate::testing::MemoryCall;
            use $crate::testing::memory_calls::{is_refused, libc};

            // SAFETY: the system's function, with its signature.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn mmap(
                start: *mut c_void,
                bytes: usize,
                access: c_int,
                flags: c_int,
                file: c_int,
                offset: i64,
            ) -> *mut c_void {
                if is_refused(MemoryCall::Mmap) {
                    return libc::MAP_FAILED;
                }
                // SAFETY: the caller's duties.
                let answer = unsafe {
                    libc::syscall(libc::SYS_mmap, start, bytes, access, flags, file, offset)
                };
                ::core::ptr::with_exposed_provenance_mut(answer as usize)
            }

            // SAFETY: as above.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn munmap(start: *mut c_void, bytes: usize) -> c_int {
                if is_refused(MemoryCall::Munmap) {
                    return -1;
                }
                // SAFETY: the caller's duties.
                unsafe { libc::syscall(libc::SYS_munmap, start, bytes) as c_int }
            }

            // SAFETY: as above.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int {
                if is_refused(MemoryCall::Madvise) {
                    return -1;
                }
                // SAFETY: the caller's duties.
                unsafe { libc::syscall(libc::SYS_madvise, start, bytes, advice) as c_int }
            }

            // SAFETY: as above.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn mprotect(
                start: *mut c_void,
                bytes: usize,
                access: c_int,
            ) -> c_int {
                if is_refused(MemoryCall::Mprotect) {
                    return -1;
                }
                // SAFETY: the caller's duties.
                unsafe { libc::syscall(libc::SYS_mprotect, start, bytes, access) as c_int }
            }
        }
    };
}
