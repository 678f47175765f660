//! Owns giving memory back to the system: what each level asks of each allocator.

use malloc_api::ReleaseLevel;

use crate::domains::Domains;
use crate::resident;
use crate::table::Backend;

impl Domains {
    /// Gives memory that holds no live block back to the system; returns how many bytes.
    ///
    /// Live blocks are not touched, and what went back costs a page fault when it is needed again. pymalloc counts
    /// exactly; for mimalloc and the C library the drop of the process's resident memory is taken, so what other threads
    /// do meanwhile counts too. mimalloc pages that other threads keep are theirs to release.
    pub fn release(self, level: ReleaseLevel) -> usize {
        let mut bytes = 0;
        if self.uses(Backend::Pymalloc) {
            bytes += self.backends().pools.release(level);
        }
        if level == ReleaseLevel::Arenas {
            return bytes;
        }
        let before = resident::bytes();
        if self.uses(Backend::Mimalloc) {
            self.backends().heaps.release(level);
        }
        if self.uses(Backend::Malloc) {
            resident::trim_libc();
        }
        bytes + before.saturating_sub(resident::bytes())
    }
}
