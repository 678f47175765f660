//! Owns the locks of every set of domains across `fork`: the forking thread takes all of them before, and gives them back
//! after it on both sides, so that the child never waits for a thread that it does not have.
//! Leaves which locks a set has, and in which order it takes them, to `domains.rs`.

use crate::global;
use malloc_api::immortal;
use pymem_sync::Lock;

/// Locks that a forking thread takes.
pub(crate) trait HeldOverFork: Sync {
    /// Takes all of them.
    fn lock(&self);

    /// Gives them back.
    ///
    /// # Safety
    ///
    /// 1. This thread, or in the child the thread that forked, has called [`lock`](Self::lock) before.
    unsafe fn unlock(&self);
}

struct Node {
    locks: &'static dyn HeldOverFork,
    older: Option<&'static Node>,
}

/// Whose locks are taken.
struct Members {
    newest: Option<&'static Node>,
    has_handlers: bool,
}

static MEMBERS: Lock<Members> = Lock::new(Members { newest: None, has_handlers: false });

/// Has `locks` taken around each fork from now on.
///
/// The first call registers the handlers. The system runs the last registered `prepare` first, so those of an allocator
/// that is set later, and may call into these domains, run before ours.
pub(crate) fn hold_over_forks(locks: &'static dyn HeldOverFork) {
    let mut members = MEMBERS.lock();
    members.newest = Some(immortal::leak(Node { locks, older: members.newest }));
    if !members.has_handlers {
        members.has_handlers = true;
        // SAFETY: three functions without arguments that do not unwind. Without memory for them, forks go unguarded.
        unsafe { libc::pthread_atfork(Some(prepare), Some(release), Some(release)) };
    }
}

/// The members, newest first: a later set of domains may lie on an earlier one, and then takes its own locks first.
fn nodes(members: &Members) -> impl Iterator<Item = &'static Node> + use<> {
    std::iter::successors(members.newest, |node| node.older)
}

extern "C" fn prepare() {
    // Whoever configures the process-wide domains holds this lock and then wants that of the members.
    global::lock_for_fork();
    let members = MEMBERS.lock();
    nodes(&members).for_each(|node| node.locks.lock());
    core::mem::forget(members);
}

extern "C" fn release() {
    // SAFETY: `prepare` has kept the lock for this thread, so nobody else reads or writes the members.
    let members = unsafe { &*MEMBERS.as_ptr() };
    for node in nodes(members) {
        // SAFETY: 1: by `prepare`, which saw the same members.
        unsafe { node.locks.unlock() };
    }
    // SAFETY: 1: kept since `prepare`, and the members are not touched below.
    unsafe { MEMBERS.raw().unlock() };
    // SAFETY: 1: by `prepare`.
    unsafe { global::unlock_after_fork() };
}
