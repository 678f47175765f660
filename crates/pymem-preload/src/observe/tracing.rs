//! Owns the log of a process's calls: one file for the three domains, from the first call to whatever ends the process.
//! A recorded record wraps the one that serves; without a request for a log there is none. Leaves the file to `malloc-trace`.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use malloc_api::immortal;
use malloc_trace::{CallLog, Recorder};
use pymem_domains::{AllocatorRecord, Domain};
use pymem_sync::{ForkLock, Rank, hold_over_forks};

static LOG: OnceLock<CallLog> = OnceLock::new();

/// Starts the log, which lives as long as the process. A forked child goes on with a log of its own.
///
/// # Errors
///
/// What the system says about the file.
pub(crate) fn start(path: &Path, max_bytes: u64) -> io::Result<&'static CallLog> {
    let log = CallLog::create(path, max_bytes, say_failure)?;
    let log = LOG.get_or_init(|| log);
    // Without memory for the handlers a child would write on in its parent's file, so there is no log then.
    hold_over_forks(immortal::leak(ForkLock::new(Rank::Wrapper, log)))
        .map_err(io::Error::from_raw_os_error)?;
    Ok(log)
}

/// Says that the log ends here: one line, within a call of the program, which must not allocate.
fn say_failure() {
    const LINE: &str = "pymem-preload: PYMEM_TRACE: the log cannot grow, was cut short or replaced; the program goes on without it\n";
    // Ignore write errors: there is nowhere to report them.
    // SAFETY: initialised bytes.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, LINE.as_ptr().cast(), LINE.len()) };
}

/// The record of `inner`, whose calls are logged as those of `domain`.
pub(crate) fn recorded(
    log: &'static CallLog,
    domain: Domain,
    inner: AllocatorRecord,
) -> AllocatorRecord {
    AllocatorRecord::leak(Recorder::new(inner, domain, log))
}
