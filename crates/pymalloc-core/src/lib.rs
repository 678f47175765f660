#![doc = include_str!("../README.md")]
#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod access;
mod address_map;
#[cfg(not(any(feature = "asan", feature = "valgrind")))]
#[path = "annotate_off.rs"]
mod annotate;
#[cfg(any(feature = "asan", feature = "valgrind"))]
#[path = "annotate_on.rs"]
mod annotate;
mod arena;
mod arenas;
mod check;
mod config;
#[cfg(feature = "hardened")]
mod fatal;
mod graveyard;
#[cfg(not(feature = "hardened"))]
#[path = "hardened_off.rs"]
mod hardened;
#[cfg(feature = "hardened")]
#[path = "hardened_on.rs"]
mod hardened;
mod kept;
#[cfg(feature = "std")]
mod mmap;
#[cfg(feature = "std")]
mod mmap_arenas;
mod owned;
mod pool;
mod pymalloc;
#[cfg(feature = "std")]
mod region;
mod release;
mod size_class;
mod source;
mod static_arenas;
mod stats;
mod stats_text;
mod used_pools;

pub use access::{LocalPymalloc, LockedPymalloc};
pub use config::{ARENA_BYTES, POOL_BYTES, POOLED_MAX, SMALL_MAX};
pub use graveyard::Graveyard;
pub use malloc_api::ReleaseLevel;
#[cfg(feature = "std")]
pub use mmap_arenas::{HugePages, MmapArenas};
pub use owned::{OwnedPymalloc, Remote};
pub use pymalloc::Pymalloc;
pub use size_class::SizeClass;
pub use source::{ArenaAllocator, ArenaSource, Span};
pub use static_arenas::{NoFallback, StaticArenas};
pub use stats::{ArenaStats, ClassStats, PoolContents, PoolStats, Stats};
