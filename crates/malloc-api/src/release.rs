//! Owns the release level: how thoroughly an allocator looks for memory that it can give back to the system.

/// How thoroughly a `release` looks for memory to give back; each level includes those before it.
///
/// Each allocator says what a level means for its own structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReleaseLevel {
    /// Arenas without a live block.
    Arenas,
    /// Pools without a live block, in arenas that have others.
    Pools,
    /// Pages without a live block, wherever they can be found.
    Pages,
}

impl ReleaseLevel {
    /// Every level, from the quickest to the most thorough.
    pub const ALL: [Self; 3] = [Self::Arenas, Self::Pools, Self::Pages];

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
