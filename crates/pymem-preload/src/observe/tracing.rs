//! Owns the log of a process's calls: one file for the three domains, from the first call to whatever ends the process.
//! A recorded record wraps the one that serves; without a request for a log there is none. Leaves the file to `malloc-trace`.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use malloc_trace::{CallLog, Recorder};
use pymem_domains::{AllocatorRecord, Domain};

static LOG: OnceLock<CallLog> = OnceLock::new();

/// Starts the log, which lives as long as the process.
///
/// # Errors
///
/// What the system says about the file.
pub(crate) fn start(path: &Path, max_bytes: u64) -> io::Result<&'static CallLog> {
    let log = CallLog::create(path, max_bytes)?;
    // SAFETY: a handler that stores one flag. Without memory for it a child would write on in its parent's file, so there is
    // no log then.
    let errno = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    if errno != 0 {
        return Err(io::Error::from_raw_os_error(errno));
    }
    Ok(LOG.get_or_init(|| log))
}

/// A forked child has the mapping of its parent's file.
extern "C" fn in_child() {
    LOG.get().into_iter().for_each(CallLog::abandon);
}

/// The record of `inner`, whose calls are logged as those of `domain`.
pub(crate) fn recorded(
    log: &'static CallLog,
    domain: Domain,
    inner: AllocatorRecord,
) -> AllocatorRecord {
    AllocatorRecord::leak(Recorder::new(inner, domain, log))
}
