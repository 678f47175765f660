//! Owns giving memory back to the system: the levels, and what each asks of each allocator.

use crate::domains::Domains;
use crate::resident;
use crate::table::Backend;

/// How thoroughly [`Domains::release`] looks for memory; each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReleaseLevel {
    /// Arenas without a live block.
    Arenas,
    /// Pools without a live block, the calling thread's empty mimalloc pages, and the free top of the C library's heap.
    Pools,
    /// Pages without a live block, wherever they can be found.
    Pages,
}

impl ReleaseLevel {
    /// The level that C code means by a number: 0 and below, 1, 2 and above.
    #[must_use]
    pub const fn from_number(number: i32) -> Self {
        match number {
            i32::MIN..=0 => Self::Arenas,
            1 => Self::Pools,
            2.. => Self::Pages,
        }
    }
}

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
