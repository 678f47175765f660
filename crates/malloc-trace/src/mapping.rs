//! Owns `Mapping`: pages of a growing file in memory, which others may cut short without ending this program.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Once, OnceLock};

use malloc_api::page_bytes;

/// Mappings that a process may have at one time.
const MAPPINGS: usize = 64;

/// Where the mappings are, for the handler of faults.
static GUARDED: [Guarded; MAPPINGS] = [const { Guarded::none() }; MAPPINGS];

/// What the handler knows of a mapping. Relaxed: the thread that faults came to the mapping by its owner's lock.
#[derive(Debug)]
struct Guarded {
    is_used: AtomicBool,
    start: AtomicUsize,
    bytes: AtomicUsize,
    /// Whether the file was cut short, and private pages have taken the place of the mapping.
    is_lost: AtomicBool,
}

impl Guarded {
    const fn none() -> Self {
        Self {
            is_used: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            is_lost: AtomicBool::new(false),
        }
    }

    fn has(&self, address: usize) -> bool {
        address.wrapping_sub(self.start.load(Relaxed)) < self.bytes.load(Relaxed)
    }
}

/// Pages of a file in memory, shared with it.
///
/// A page whose part of the file is gone is a fault for whoever writes to it. The first such write replaces the mapping by
/// private pages: the write and all later ones go there, and [`is_lost`](Mapping::is_lost) says so.
///
/// Invariant 1: `bytes` bytes from `start` are mapped, readable and writable, until the drop.
///
/// Invariant 2: the pages that `guarded` names are the mapping, and nobody else's.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u64>,
    bytes: usize,
    guarded: &'static Guarded,
}

// SAFETY: the memory is the mapping's own and bound to no thread.
unsafe impl Send for Mapping {}
// SAFETY: shared references reach the memory by atomics alone.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Makes `file`, which is `file_bytes` long, longer by `bytes` of zeros, and maps those.
    ///
    /// # Errors
    ///
    /// `EFBIG` where the limit of file sizes does not allow it; what the system says about room and memory.
    pub(crate) fn extend(file: &File, file_bytes: u64, bytes: usize) -> io::Result<Self> {
        survive_truncation()?;
        if file_bytes + bytes as u64 > file_size_limit() {
            // The kernel would send SIGXFSZ, which ends the program.
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let (offset, length) = (file_bytes as libc::off_t, bytes as libc::off_t);
        // Reserve the disk space now: later, a page without space would fault at its first write.
        // SAFETY: an open file, and numbers.
        let errno = unsafe { libc::posix_fallocate(file.as_raw_fd(), offset, length) };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let free = |guarded: &&Guarded| !guarded.is_used.swap(true, Relaxed);
        let guarded = GUARDED.iter().find(free);
        let guarded = guarded.ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))?;
        // What was there before may end within a page: a page has up to 64 KiB.
        let before = file_bytes as usize % page_bytes();
        let mapped_bytes = before + bytes;
        let (access, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        let (descriptor, offset) = (file.as_raw_fd(), offset - before as libc::off_t);
        // SAFETY: a new mapping, wherever there is room.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), mapped_bytes, access, flags, descriptor, offset) };
        match NonNull::new(start) {
            Some(mapped) if start != libc::MAP_FAILED => {
                guarded.is_lost.store(false, Relaxed);
                guarded.start.store(start.expose_provenance(), Relaxed);
                guarded.bytes.store(mapped_bytes, Relaxed);
                // SAFETY: within the mapping.
                let start = unsafe { mapped.byte_add(before) };
                Ok(Self { start: start.cast(), bytes, guarded })
            }
            _ => {
                guarded.is_used.store(false, Relaxed);
                Err(io::Error::last_os_error())
            }
        }
    }

    /// Whether the file was cut short, so that what is written is lost.
    #[inline]
    pub(crate) fn is_lost(&self) -> bool {
        self.guarded.is_lost.load(Relaxed)
    }

    /// Word number `index`, which others may read meanwhile.
    ///
    /// # Panics
    ///
    /// If the mapping is shorter.
    #[inline]
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: mapped and aligned (invariant 1), and reached by atomics alone.
        unsafe { AtomicU64::from_ptr(self.place(index)) }
    }

    /// Sets word number `index`. A program that dies has set the words before.
    ///
    /// # Panics
    ///
    /// If the mapping is shorter.
    #[inline]
    pub(crate) fn set(&mut self, index: usize, value: u64) {
        // SAFETY: mapped and aligned (invariant 1), and this is the only reference. Volatile writes are not reordered.
        unsafe { self.place(index).write_volatile(value) };
    }

    #[inline]
    fn place(&self, index: usize) -> *mut u64 {
        assert!(index < self.bytes / size_of::<u64>());
        // SAFETY: within the mapping, as asserted.
        unsafe { self.start.add(index) }.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let start = ptr::with_exposed_provenance_mut(self.guarded.start.load(Relaxed));
        let bytes = self.guarded.bytes.swap(0, Relaxed);
        // SAFETY: the mapping's pages (invariant 2), and nobody has a reference into them.
        unsafe { libc::munmap(start, bytes) };
        self.guarded.is_used.store(false, Relaxed);
    }
}

/// The greatest length of a file that this process may write.
fn file_size_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable, and every Linux has this limit.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    limit.rlim_cur
}

/// The handler of SIGBUS that was there before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler of SIGBUS, once for the process.
fn survive_truncation() -> io::Result<()> {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // SAFETY: plain numbers and pointers, for which zero is a value.
        let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: null asks for the present action alone.
        if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut previous) } != 0 {
            return;
        }
        // Keep the previous action before our handler can run.
        PREVIOUS.get_or_init(|| previous);
        let mut action = previous;
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: a function of SA_SIGINFO's three arguments, which does what a signal handler may.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
    });
    PREVIOUS.get().map(drop).ok_or_else(io::Error::last_os_error)
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid record.
    let record = unsafe { &*info };
    // SAFETY: a record of any signal has the field, if only as a number that is no address.
    let address = unsafe { record.si_addr() }.addr();
    let is_fault = record.si_code == libc::BUS_ADRERR;
    let lost = GUARDED.iter().find(|guarded| is_fault && guarded.has(address));
    if lost.is_none_or(|guarded| !replace(guarded)) {
        chain(signal, info, context);
    }
}

/// Puts private pages in place of a mapping; whether there is memory for them.
fn replace(guarded: &Guarded) -> bool {
    let start = ptr::without_provenance_mut(guarded.start.load(Relaxed));
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let (bytes, access) = (guarded.bytes.load(Relaxed), libc::PROT_READ | libc::PROT_WRITE);
    guarded.is_lost.store(true, Relaxed);
    // SAFETY: the pages are a mapping's own, whose file is gone; the call is one that a signal handler may make.
    unsafe { libc::mmap(start, bytes, access, flags, -1, 0) != libc::MAP_FAILED }
}

/// Passes a signal that has nothing to do with a log to the previous action, as if there were no log.
fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid record.
    let was_sent = unsafe { (*info).si_code } <= 0;
    match PREVIOUS.get().map_or(libc::SIG_DFL, |action| action.sa_sigaction) {
        libc::SIG_IGN if was_sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the default action needs no function.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            // SAFETY: no memory is involved. A fault would come again by itself, a sent signal would not.
            unsafe { libc::raise(signal) };
        }
        handler => {
            let at = ptr::without_provenance::<c_void>(handler);
            // SAFETY: a handler takes three arguments, or takes the first one and leaves the others alone.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(at) };
            handler(signal, info, context);
        }
    }
}
