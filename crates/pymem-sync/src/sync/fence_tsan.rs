//! The fence under ThreadSanitizer, which does not know fences: the same order from a read-modify-write.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::sync::Site;

/// The one word that all fences meet in.
static MEETING: AtomicU64 = AtomicU64::new(0);

/// As strong as a sequentially consistent fence for the threads that come here, and slower.
///
/// Two cases: of two calls one comes first in the word's modification order, and the second acquires what the first
/// released, so the second thread's reads see the first one's writes.
pub(crate) fn fence(_site: Site) {
    MEETING.fetch_add(1, Ordering::SeqCst);
}
