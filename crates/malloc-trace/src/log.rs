//! Owns `CallLog`: calls as fixed records in a mapped file, for programs that must hardly notice that they are recorded.
//! Leaves the bytes, and the way to a trace, to `log_reader.rs`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use malloc_api::{Domain, NewFile};
use pymem_sync::{HeldOverFork, Lock};

use crate::log_reader::{
    DROPPED_WORD, HEAD_BYTES, LIMIT, MAGIC, RECORD_BYTES, RecordKind, STOPPED_WORD, SYSTEM,
    THREADS_WORD, record,
};
use crate::mapping::Mapping;

/// Bytes of the file that are mapped at one time, besides the head.
const WINDOW_BYTES: usize = 1 << 20;
const WINDOW_RECORDS: usize = WINDOW_BYTES / RECORD_BYTES;

/// A log of calls in a file, which [`LogReader`](crate::LogReader) makes a trace afterwards.
///
/// A record is 16 bytes, written to memory that is mapped to the file: whatever ends the program, the log has every call
/// until then, and nothing needs to be flushed. 1 MiB of the file is mapped at a time. Nothing else grows, however many blocks
/// live. No file descriptor is kept, since a program may close any.
///
/// A log stops growing at its limit, or when the file cannot grow; the calls after that are counted in its head. A log whose
/// file is cut short by others stops too. Neither ends the program: a handler of SIGBUS, which [`create`](CallLog::create)
/// installs, sees to that. Linux only.
///
/// **Fork**: hold the log over every fork ([`HeldOverFork`]). A forked child then goes on with a log of its own: the path of
/// the log, a dot, and the number of the process. The child's first call makes the file, so that a child that only executes
/// another program has none. A log that is not held must be [abandoned](CallLog::abandon) in a child.
#[derive(Debug)]
pub struct CallLog {
    state: Lock<State>,
    /// The process that writes the log.
    owner: AtomicU32,
    /// Relaxed: a call that sees the old value is recorded, or not, as if the call had come earlier.
    mode: AtomicU8,
}

/// Calls are recorded.
const RECORDS: u8 = 0;
/// The next call starts the file of this process, which was forked.
const STARTS: u8 = 1;
/// Calls are neither recorded nor counted.
const IS_OVER: u8 = 2;

#[derive(Debug)]
struct State {
    /// The file of the process that created the log; the file of a child has the number of the child behind this name.
    base: PathBuf,
    max_bytes: u64,
    on_failure: fn(),
    file: LogFile,
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    /// Device and number of the file: what the path must still lead to.
    identity: (u64, u64),
    head: Mapping,
    /// The last part of the file; `None` before the first call.
    window: Option<Mapping>,
    /// Records in the window.
    written: usize,
    bytes: u64,
    threads: u64,
}

impl CallLog {
    /// Starts a log in a new file, or in place of the regular file that `path` is, of at most about `max_bytes`.
    ///
    /// `on_failure` is called once if the system stops the log: its file was cut short or replaced, or cannot grow. It is
    /// called within a call of the program, under the lock of the log, and may neither allocate nor unwind: a line on stderr
    /// is what it can do.
    ///
    /// # Errors
    ///
    /// What the system says about the file; [`NewFile::beside`] says which files are refused.
    pub fn create(path: &Path, max_bytes: u64, on_failure: fn()) -> io::Result<Self> {
        let file = LogFile::create(path)?;
        let state = State { base: file.path.clone(), max_bytes, on_failure, file };
        let owner = AtomicU32::new(std::process::id());
        Ok(Self { state: Lock::new(state), owner, mode: AtomicU8::new(RECORDS) })
    }

    /// Stops recording. Later calls are not counted either.
    pub fn abandon(&self) {
        self.mode.store(IS_OVER, Relaxed);
    }

    /// Calls since the log stopped growing.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.state.lock().file.head.word(DROPPED_WORD).load(Relaxed)
    }

    /// Appends a record of the calling thread, which has the number `thread`; `size` in bytes.
    #[inline]
    pub(crate) fn append(
        &self,
        kind: RecordKind,
        domain: Domain,
        thread: u16,
        block: NonNull<u8>,
        size: usize,
    ) {
        if self.mode.load(Relaxed) == IS_OVER {
            return;
        }
        let words = record(kind, block, domain, thread, size);
        let mut state = self.state.lock();
        if self.mode.load(Relaxed) != RECORDS && !self.start_again(&mut state) {
            return;
        }
        if u64::from(thread) >= state.file.threads {
            state.file.threads = u64::from(thread) + 1;
            state.file.head.word(THREADS_WORD).store(state.file.threads, Relaxed);
        }
        if !state.file.write(words) {
            self.append_otherwise(&mut state, kind, words);
        }
    }

    /// Starts the file of a forked child; false if that cannot be had.
    #[cold]
    fn start_again(&self, state: &mut State) -> bool {
        if self.mode.load(Relaxed) != STARTS {
            return false;
        }
        let mut path = state.base.clone().into_os_string();
        path.push(format!(".{}", std::process::id()));
        let file = LogFile::create(Path::new(&path));
        self.mode.store(if file.is_ok() { RECORDS } else { IS_OVER }, Relaxed);
        match file {
            Ok(file) => {
                state.file = file;
                true
            }
            Err(_) => {
                (state.on_failure)();
                false
            }
        }
    }

    /// Appends a record for which there is no room in the window, or which was lost.
    #[cold]
    fn append_otherwise(&self, state: &mut State, kind: RecordKind, words: [u64; 2]) {
        if state.file.is_lost() {
            self.abandon();
            (state.on_failure)();
            return;
        }
        if state.file.head.word(STOPPED_WORD).load(Relaxed) == 0 {
            match state.file.next_window(state.max_bytes) {
                Ok(()) => {
                    state.file.write(words);
                    return;
                }
                Err(reason) => {
                    state.file.head.word(STOPPED_WORD).store(reason, Relaxed);
                    if reason >= SYSTEM {
                        (state.on_failure)();
                    }
                }
            }
        }
        // A realloc has two records, and counts once.
        if kind != RecordKind::Moving {
            state.file.head.word(DROPPED_WORD).fetch_add(1, Relaxed);
        }
    }
}

/// Held over a fork, so that the child has a whole log whatever the parent's other threads were doing.
impl HeldOverFork for CallLog {
    fn hold(&self) {
        self.state.hold();
    }

    unsafe fn release(&self) {
        // SAFETY: (1) `hold` took the lock, on behalf of this thread (1).
        unsafe { self.state.release() };
        let process = std::process::id();
        if self.owner.swap(process, Relaxed) != process {
            // A log that is over stays so.
            let _ = self.mode.compare_exchange(RECORDS, STARTS, Relaxed, Relaxed);
        }
    }
}

impl LogFile {
    /// A new file with a head and no records.
    fn create(path: &Path) -> io::Result<Self> {
        let mut new = NewFile::beside(path)?;
        let head = Mapping::extend(new.file(), 0, HEAD_BYTES)?;
        head.word(0).store(u64::from_le_bytes(MAGIC), Relaxed);
        let metadata = new.file().metadata()?;
        new.publish()?;
        Ok(Self {
            // The program may change its folder.
            path: path.canonicalize()?,
            identity: (metadata.dev(), metadata.ino()),
            head,
            window: None,
            written: 0,
            bytes: HEAD_BYTES as u64,
            threads: 0,
        })
    }

    /// Writes a record; false if the window is full or lost.
    #[inline]
    fn write(&mut self, [block, call]: [u64; 2]) -> bool {
        let Some(window) = self.window.as_mut().filter(|_| self.written < WINDOW_RECORDS) else {
            return false;
        };
        // The first word, by which a reader knows that the record is there, comes last.
        window.set(2 * self.written + 1, call);
        window.set(2 * self.written, block);
        self.written += 1;
        !window.is_lost()
    }

    fn is_lost(&self) -> bool {
        self.head.is_lost() || self.window.as_ref().is_some_and(Mapping::is_lost)
    }

    /// Extends the file by a window, and maps that in place of the last one.
    ///
    /// # Errors
    ///
    /// The reason, as the head states reasons.
    fn next_window(&mut self, max_bytes: u64) -> Result<(), u64> {
        if self.bytes + WINDOW_BYTES as u64 > max_bytes {
            return Err(LIMIT);
        }
        let window = self.extend().map_err(|error| {
            SYSTEM + u64::from(error.raw_os_error().unwrap_or(libc::EIO).unsigned_abs())
        })?;
        self.window = Some(window);
        self.written = 0;
        self.bytes += WINDOW_BYTES as u64;
        Ok(())
    }

    fn extend(&self) -> io::Result<Mapping> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path)?;
        self.check(&file)?;
        Mapping::extend(&file, self.bytes, WINDOW_BYTES)
    }

    /// Checks that `file` is the log, and has the length that the log gave the file.
    fn check(&self, file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        let is_log = (metadata.dev(), metadata.ino()) == self.identity;
        if is_log && metadata.len() == self.bytes {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(libc::ESTALE))
    }
}
