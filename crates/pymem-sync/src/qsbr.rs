//! Quiescent-state-based reclamation: when may memory that lock-free readers can still see be freed?
//!
//! A reader registers once as a [`Participant`], attaches while it may hold references, and reports a quiescent state
//! whenever it holds none. Whoever retires memory first unlinks it, so that no new reader finds it, and then makes a
//! [`Goal`]. Once the goal is [reached](Shared::poll), every reader has been quiescent or detached since the unlink, and
//! the memory can go. [`Delayed`] does this for a queue of items.
//!
//! The algorithm is that of CPython's free-threaded build, after Hart, McKenney, Demke Brown and Walpole, *Performance of
//! memory reclamation for lockless synchronization* (JPDC 67, 2007); `docs/design/qsbr.md` argues each ordering.
//!
//! # Examples
//!
//! ```
//! use pymem_sync::qsbr::Shared;
//!
//! let shared = Shared::new();
//! let reader = shared.register()?;
//! reader.attach();
//! let goal = shared.advance(); // something was unlinked before
//! assert!(!shared.poll(goal)); // the reader may still see it
//! reader.quiescent_state();
//! assert!(shared.poll(goal));
//! reader.detach();
//! # Ok::<(), pymem_sync::qsbr::RegisterError>(())
//! ```

mod delayed;
mod orphans;
mod participant;
mod queue;
mod seq;
mod shared;
mod slots;
mod try_box;

pub use delayed::{Delayed, Limits, OutOfMemory, Reclaim};
pub use orphans::Orphans;
pub use participant::Participant;
pub use queue::Pending;
pub use seq::{Goal, Seq};
pub use shared::Shared;
pub use slots::RegisterError;
