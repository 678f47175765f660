//! Quiescent-state-based reclamation: when may memory that lock-free readers can still see be freed?
//!
//! A reader registers once as a [`Participant`], attaches while it may hold references, and reports a quiescent state
//! whenever it holds none. Whoever retires memory first unlinks it, so that no new reader finds it, and then makes a
//! [`Goal`]. Once the goal is [reached](Collector::poll), every reader has been quiescent or detached since the unlink, and
//! the memory can go. [`Delayed`] does this for a queue of items of a [`Domain`].
//!
//! The algorithm is that of CPython's free-threaded build, after Hart, McKenney, Demke Brown and Walpole, *Performance of
//! memory reclamation for lockless synchronization* (JPDC 67, 2007); `docs/design/qsbr.md` argues each ordering.
//!
//! # Examples
//!
//! ```
//! use pymem_sync::qsbr::{Collector, Participant};
//!
//! let collector = Collector::new();
//! let reader = Participant::register(&collector)?;
//! reader.attach();
//! let goal = collector.advance(); // something was unlinked before
//! assert!(!collector.poll(goal)); // the reader may still see it
//! reader.quiescent_state();
//! assert!(collector.poll(goal));
//! reader.detach();
//! # Ok::<(), pymem_sync::qsbr::RegisterError>(())
//! ```

mod collector;
mod delayed;
mod domain;
mod participant;
mod queue;
mod seq;
mod slots;

pub use collector::Collector;
pub use delayed::{Delayed, Limits, OutOfMemory};
pub use domain::Domain;
pub use participant::Participant;
pub use queue::{Pending, Reclaim};
pub use seq::{Goal, Seq};
pub use slots::RegisterError;
