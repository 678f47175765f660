//! Owns what a fork needs: handlers that keep the child from inheriting one of mimalloc's locks taken, and the reclaiming of
//! what the threads that do not exist in the child have owned.
//!
//! mimalloc has no fork handlers. The registry's lock is held around everything that takes a lock of mimalloc's, so holding
//! it across the fork is enough; the one lock that is left is taken when mimalloc asks the system for a new arena.

use core::sync::atomic::{AtomicBool, Ordering};

use pymem_sync::qsbr::Participant;

use crate::HeapError;
use crate::adopt::{HeapSet, NOBODY};
use crate::delayed::ThreadState;
use crate::interpreter::Interpreter;
use crate::{registry, thread};

/// Set by the negative control alone.
static WITHOUT_HANDLERS: AtomicBool = AtomicBool::new(false);

/// Lets heaps be used without fork handlers, to see that the fork test then fails. Before the first heap.
#[doc(hidden)]
pub fn control_without_fork_handlers() {
    WITHOUT_HANDLERS.store(true, Ordering::Relaxed);
}

/// Registers the handlers; once a process.
pub(crate) fn register_handlers() -> Result<(), HeapError> {
    if WITHOUT_HANDLERS.load(Ordering::Relaxed) {
        return Ok(());
    }
    // SAFETY: three functions that live as long as the process: a library that registers handlers is never unloaded by
    // glibc while they are registered.
    let errno = unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) };
    if errno == 0 { Ok(()) } else { Err(HeapError::ForkHandlers { errno }) }
}

/// Before the fork: waits until no thread makes or frees a heap, and keeps it so.
extern "C" fn prepare() {
    registry::raw().lock();
}

/// After the fork, in the parent.
extern "C" fn in_parent() {
    // SAFETY: (1) locked by `prepare` on this thread, and nothing was touched since.
    unsafe { registry::raw().unlock() };
}

/// After the fork, in the child.
extern "C" fn in_child() {
    // SAFETY: (1) locked by `prepare` on the thread that forked, which this one is in the child.
    unsafe { registry::raw().unlock() };
}

/// Takes over what the threads that a fork has left behind had, in the child.
///
/// Their pages become the child's to use and to free, their heaps go to the pool of their interpreter, their delayed frees
/// are handed over, and they hold back no goal. Without it a child works, but those pages are never reclaimed and no delayed
/// free is ever due again. For all interpreters of the process.
///
/// # Safety
///
/// 1. The process was forked, and the calling thread is its only one so far.
/// 2. When it was forked, no other thread was inside mimalloc or this crate: the world was stopped.
pub unsafe fn after_fork_in_child() {
    let this_thread = thread::number();
    let mut last = None;
    loop {
        let interpreter = match last {
            None => registry::lock().first_interpreter(),
            Some(interpreter) => Interpreter::next(interpreter),
        };
        let Some(interpreter) = interpreter else { break };
        last = Some(interpreter);
        let survivor = thread::state_in(interpreter.id());
        // SAFETY: the calling thread's own state, which lives until it detaches.
        let survivor = survivor.map(|state| &unsafe { state.as_ref() }.participant);
        // SAFETY: (1) is the same there; (2) the calling thread's own; (3) dead threads use nothing, and their states are
        // only dropped below.
        unsafe { Participant::after_fork_in_child(interpreter.domain.collector(), survivor) };
    }
    loop {
        let mut registry = registry::lock();
        let orphan = registry.sets().find(|set| ![NOBODY, this_thread].contains(&set.owner()));
        let Some(orphan) = orphan else { break };
        let interpreter =
            registry.interpreters().find(|interpreter| interpreter.id() == orphan.interpreter());
        // SAFETY: (1) the owner is another thread, none of which exists (1); it was not inside (2).
        let (set, state) = unsafe { HeapSet::end_for_dead_owner(orphan, &mut registry) };
        let Some(interpreter) = interpreter else {
            HeapSet::park(set, &mut registry);
            continue;
        };
        drop(registry);
        // SAFETY: from `ThreadState::into_raw` in `ThreadHeaps::attach`, and its thread does not exist; it was not using it (2).
        drop(unsafe { ThreadState::from_raw(state) });
        interpreter.pool.give(set);
        if interpreter.release(&mut registry::lock()) {
            interpreter.end();
        }
    }
}
