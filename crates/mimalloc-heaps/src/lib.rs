#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adopt;
mod delayed;
mod error;
mod ffi;
mod fork;
mod heap;
mod heap_index;
mod heap_kind;
mod interpreter;
mod mi_malloc;
mod registry;
mod thread;
mod thread_malloc;

pub use error::HeapError;
pub use fork::after_fork_in_child;
#[doc(hidden)]
pub use fork::control_without_fork_handlers;
pub use heap_kind::HeapKind;
pub use interpreter::InterpreterHeaps;
pub use mi_malloc::MiMalloc;
pub use pymem_sync::qsbr::Limits;
pub use thread::ThreadHeaps;
pub use thread_malloc::ThreadMalloc;
