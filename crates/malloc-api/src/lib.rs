#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "libc")]
mod libc_malloc;
mod malloc;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "libc")]
pub use libc_malloc::LibcMalloc;
pub use malloc::{MAX_REQUEST, MIN_ALIGN, Malloc};
