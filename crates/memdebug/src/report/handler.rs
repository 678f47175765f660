//! Owns the ready-made answers to a violation, and writing to stderr from places that must not allocate or take std's lock.
//! Leaves the text to `dump.rs`; a host with its own fatal error supplies its own handler. Built without `std` its twin in
//! `no_std.rs` stands here.

use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crate::options::Text;
use crate::report::dump::DumpSink;
use crate::report::violation::{Violation, ViolationHandler};

/// What a [`Host`](crate::Host) starts with.
pub(crate) const DEFAULT: ViolationHandler = abort;

/// Writes the report to stderr without allocating, and aborts the process (SIGABRT).
///
/// The report is the dump and the first line of CPython's fatal error.
pub fn abort(violation: &Violation) {
    report(violation);
    std::process::abort();
}

/// Writes the report to stderr without allocating, and goes on.
///
/// The dump and the first line of CPython's fatal error are followed by where the reported call came from.
pub fn report(violation: &Violation) {
    let mut err = Stderr::new();
    // Ignore write errors, here and below: there is nowhere to report them.
    let _ = violation.write_dump(&mut err);
    let _ = write!(err, "Fatal Python error: {}: ", violation.func());
    err.put(violation.message().as_bytes());
    err.put(b"\n");
    let _ = write_caller(violation, &mut err);
}

/// Writes to stderr, without allocating, where the reported call came from, and then the dump: for hosts whose own fatal error
/// follows, as CPython's does at once.
pub fn dump(violation: &Violation) {
    let mut err = Stderr::new();
    let _ = write_caller(violation, &mut err);
    let _ = violation.write_dump(&mut err);
}

fn write_caller(violation: &Violation, err: &mut Stderr) -> fmt::Result {
    let Some(site) = violation.caller() else {
        return Ok(());
    };
    err.pass_on()?;
    writeln!(err, "Reported call made by (most recent call first):\n{site}")
}

/// Panics with the dump and the fatal error as message.
///
/// For Rust tests only: the panic unwinds out of an allocator's method.
///
/// # Panics
///
/// Always.
pub fn panic(violation: &Violation) {
    panic!("{violation}{}: {}", violation.func(), violation.message());
}

/// Where the reports of a process go, and which process that is: 2, standard error, of none.
static TARGET: AtomicU64 = AtomicU64::new(libc::STDERR_FILENO as u64);

/// The device and the number of the file that [`TARGET`] stands for, if that is not standard error. Relaxed, as these words and
/// that one need not agree: a report that finds another file opens its own again, or goes to standard error.
static FILE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Sends reports to an open file from now on, instead of standard error: for programs whose standard error is captured, and
/// lost when they abort.
///
/// The file stays open for the life of the process. If the program closes its descriptor all the same, as one does that closes all
/// it does not know, reports go to standard error again, and never into what is opened in its place.
pub fn report_to(file: impl Into<OwnedFd>) {
    let file = file.into().into_raw_fd();
    remember(status(file).as_ref());
    TARGET.store(file as u64, Relaxed);
}

/// What the system says of an open file; `None` if none is open at this number.
fn status(file: RawFd) -> Option<libc::stat> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut status: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: any number may be asked for; `status` is writable.
    (unsafe { libc::fstat(file, &mut status) } == 0).then_some(status)
}

fn remember(status: Option<&libc::stat>) {
    let words = status.map_or([0; 2], |status| [status.st_dev, status.st_ino]);
    FILE.iter().zip(words).for_each(|(known, word)| known.store(word, Relaxed));
}

/// Whether the file that is open at this number is the one that reports go to. Standard error is the program's own.
fn is_known(file: RawFd) -> bool {
    let known = || FILE.each_ref().map(|word| word.load(Relaxed));
    file == libc::STDERR_FILENO
        || status(file).is_some_and(|status| [status.st_dev, status.st_ino] == known())
}

/// The path before the process's number.
static PREFIX: OnceLock<Text<3072>> = OnceLock::new();

/// Sends the reports of this process and of each forked child to a file of its own from now on: `prefix`, a dot, and the process's
/// number.
///
/// A file is made for the first report alone, and opened again if the program closed its descriptor. An existing regular file of that name is appended to; where the name is that of a
/// symbolic link or of anything else, or no file can be made, the report goes to standard error.
///
/// # Errors
///
/// [`InvalidInput`](io::ErrorKind::InvalidInput) for a prefix that is no text or longer than 3,072 bytes,
/// [`AlreadyExists`](io::ErrorKind::AlreadyExists) for a second prefix.
pub fn report_to_files(prefix: &Path) -> io::Result<()> {
    let prefix = prefix.to_str().and_then(Text::new).ok_or(io::ErrorKind::InvalidInput)?;
    let known = PREFIX.get_or_init(|| prefix);
    if *known == prefix { Ok(()) } else { Err(io::ErrorKind::AlreadyExists.into()) }
}

/// The descriptor that reports go to, for hosts that write a part of a report themselves.
#[must_use]
pub fn target() -> RawFd {
    let target = TARGET.load(Relaxed);
    let file = target as RawFd;
    let Some(prefix) = PREFIX.get() else {
        return if is_known(file) { file } else { libc::STDERR_FILENO };
    };
    let process = u64::from(std::process::id());
    if target >> 32 == process && is_known(file) {
        return file;
    }
    let file = open(prefix, process).unwrap_or(libc::STDERR_FILENO);
    TARGET.store(process << 32 | file as u64, Relaxed);
    file
}

/// Opens the file of one process, without allocating.
fn open(prefix: &Text<3072>, process: u64) -> Option<RawFd> {
    let mut name = Text::<3200>::default();
    write!(name, "{prefix}.{process}\0").ok()?;
    let flags = libc::O_WRONLY
        | libc::O_APPEND
        | libc::O_CREAT
        | libc::O_NOFOLLOW
        | libc::O_NONBLOCK
        | libc::O_CLOEXEC;
    // SAFETY: a name that ends with a NUL.
    let file = unsafe { libc::open(name.as_str().as_ptr().cast(), flags, 0o600) };
    let status = status(file).filter(|status| status.st_mode & libc::S_IFMT == libc::S_IFREG);
    remember(status.as_ref());
    if status.is_none() {
        // SAFETY: just opened, and given to nobody; -1 is no file.
        unsafe { libc::close(file) };
    }
    status.is_some().then_some(file)
}

/// Bytes gathered before a write.
const BUFFER_BYTES: usize = 1024;

/// Whose turn it is: that of one thread of this process at a time.
pub(crate) struct Turns(AtomicU64);

/// A turn, over when dropped.
pub(crate) struct Turn(&'static Turns);

/// Who has the turn.
pub(crate) enum Holder {
    /// This thread, from now on.
    Taken(Turn),
    /// This thread already.
    Mine,
    /// Another thread, by its number.
    Other(u64),
}

impl Turns {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Takes the turn if nobody has it.
    pub(crate) fn ask(&'static self) -> Holder {
        // SAFETY: no memory is involved.
        let (process, thread) = (unsafe { libc::getpid() }, unsafe { libc::gettid() });
        let me = (process as u64) << 32 | thread as u64;
        // A forked child has none of its parent's threads: what was theirs is nobody's.
        let held = self.0.load(Relaxed);
        let before = if held >> 32 == me >> 32 { 0 } else { held };
        match self.0.compare_exchange(before, me, Relaxed, Relaxed) {
            Ok(_) => Holder::Taken(Turn(self)),
            Err(holder) if holder == me => Holder::Mine,
            Err(holder) => Holder::Other(holder),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.store(0, Relaxed);
    }
}

/// Standard error behind a fixed buffer, written out when full and when dropped. What one of these writes stands together.
pub(crate) struct Stderr {
    buffer: [u8; BUFFER_BYTES],
    len: usize,
    /// `None` where a report is made while this thread makes one, or another thread took too long.
    _turn: Option<Turn>,
}

impl Stderr {
    pub(crate) fn new() -> Self {
        static TURNS: Turns = Turns::new();
        /// For each thread that has the turn before this one.
        const NAPS: u32 = 10_000;
        const NAP: Duration = Duration::from_micros(100);
        let (mut last, mut naps) = (0, 0);
        let turn = loop {
            match TURNS.ask() {
                Holder::Taken(turn) => break Some(turn),
                Holder::Other(holder) if holder != last => (last, naps) = (holder, 0),
                Holder::Other(_) if naps < NAPS => {
                    naps += 1;
                    thread::sleep(NAP);
                }
                Holder::Mine | Holder::Other(_) => break None,
            }
        };
        Self { buffer: [0; BUFFER_BYTES], len: 0, _turn: turn }
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.len == BUFFER_BYTES {
                self.drain();
            }
            let take = bytes.len().min(BUFFER_BYTES - self.len);
            let (now, later) = bytes.split_at(take);
            self.buffer[self.len..self.len + take].copy_from_slice(now);
            self.len += take;
            bytes = later;
        }
    }

    /// Writes what is gathered; what cannot be written is dropped, as there is nowhere to say so.
    fn drain(&mut self) {
        let mut bytes = &self.buffer[..self.len];
        let target = target();
        while !bytes.is_empty() {
            // SAFETY: `bytes` is readable for its length.
            let written = unsafe { libc::write(target, bytes.as_ptr().cast(), bytes.len()) };
            match usize::try_from(written) {
                Ok(count) if count > 0 => bytes = &bytes[count..],
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        self.len = 0;
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        self.drain();
    }
}

impl fmt::Write for Stderr {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

impl DumpSink for Stderr {
    fn write_byte(&mut self, byte: u8) -> fmt::Result {
        self.put(&[byte]);
        Ok(())
    }

    fn pass_on(&mut self) -> fmt::Result {
        self.drain();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight reports of 300 ms: whoever waits for seven of them has waited longer than for one that takes too long.
    #[test]
    fn reports_that_queue_all_get_their_turn() {
        let report = || {
            let err = Stderr::new();
            thread::sleep(Duration::from_millis(300));
            err._turn.is_some()
        };
        let reports = [(); 8].map(|()| thread::spawn(report));
        assert_eq!(reports.map(|report| report.join().expect("it asserts nothing")), [true; 8]);
    }
}
