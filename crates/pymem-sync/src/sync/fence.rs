//! The fence that real builds use.

use core::sync::atomic::{self, Ordering};

use crate::sync::Site;

/// A sequentially consistent fence: of two threads that write, fence and read, at least one sees the other's write.
#[inline(always)]
pub(crate) fn fence(_site: Site) {
    atomic::fence(Ordering::SeqCst);
}
