//! Owns the counts of mimalloc's heaps and their text. They are there in a build without mimalloc too.

use core::fmt;

/// What mimalloc's heaps hold.
///
/// Its `Display` is what CPython's `sys._debugmallocstats()` prints for mimalloc, with numbers that are right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
}

impl fmt::Display for HeapStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Small block threshold = 16384, in 73 size classes.\n")?;
        f.write_str("Medium block threshold = 131072\n")?;
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
