//! Owns `CallLog`: calls as fixed records in a mapped file, for programs that must hardly notice that they are recorded.
//! Leaves the bytes, and the way to a trace, to `log_reader.rs`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use malloc_api::Domain;

use crate::caller::thread_number;
use crate::log_reader::{
    DROPPED_WORD, HEAD_BYTES, LIMIT, MAGIC, RECORD_BYTES, STOPPED_WORD, SYSTEM, THREADS_WORD, Told,
    record,
};

/// Bytes of the file that are mapped at one time, besides the head.
const WINDOW_BYTES: usize = 1 << 20;
const WINDOW_RECORDS: usize = WINDOW_BYTES / RECORD_BYTES;

/// Calls as they are made, in a file that is a log and becomes a trace afterwards, by [`LogReader`](crate::LogReader).
///
/// A record is 16 bytes, written to memory that is mapped to the file: whatever ends the program, the log has every call
/// until then, and nothing is to be flushed. 1 MiB of the file is mapped at a time, and nothing else grows, however many
/// blocks live. No file descriptor is kept: the program numbers its own, and may close any.
///
/// A log stops growing at its limit, or when the file cannot grow; the calls after that are counted in its head.
/// Linux only.
#[derive(Debug)]
pub struct CallLog {
    state: Mutex<State>,
    head: Mapping,
    /// Relaxed: a call that sees the old value is recorded, or not, as if it had come earlier.
    active: AtomicBool,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    /// Device and number of the file: what the path must still lead to.
    file: (u64, u64),
    /// The part of the file that ends with it; `None` before the first call.
    window: Option<Mapping>,
    /// Records in the window.
    written: usize,
    file_bytes: u64,
    max_bytes: u64,
    threads: u64,
}

impl CallLog {
    /// Starts a log in a new file, or in place of what `path` was, of at most about `max_bytes`.
    ///
    /// # Errors
    ///
    /// What the system says about the file.
    pub fn create(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        let head = Mapping::extend(&file, 0, HEAD_BYTES)?;
        head.word(0).store(u64::from_le_bytes(MAGIC), Relaxed);
        let metadata = file.metadata()?;
        let state = State {
            // The program may change its folder.
            path: path.canonicalize()?,
            file: (metadata.dev(), metadata.ino()),
            window: None,
            written: 0,
            file_bytes: HEAD_BYTES as u64,
            max_bytes,
            threads: 0,
        };
        Ok(Self { state: Mutex::new(state), head, active: AtomicBool::new(true) })
    }

    /// Stops recording without waiting: what the child of a `fork` must call, since its parent goes on writing the same
    /// file. Calls are counted no more either.
    pub fn abandon(&self) {
        self.active.store(false, Relaxed);
    }

    /// Calls since the log stopped growing.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.head.word(DROPPED_WORD).load(Relaxed)
    }

    /// Appends a record of the calling thread; `size` in bytes.
    #[inline]
    pub(crate) fn append(&self, told: Told, domain: Domain, block: NonNull<u8>, size: usize) {
        if !self.active.load(Relaxed) {
            return;
        }
        let thread = thread_number();
        let words = record(told, block, domain, thread, size);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if u64::from(thread) >= state.threads {
            state.threads = u64::from(thread) + 1;
            self.head.word(THREADS_WORD).store(state.threads, Relaxed);
        }
        if !state.write(words) {
            self.append_to_next_window(&mut state, told, words);
        }
    }

    #[cold]
    fn append_to_next_window(&self, state: &mut State, told: Told, words: [u64; 2]) {
        let stopped = self.head.word(STOPPED_WORD);
        if stopped.load(Relaxed) == 0 {
            match state.next_window() {
                Ok(()) => {
                    state.write(words);
                    return;
                }
                Err(reason) => stopped.store(reason, Relaxed),
            }
        }
        // A realloc is told twice, and counts once.
        if told != Told::Moving {
            self.head.word(DROPPED_WORD).fetch_add(1, Relaxed);
        }
    }
}

impl State {
    /// Writes a record; false if the window is full.
    #[inline]
    fn write(&mut self, words: [u64; 2]) -> bool {
        let Some(window) = self.window.as_ref().filter(|_| self.written < WINDOW_RECORDS) else {
            return false;
        };
        window.write(self.written, words);
        self.written += 1;
        true
    }

    /// Extends the file by a window, and maps that in place of the last one.
    ///
    /// # Errors
    ///
    /// The reason as the head has it.
    fn next_window(&mut self) -> Result<(), u64> {
        if self.file_bytes + WINDOW_BYTES as u64 > self.max_bytes {
            return Err(LIMIT);
        }
        let extend = || {
            let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
            let metadata = file.metadata()?;
            if (metadata.dev(), metadata.ino()) != self.file {
                return Err(io::Error::from_raw_os_error(libc::ESTALE));
            }
            Mapping::extend(&file, self.file_bytes, WINDOW_BYTES)
        };
        let window = extend().map_err(|error| {
            SYSTEM + u64::from(error.raw_os_error().unwrap_or(libc::EIO).unsigned_abs())
        })?;
        self.window = Some(window);
        self.written = 0;
        self.file_bytes += WINDOW_BYTES as u64;
        Ok(())
    }
}

/// Pages of a file in memory, shared with it.
///
/// Invariant 1: `bytes` bytes from `start`, the start of a page, are mapped, readable and writable, until the drop.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u64>,
    bytes: usize,
}

// SAFETY: the memory is the mapping's own and bound to no thread.
unsafe impl Send for Mapping {}
// SAFETY: shared references reach its words by atomics; `write` is called under the lock of the state alone.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Makes `file` longer by `bytes` of zeros, and maps those.
    fn extend(file: &File, file_bytes: u64, bytes: usize) -> io::Result<Self> {
        let (offset, length) = (file_bytes as libc::off_t, bytes as libc::off_t);
        // Room on the disk now: a page for which there is none later is a fault of the program.
        // SAFETY: an open file, and numbers.
        let errno = unsafe { libc::posix_fallocate(file.as_raw_fd(), offset, length) };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let (access, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping, wherever there is room.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, file.as_raw_fd(), offset) };
        match NonNull::new(start) {
            Some(mapped) if start != libc::MAP_FAILED => Ok(Self { start: mapped.cast(), bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Word number `index` of the head.
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.bytes / size_of::<u64>());
        // SAFETY: within the mapping, as asserted.
        let word = unsafe { self.start.add(index) };
        // SAFETY: mapped and aligned (invariant 1), and reached by atomics alone.
        unsafe { AtomicU64::from_ptr(word.as_ptr()) }
    }

    /// Writes record number `index`. Its first word, by which a reader knows that it is there, comes last.
    #[inline]
    fn write(&self, index: usize, [block, call]: [u64; 2]) {
        assert!(index < self.bytes / RECORD_BYTES);
        // SAFETY: within the mapping, as asserted.
        let first = unsafe { self.start.add(2 * index) };
        // SAFETY: as above; a record has two words.
        let second = unsafe { first.add(1) };
        // SAFETY: mapped and aligned (invariant 1); nobody else reads or writes the window, under the state's lock. Volatile
        // writes are not reordered, and a program that dies between two has made the first.
        unsafe { second.write_volatile(call) };
        // SAFETY: as above.
        unsafe { first.write_volatile(block) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `extend`, and nobody has a reference into it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
