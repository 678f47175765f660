//! Owns the counts of mimalloc's heaps and their text. A build without mimalloc has them too.

use core::fmt;

use crate::profile::Version;

/// What mimalloc's heaps hold.
///
/// Its `Display` is what CPython's `sys._debugmallocstats()` prints for mimalloc, with numbers that are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct HeapStats {
    /// Live blocks.
    pub allocated_blocks: usize,
    /// Bytes of the live blocks, as handed out.
    pub allocated_bytes: usize,
    /// Bytes of the live blocks with what mimalloc adds to each: nothing, in its release build.
    pub allocated_bytes_with_overhead: usize,
    /// Bytes that the pages in use can grow to.
    pub reserved_bytes: usize,
    /// Bytes of the pages in use that have memory.
    pub committed_bytes: usize,
    /// The most bytes of a block that mimalloc calls small, in the version that the interpreter bundles; for the text alone.
    pub small_block_max: usize,
    /// The same of a block that mimalloc calls medium.
    pub medium_block_max: usize,
}

impl HeapStats {
    /// Heaps without a block, as an interpreter of `version` describes them.
    #[must_use]
    pub const fn new(version: Version) -> Self {
        let (small_block_max, medium_block_max) = match version {
            Version::V3_13 | Version::V3_14 => (16_384, 131_072),
            Version::V3_14_10 | Version::V3_15 => (8_192, 65_536),
        };
        Self {
            allocated_blocks: 0,
            allocated_bytes: 0,
            allocated_bytes_with_overhead: 0,
            reserved_bytes: 0,
            committed_bytes: 0,
            small_block_max,
            medium_block_max,
        }
    }
}

impl fmt::Display for HeapStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Small block threshold = {}, in 73 size classes.", self.small_block_max)?;
        writeln!(f, "Medium block threshold = {}", self.medium_block_max)?;
        f.write_str("Large object max size = 16777216\n")?;
        for (label, value) in [
            ("Allocated Blocks", self.allocated_blocks),
            ("Allocated Bytes", self.allocated_bytes),
            ("Allocated Bytes w/ Overhead", self.allocated_bytes_with_overhead),
            ("Bytes Reserved", self.reserved_bytes),
            ("Bytes Committed", self.committed_bytes),
        ] {
            writeln!(f, "    {label}: {value}")?;
        }
        Ok(())
    }
}
