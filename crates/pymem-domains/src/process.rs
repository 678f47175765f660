//! Owns what Linux and glibc tell of the process and do to it: its resident memory, and whether it has other threads.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) use linux::*;
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) use unknown::*;

/// How many bytes of resident memory the process loses by `work`. What other threads do meanwhile counts too.
pub(crate) fn shrinks_by(work: impl FnOnce()) -> usize {
    let before = resident_bytes();
    work();
    before.saturating_sub(resident_bytes())
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod linux {
    use std::fs::File;
    use std::io::Read as _;

    #[cfg(feature = "mimalloc")]
    use pymem_sync::IdleThreads;

    /// Bytes of physical memory that the process holds; 0 when the system does not say. Does not allocate.
    pub(crate) fn resident_bytes() -> usize {
        let mut text = [0; 128];
        let Ok(mut file) = File::open("/proc/self/statm") else { return 0 };
        let Ok(len) = file.read(&mut text) else { return 0 };
        // Sizes in pages: of the address space, then of what is resident.
        let pages = core::str::from_utf8(&text[..len])
            .ok()
            .and_then(|text| text.split(' ').nth(1)?.parse::<usize>().ok());
        pages.unwrap_or(0) * malloc_api::page_bytes()
    }

    /// Whether the calling thread is the only one of the process but for those that give idle memory back; `false` when the system does
    /// not say. Does not allocate.
    #[cfg(feature = "mimalloc")]
    pub(crate) fn is_only_thread() -> bool {
        let idle = IdleThreads::now();
        threads() == Some(1 + idle.count()) && idle == IdleThreads::now()
    }

    #[cfg(feature = "mimalloc")]
    fn threads() -> Option<usize> {
        let mut text = [0; 512];
        let len = File::open("/proc/self/stat").ok()?.read(&mut text).ok()?;
        // The second field, the program's name in brackets, may hold anything; the count is the 18th one after it.
        let fields = text[..len].rsplit(|byte| *byte == b')').next().unwrap_or_default();
        let mut fields = fields.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        core::str::from_utf8(fields.nth(17)?).ok()?.parse().ok()
    }

    /// Gives the C library's free memory back to the system.
    pub(crate) fn trim_libc() {
        // SAFETY: takes the library's own locks, and touches free memory only.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod unknown {
    pub(crate) fn resident_bytes() -> usize {
        0
    }

    #[cfg(feature = "mimalloc")]
    pub(crate) fn is_only_thread() -> bool {
        false
    }

    /// The C library has no way to give free memory back.
    pub(crate) fn trim_libc() {}
}
