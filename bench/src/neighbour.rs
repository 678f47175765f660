//! Owns the neighbour of a starved run: another process that keeps the kernel's free memory in single pages, none of which waits zeroed
//! or warm in a cache.

use std::ptr;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use anyhow::{Result, ensure};

/// What the neighbour maps, in bytes; it holds half of it.
const BYTES: usize = 1 << 30;
const PAGE: usize = 4096;
/// What it gives back and takes at a time.
const STRETCH: usize = 1 << 18;

/// Takes and gives back pages on a processor of its own, as long as it lives.
#[derive(Debug)]
pub(crate) struct Neighbour {
    /// Dropped first, which tells the thread to end.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    /// Starts it, and forbids huge pages to this process and to the workers that it starts from now on.
    ///
    /// # Errors
    ///
    /// Where the system refuses either.
    pub(crate) fn start() -> Result<Self> {
        // SAFETY: a call with numbers alone; children inherit what it sets.
        let forbidden = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        ensure!(forbidden == 0, "cannot forbid huge pages: {}", std::io::Error::last_os_error());
        let (stop, stopped) = channel();
        let memory = Memory::map()?;
        let thread = std::thread::Builder::new().spawn(move || memory.wander(&stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and took nothing but the disturbance.
            let _ = thread.join();
        }
    }
}

/// The neighbour's memory, by its address.
struct Memory(usize);

impl Memory {
    fn map() -> Result<Self> {
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, at an address that the system chooses.
        let memory = unsafe { libc::mmap(ptr::null_mut(), BYTES, access, kind, -1, 0) };
        ensure!(
            memory != libc::MAP_FAILED,
            "no memory for a neighbour: {}",
            std::io::Error::last_os_error()
        );
        Ok(Self(memory.expose_provenance()))
    }

    /// Takes a stretch's pages, and gives back every second one, stretch after stretch, in an order that no prefetcher follows.
    fn wander(&self, stopped: &Receiver<()>) {
        let stretches = BYTES / STRETCH;
        let mut at = 0;
        while stopped.try_recv() == Err(TryRecvError::Empty) {
            // An odd step meets every stretch, since their number is a power of two.
            at = (at + 1_237) % stretches;
            for page in (0..STRETCH).step_by(PAGE) {
                let address = ptr::with_exposed_provenance_mut::<u8>(self.0 + at * STRETCH + page);
                // SAFETY: 1: inside of the mapping, which is writable; 2: its pages are this thread's alone.
                unsafe { address.write_volatile(1) };
                if page / PAGE % 2 == 1 {
                    // SAFETY: as above; what a page held is not needed.
                    unsafe { libc::madvise(address.cast(), PAGE, libc::MADV_DONTNEED) };
                }
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping, whole, which nobody else knows.
        unsafe { libc::munmap(ptr::with_exposed_provenance_mut(self.0), BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::Neighbour;

    #[test]
    fn beside_a_neighbour_there_are_no_huge_pages() {
        let status = |field: &str| {
            let text = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = status("VmRSS:");
        let neighbour = Neighbour::start().unwrap();
        assert_eq!(status("THP_enabled:"), 0);
        let begin = std::time::Instant::now();
        while status("VmRSS:") < before + (100 << 10) {
            assert!(begin.elapsed().as_secs() < 60, "the neighbour takes no memory");
        }
        drop(neighbour);
        assert!(status("VmRSS:") < before + (50 << 10), "it has gone, and its memory with it");
    }
}
