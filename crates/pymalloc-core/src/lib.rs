#![doc = include_str!("../README.md")]
#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod access;
mod address_map;
mod arena;
mod arenas;
mod checks {
    #[cfg_attr(not(any(feature = "asan", feature = "valgrind")), path = "annotate_off.rs")]
    pub(crate) mod annotate;
    #[cfg(feature = "hardened")]
    pub(crate) mod fatal;
    #[cfg_attr(not(feature = "hardened"), path = "hardened_off.rs")]
    pub(crate) mod hardened;
    pub(crate) mod invariants;
}
mod config;
mod graveyard;
mod owned;
mod policy;
mod pool;
mod pymalloc;
mod release;
mod size_class;
mod source;
mod sources {
    #[cfg(feature = "std")]
    pub(crate) mod mmap;
    #[cfg(feature = "std")]
    pub(crate) mod mmap_arenas;
    #[cfg(feature = "std")]
    pub(crate) mod region;
    pub(crate) mod static_arenas;
}
mod stats;
mod stats_text;
mod used_pools;

pub use access::{LocalPymalloc, LockedPymalloc};
pub use config::{ARENA_BYTES, POOL_BYTES, POOLED_MAX, SMALL_MAX};
pub use graveyard::Graveyard;
pub use malloc_api::ReleaseLevel;
pub use owned::{OwnedPymalloc, Remote};
pub use pymalloc::Pymalloc;
pub use size_class::SizeClass;
pub use source::{ArenaAllocator, ArenaSource, Span};
#[cfg(feature = "std")]
pub use sources::mmap_arenas::{HugePages, MmapArenas};
pub use sources::static_arenas::{NoFallback, StaticArenas};
pub use stats::{ArenaStats, ClassStats, PoolContents, PoolStats, Stats};
