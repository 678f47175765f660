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
mod release;
mod stats;
mod thread;
mod thread_malloc;
mod visit;
mod world;

pub use error::HeapError;
pub use fork::after_fork_in_child;
#[doc(hidden)]
pub use fork::control_without_fork_handlers;
pub use heap_kind::HeapKind;
pub use interpreter::InterpreterHeaps;
pub use mi_malloc::MiMalloc;
pub use pymem_sync::qsbr::{Limits, Pending};
pub use stats::{HeapUsage, Statistics, Usage};
pub use thread::ThreadHeaps;
pub use thread_malloc::ThreadMalloc;
pub use visit::{Area, Block};
pub use world::{BarrierWorld, World, WorldThread};
