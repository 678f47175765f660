#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod ffi;
mod heap;
mod mi_malloc;

pub use heap::HeapKind;
pub use mi_malloc::MiMalloc;
