//! Owns the pair of a near fence, which costs nothing, and a far one, which has the system stop every processor on which the process
//! runs: of two threads that write, fence and read, one near and one far, at least one sees the other's write.

#[cfg(not(all(feature = "fork", target_os = "linux", not(miri), not(pymem_tsan))))]
pub(crate) use of_processor::{far_fence, near_fence, prepare_far_fence};
#[cfg(all(feature = "fork", target_os = "linux", not(miri), not(pymem_tsan)))]
pub(crate) use of_system::{far_fence, near_fence, prepare_far_fence};

#[cfg(all(feature = "fork", target_os = "linux", not(miri), not(pymem_tsan)))]
mod of_system {
    use core::sync::atomic::{Ordering, compiler_fence, fence};

    use crate::sync::{Site, nap};

    /// Keeps the order for the compiler; what the processor makes of it, a far fence finds out.
    #[inline(always)]
    pub(crate) fn near_fence(_site: Site) {
        compiler_fence(Ordering::SeqCst);
    }

    /// A fence on every processor that runs a thread of this process.
    #[cold]
    pub(crate) fn far_fence(_site: Site) {
        fence(Ordering::SeqCst);
        let is_done = call(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
            || prepare_far_fence() && call(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
        if !is_done {
            // The call was forbidden since `prepare_far_fence`. No processor holds a write back for so long.
            for _ in 0..100 {
                nap();
            }
        }
        fence(Ordering::SeqCst);
    }

    /// Announces far fences; `false` if the system has none.
    pub(crate) fn prepare_far_fence() -> bool {
        call(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
    }

    fn call(command: libc::c_int) -> bool {
        // SAFETY: takes three numbers, and touches no memory.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }
}

/// Two whole fences.
#[cfg(not(all(feature = "fork", target_os = "linux", not(miri), not(pymem_tsan))))]
mod of_processor {
    #[cfg(not(pymem_tsan))]
    use core::sync::atomic::{Ordering, fence};

    use crate::sync::Site;
    #[cfg(pymem_tsan)]
    use crate::sync::fence;

    #[cfg(not(pymem_tsan))]
    #[inline(always)]
    pub(crate) fn near_fence(_site: Site) {
        fence(Ordering::SeqCst);
    }

    #[cfg(pymem_tsan)]
    pub(crate) fn near_fence(site: Site) {
        fence(site);
    }

    pub(crate) fn far_fence(site: Site) {
        near_fence(site);
    }

    pub(crate) const fn prepare_far_fence() -> bool {
        true
    }
}
