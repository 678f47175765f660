#![cfg_attr(feature = "std", doc = include_str!("../README.md"))]
#![cfg_attr(not(feature = "std"), doc = "CPython's small-object allocator; README.md says more.")]
#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod access;
mod account;
mod address_map;
mod arena;
mod arenas;
mod cached;
mod checks {
    pub(crate) mod annotate;
    pub(crate) mod hardened;
    pub(crate) mod invariants;
}
mod config;
mod depot;
mod elsewhere;
mod exchange;
mod graveyard;
mod header;
mod idle_map;
mod lane;
mod large_blocks;
#[cfg(feature = "std")]
mod large_runs;
mod links;
mod policy;
mod pool;
mod pymalloc;
mod release;
#[cfg(feature = "std")]
mod run_slots;
#[cfg(feature = "std")]
mod runs;
mod serialized;
mod size_class;
mod slots;
mod source;
mod sources {
    #[cfg(feature = "std")]
    pub(crate) mod arena_sets;
    #[cfg(feature = "std")]
    pub(crate) mod mmap;
    #[cfg(feature = "std")]
    pub(crate) mod purger;
    #[cfg(feature = "std")]
    pub(crate) mod region;
    #[cfg(feature = "std")]
    pub(crate) mod run_memory;
    pub(crate) mod static_arenas;
}
mod stats;
mod stock;
mod supply;
mod used_pools;
mod walk;

pub use access::{LocalPymalloc, LockedPymalloc, OwnedPymalloc, Remote};
pub use account::{BudgetedArenas, LocalPools, LockedPools};
#[cfg(feature = "std")]
pub use account::{local_account, locked_account};
pub use cached::CachedPymalloc;
#[cfg(feature = "std")]
pub use config::RUN_MAX;
pub use config::{ARENA_BYTES, POOL_BYTES, POOLED_MAX, SMALL_MAX};
pub use graveyard::Graveyard;
pub use large_blocks::LargeBlocks;
#[cfg(feature = "std")]
pub use large_runs::{LargeRuns, check_large_runs, large_runs_stats, release_large_runs};
pub use malloc_api::ReleaseLevel;
pub use serialized::{SerializedPymalloc, UnsharedPymalloc, can_be_shared};
pub use size_class::SizeClass;
pub use source::{ArenaAllocator, ArenaSource, Span, Supply};
#[cfg(feature = "std")]
pub use sources::region::{HugePages, MmapArenas};
pub use sources::static_arenas::{NoFallback, StaticArenas};
pub use stats::{ClassStats, LargeRunsStats, PoolContents, PoolStats, Stats};
