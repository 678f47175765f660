#![doc = include_str!("../README.md")]
#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod access;
mod address_map;
mod arena;
mod arenas;
mod check;
mod config;
mod fatal;
mod magazine;
#[cfg(feature = "std")]
mod mmap;
mod pool;
mod pymalloc;
#[cfg(feature = "std")]
mod region;
mod release;
mod size_class;
mod source;
mod stats;
mod stats_text;
mod used_pools;

pub use access::{LocalPymalloc, LockedPymalloc};
pub use config::{ARENA_BYTES, POOL_BYTES, POOLED_MAX, SMALL_MAX};
pub use pymalloc::Pymalloc;
#[cfg(feature = "std")]
pub use region::MmapArenas;
pub use release::Release;
pub use size_class::SizeClass;
pub use source::{ArenaAllocator, ArenaSource, Span};
pub use stats::{ArenaStats, ClassStats, Stats};
