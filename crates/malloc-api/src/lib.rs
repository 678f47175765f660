#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(malloc_api_nightly, feature(allocator_api))]

mod account;
#[cfg(any(feature = "api2", feature = "api2-02", malloc_api_nightly))]
mod allocator;
pub mod annotate;
mod budget;
mod domain;
mod global;
#[cfg(feature = "std")]
pub mod immortal;
mod layout;
#[cfg(feature = "libc")]
mod libc_malloc;
mod malloc;
#[cfg(feature = "std")]
mod new_file;
#[cfg(feature = "libc")]
mod page;
mod record;
mod release;
#[cfg(feature = "std")]
mod scoped;
#[cfg(feature = "testing")]
pub mod testing;

pub use account::{Account, Pools, Usage};
#[cfg(any(feature = "api2", feature = "api2-02", malloc_api_nightly))]
pub use allocator::AllocatorAdapter;
pub use budget::{Budget, ToBudget};
pub use domain::{Domain, UnknownDomain};
pub use global::GlobalAdapter;
pub use layout::{aligned_calloc, aligned_free, aligned_malloc, aligned_realloc};
#[cfg(feature = "libc")]
pub use libc_malloc::LibcMalloc;
pub use malloc::{Forward, MAX_REQUEST, MIN_ALIGN, Malloc};
#[cfg(feature = "std")]
pub use new_file::NewFile;
#[cfg(feature = "libc")]
pub use page::page_bytes;
pub use record::{
    AllocatorRecord, CallocFn, FreeFn, MallocFn, PyMemAllocatorEx, ReallocFn, RecordError,
    ThreadSafety,
};
pub use release::ReleaseLevel;
#[cfg(feature = "std")]
pub use scoped::{Scoped, enter};
