//! Owns what the system says about this process: resident bytes now and at most, and a thread's processor time and faults.

use std::time::Duration;

/// Resident bytes of this process, counted exactly from its page tables.
pub fn resident_bytes() -> u64 {
    field("/proc/self/smaps_rollup", "Rss:").unwrap_or(0)
}

/// Highest resident bytes since [`reset_peak`].
pub fn peak_bytes() -> u64 {
    field("/proc/self/status", "VmHWM:").unwrap_or(0)
}

/// Makes the peak start again at what is resident now; without effect where the system refuses.
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// A field given in kB, in bytes.
fn field(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(1024 * kilobytes)
}

/// Page faults of the calling thread that needed no disk.
pub fn page_faults() -> u64 {
    // SAFETY: all zeros are a valid `rusage`: it has numbers only.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is writable, and every Linux counts for threads.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_minflt.cast_unsigned()
}

/// Processor time that the calling thread has used, in user and system mode.
pub fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable, and every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
