#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod debug;
mod domain_allocator;
mod domains;
mod environment;
mod error;
mod fork;
mod gate;
pub mod global;
mod layers;
mod name;
mod preconfig;
mod profile;
mod release;
#[cfg_attr(not(all(target_os = "linux", target_env = "gnu")), path = "no_resident.rs")]
mod resident;
mod shared;
mod stats;
mod table;
mod typed;

pub use backend::PoolStats;
pub use debug::DebugConfig;
pub use domain_allocator::DomainAllocator;
pub use domains::Domains;
pub use error::{ConfigureError, DomainsError, SetAllocatorError};
pub use malloc_api::{
    AllocatorRecord, CallocFn, Domain, FreeFn, MallocFn, PyMemAllocatorEx, ReallocFn, RecordError,
    ReleaseLevel, ThreadSafety, UnknownDomain,
};
pub use name::{AllocatorName, Rejection, UNKNOWN_ALLOCATOR_TEXT, UnknownAllocator};
pub use preconfig::Preconfig;
pub use profile::{Build, Profile, ProfileError, Version};
pub use stats::{Description, DomainDescription, HeapStats, Stats};
pub use table::{Backend, Row, TABLE};
pub use typed::{OutOfMemory, TypedMalloc};

/// The examples of the workspace's README.
#[cfg(all(doctest, feature = "pymalloc"))]
#[doc = include_str!("../../../README.md")]
struct Readme;
