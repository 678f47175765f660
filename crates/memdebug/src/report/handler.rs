//! Owns the ready-made answers to a violation, and writing to stderr from places that must not allocate or take std's lock.
//! Leaves the text to `dump.rs`; a host with its own fatal error supplies its own handler. Built without `std` its twin in
//! `no_std.rs` stands here.

use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

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

/// Where reports go; 2 is standard error.
static TARGET: AtomicI32 = AtomicI32::new(2);

/// Sends reports to an open file from now on, instead of standard error: for programs whose standard error is captured, and
/// lost when they abort. The file stays open for the life of the process.
pub fn report_to(file: impl Into<OwnedFd>) {
    TARGET.store(file.into().into_raw_fd(), Relaxed);
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
    /// Another thread.
    Other,
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
            Err(_) => Holder::Other,
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
        const NAPS: u32 = 10_000;
        const NAP: Duration = Duration::from_micros(100);
        let turn = (0..NAPS).find_map(|_| match TURNS.ask() {
            Holder::Taken(turn) => Some(Some(turn)),
            Holder::Mine => Some(None),
            Holder::Other => {
                thread::sleep(NAP);
                None
            }
        });
        Self { buffer: [0; BUFFER_BYTES], len: 0, _turn: turn.flatten() }
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
        while !bytes.is_empty() {
            // SAFETY: `bytes` is readable for its length.
            let written =
                unsafe { libc::write(TARGET.load(Relaxed), bytes.as_ptr().cast(), bytes.len()) };
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
