#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod debug;
mod domain_allocator;
mod domains;
mod error;
pub mod global;
mod heap_stats;
mod layers;
mod name;
mod preconfig;
mod process;
mod profile;
mod raw_below;
mod shared;
mod stats;
mod table;
mod typed;
mod under_pools;

pub use backend::pymalloc::PoolStats;
pub use debug::{DebugConfig, hooks_over};
pub use domain_allocator::DomainAllocator;
pub use domains::Domains;
pub use error::{DomainsError, GlobalError, SetAllocatorError};
pub use heap_stats::HeapStats;
pub use malloc_api::{
    AllocatorRecord, CallocFn, Domain, FreeFn, MallocFn, PyMemAllocatorEx, ReallocFn, RecordError,
    ReleaseLevel, ThreadSafety, UnknownDomain,
};
pub use name::{Rejection, UNKNOWN_ALLOCATOR_TEXT, UnknownAllocator};
pub use preconfig::Preconfig;
pub use profile::{Build, Profile, ProfileError, Version};
pub use raw_below::RawWatch;
pub use stats::{Description, DomainDescription, Stats};
pub use table::{AllocatorName, Backend, Row, TABLE};
pub use typed::{OutOfMemory, TypedMalloc};

/// The examples of the workspace's README.
#[cfg(all(doctest, feature = "pymalloc"))]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// The page of the guide that says which handle a collection takes.
#[cfg(all(doctest, feature = "pymalloc"))]
#[doc = include_str!("../../../docs/handles.md")]
struct Handles;
