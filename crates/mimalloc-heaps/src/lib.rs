#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod ffi;
mod fork;
mod free;
mod heap;
mod heap_set;
mod idle;
mod interpreter;
mod interpreter_heaps;
mod mi_malloc;
mod mutexes;
mod own_heap;
mod page;
mod prepare;
mod purge_mark;
mod registry;
mod release;
mod stats;
mod theap;
mod thread;
mod thread_heaps;
mod thread_malloc;
mod thread_state;
mod visit;
mod world;

pub use fork::after_fork_in_child;
pub use heap::HeapKind;
pub use idle::allow_background_thread;
pub use interpreter_heaps::InterpreterHeaps;
pub use mi_malloc::MiMalloc;
pub use own_heap::{OwnHeap, heap_account};
#[doc(hidden)]
pub use prepare::control_without_fork_handlers;
pub use prepare::hold_over_forks;
pub use pymem_sync::qsbr::{Limits, Pending};
pub use registry::{HeapError, start};
pub use stats::{HeapUsage, Statistics, Usage};
pub use thread_heaps::ThreadHeaps;
pub use thread_malloc::ThreadMalloc;
pub use visit::{Area, Block};
pub use world::{BarrierWorld, World, WorldThread};
