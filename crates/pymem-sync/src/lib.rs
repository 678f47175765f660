#![doc = include_str!("../README.md")]
#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod fork;
#[cfg(feature = "std")]
mod idle;
#[cfg(all(feature = "std", feature = "fork", unix, not(pymem_loom)))]
mod idle_thread;
#[cfg(all(feature = "std", feature = "fork", unix, not(pymem_loom)))]
mod idle_threads;
#[cfg(feature = "std")]
mod interner;
mod lock;
mod passage;
mod published;
#[cfg(feature = "std")]
pub mod qsbr;
mod rack;
mod remote_stack;
#[doc(hidden)]
pub mod sync;

#[cfg(all(feature = "fork", unix, not(pymem_loom)))]
pub use fork::hold_over_forks;
pub use fork::{ForkLock, ForkLocks, HeldOverFork, Rank};
#[cfg(feature = "std")]
pub use idle::{IdleUnits, Keeper};
#[cfg(all(feature = "std", feature = "fork", unix, not(pymem_loom)))]
pub use idle_thread::{IdleMemory, IdleThread};
#[cfg(all(feature = "std", feature = "fork", unix, not(pymem_loom)))]
pub use idle_threads::IdleThreads;
#[cfg(feature = "std")]
pub use interner::{Chain, Entry, Interner};
pub use lock::{Lock, LockGuard, RawLock};
pub use passage::Passage;
pub use published::Published;
pub use rack::{Filling, Rack};
pub use remote_stack::{Drain, RemoteStack};
