#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod domain;
mod domains;
mod error;
mod gate;
mod immortal;
mod layers;
mod name;
mod preconfig;
mod profile;
mod record;
mod table;

pub use domain::{Domain, UnknownDomain};
pub use domains::{DomainAllocator, Domains};
pub use error::{DomainsError, SetAllocatorError};
pub use name::{AllocatorName, Rejection, UNKNOWN_ALLOCATOR_TEXT, UnknownAllocator};
pub use preconfig::Preconfig;
pub use profile::{Build, Profile, ProfileError, Version};
pub use record::{
    AllocatorRecord, CallocFn, FreeFn, MallocFn, PyMemAllocatorEx, ReallocFn, RecordError,
    ThreadSafety,
};
pub use table::{Backend, Row, TABLE};
