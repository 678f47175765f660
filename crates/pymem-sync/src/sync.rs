//! Owns the loom switch of the workspace, the only one: atomics, fences, yields and [`Site`] in two equal faces.
//!
//! Every other file is written against the names re-exported here. The real face is `core`; the model face is loom, and it
//! alone can plant a fault at one [`Site`] at run time, so that one build runs every model and every negative control.

#[cfg(pymem_loom)]
#[path = "sync/model.rs"]
mod face;
#[cfg(not(pymem_loom))]
#[path = "sync/real.rs"]
mod face;
#[cfg(not(pymem_loom))]
#[path = "sync/far_fence.rs"]
mod far_fence;
#[path = "sync/site.rs"]
mod site;

#[cfg(pymem_loom)]
pub(crate) use face::{far_fence, near_fence, prepare_far_fence};
#[cfg(not(pymem_loom))]
pub(crate) use far_fence::{far_fence, near_fence, prepare_far_fence};

#[doc(hidden)]
pub use face::plant;
pub(crate) use face::{
    AtomicBool, AtomicPtr, AtomicU16, Ordering, array_in_face, chosen, const_in_real,
    interrupt_fence, nap, ordering, spin_loop, yield_now,
};
#[cfg(feature = "std")]
pub(crate) use face::{AtomicU32, AtomicU64, CHUNK_SLOTS, Witness, ZERO_IS_NEW, fence};
#[doc(hidden)]
pub use site::Site;
