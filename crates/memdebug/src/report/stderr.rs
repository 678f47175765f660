//! Owns writing to stderr from places that must not allocate or take std's lock on it.

use std::fmt;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use crate::report::dump::DumpSink;

/// Where reports go; 2 is standard error.
static TARGET: AtomicI32 = AtomicI32::new(2);

/// Sends reports to an open file from now on, instead of standard error: for programs whose standard error is captured, and
/// lost when they abort. The file stays open for the life of the process.
pub fn report_to(file: impl Into<OwnedFd>) {
    TARGET.store(file.into().into_raw_fd(), Relaxed);
}

/// Bytes gathered before a write.
const BUFFER_BYTES: usize = 1024;

/// Standard error behind a fixed buffer, written out when full and when dropped.
pub(crate) struct Stderr {
    buffer: [u8; BUFFER_BYTES],
    len: usize,
}

impl Stderr {
    pub(crate) const fn new() -> Self {
        Self { buffer: [0; BUFFER_BYTES], len: 0 }
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

impl io::Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.drain();
        Ok(())
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
