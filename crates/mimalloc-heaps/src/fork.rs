//! Owns what a child of a fork needs: the reclaiming of what the threads that do not exist in the child have owned.
//! Leaves to `mutexes.rs` that no lock of mimalloc's is inherited taken.

use core::ptr;

use pymem_sync::qsbr::Participant;

use crate::heap_set::HeapSet;
use crate::interpreter::Interpreter;
use crate::{registry, thread};

/// Takes over what the threads that a fork has left behind had, in the child.
///
/// Their pages become the child's to use and to free, their heaps are abandoned to their interpreter, their delayed frees
/// are handed over, and they hold back no goal. Without it a child works, but those pages are never reclaimed and no delayed
/// free is ever due again. For all interpreters of the process.
///
/// # Safety
///
/// 1. The process was forked, and the calling thread is its only one so far.
/// 2. When it was forked, no other thread was inside mimalloc or this crate: the world was stopped.
pub unsafe fn after_fork_in_child() {
    let interpreters = Interpreter::all(&registry::lock());
    for interpreter in interpreters {
        // SAFETY: (1) the calling thread owns it.
        let survivor = thread::set_in(interpreter.id()).and_then(|set| unsafe { set.state() });
        let survivor = survivor.map(|state| &state.participant);
        let collector = interpreter.domain.collector();
        // SAFETY: (1) is the same there; (2) the calling thread's own; (3) dead threads use nothing, and their states are
        // only dropped below.
        unsafe { Participant::after_fork_in_child(collector, survivor) };
    }
    let sets = HeapSet::all(&registry::lock());
    for set in sets.filter(|set| set.is_owned()) {
        if thread::sets().any(|own| ptr::eq(own, set)) {
            continue;
        }
        // SAFETY: (1) the owner is another thread, none of which exists (1), and it was not using it (2).
        drop(unsafe { set.take_state() });
        let mut registry = registry::lock();
        let interpreter =
            Interpreter::all(&registry).find(|interpreter| interpreter.id() == set.interpreter());
        // SAFETY: (1) the owner is another thread, none of which exists (1); it was not inside (2).
        unsafe { set.end_for_dead_owner(&mut registry) };
        match interpreter {
            Some(interpreter) => {
                interpreter.abandon(&mut registry, set);
                drop(registry);
                interpreter.leave();
            }
            None => set.park(&mut registry),
        }
    }
}
