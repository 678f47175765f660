//! Owns what a thread knows of itself: the sets that it owns, one for each interpreter, and the order of things at its end.
//!
//! A pthread key's destructor ends the thread, after Rust's thread-local destructors, which drop the thread's heaps: it
//! detaches sets whose `ThreadHeaps` was forgotten, and then ends mimalloc's part, under the registry's lock, so that no fork
//! meets mimalloc's own locks taken. mimalloc's exit handler is kept from doing that earlier, without the lock. A
//! `ThreadHeaps` that a later destructor of a C host drops finds that its set has another owner, and does nothing.

use core::cell::Cell;
use core::ffi::c_void;
use core::iter;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::ffi;
use crate::heap_set::HeapSet;
use crate::idle;
use crate::interpreter::Interpreter;
use crate::registry::{self, Registry};

thread_local! {
    /// The set of the thread's last attach, which links to the one before. No destructor, so it works until the very end.
    static SETS: Cell<Option<&'static HeapSet>> = const { Cell::new(None) };
}

/// Every set that the calling thread owns.
pub(crate) fn sets() -> impl Iterator<Item = &'static HeapSet> {
    iter::successors(SETS.get(), |set| set.below().get())
}

/// The calling thread's set in the interpreter of this number.
pub(crate) fn set_in(interpreter: u64) -> Option<&'static HeapSet> {
    sets().find(|set| set.interpreter() == interpreter)
}

/// Prepares the calling thread to own a set; `None` if there is no memory.
pub(crate) fn begin(registry: &mut Registry) -> Option<()> {
    // A thread that only frees needs this too: mimalloc then keeps the freed blocks together.
    // SAFETY: no preconditions; the lock keeps a fork out of mimalloc's own locks.
    unsafe { ffi::mi_thread_init() };
    let key = exit_key(registry)?;
    // Any value but null has the destructor run.
    // SAFETY: a key that is never deleted; the value is not read.
    let errno = unsafe { libc::pthread_setspecific(key, ptr::from_ref(&KEY).cast()) };
    if errno != 0 {
        return None;
    }
    ffi::leave_thread_to_us();
    Some(())
}

/// Puts `set`, which the calling thread has come to own, on its list.
pub(crate) fn add(set: &'static HeapSet) {
    set.below().set(SETS.replace(Some(set)));
}

/// Detaches the calling thread from the interpreter of `set`, which it owns.
///
/// # Safety
///
/// 1. The calling thread owns `set`, and nobody uses its theaps or its state afterwards.
pub(crate) unsafe fn detach(set: &'static HeapSet, interpreter: &Interpreter) {
    remove(set);
    // SAFETY: (1) is the same there.
    if let Some(state) = unsafe { set.take_state() } {
        // Offline first: this thread holds back none of its own retired blocks.
        state.participant.detach();
    }
    let mut registry = registry::lock();
    // SAFETY: (1) is the same there.
    unsafe { set.end(&mut registry) };
    interpreter.abandon(&mut registry, set);
    drop(registry);
    interpreter.leave();
}

/// Takes `set` off the calling thread's list.
fn remove(set: &'static HeapSet) {
    let next = set.below().take();
    let links = iter::once(None).chain(sets().map(Some)).find(|before| {
        let link = before.map_or(SETS.get(), |before| before.below().get());
        link.is_some_and(|link| ptr::eq(link, set))
    });
    match links {
        Some(Some(before)) => before.below().set(next),
        Some(None) => SETS.set(next),
        None => {}
    }
}

/// The key whose destructor is [`end`], plus one; 0 before it is made.
static KEY: AtomicU64 = AtomicU64::new(0);

fn exit_key(_registry: &mut Registry) -> Option<libc::pthread_key_t> {
    let known = KEY.load(Ordering::Relaxed);
    if known != 0 {
        return libc::pthread_key_t::try_from(known - 1).ok();
    }
    let mut key = 0;
    // SAFETY: a valid place, and a function that takes any value and does not unwind.
    if unsafe { libc::pthread_key_create(&raw mut key, Some(end)) } != 0 {
        return None;
    }
    KEY.store(u64::from(key) + 1, Ordering::Relaxed);
    Some(key)
}

/// Ends the calling thread; mimalloc begins it again should it allocate once more.
unsafe extern "C" fn end(_value: *mut c_void) {
    while let Some(set) = SETS.get() {
        let interpreter = Interpreter::all(&registry::lock())
            .find(|interpreter| interpreter.id() == set.interpreter());
        match interpreter {
            // SAFETY: (1) on the list, so owned by this thread, whose heaps were forgotten or are dropped too late to be used.
            Some(interpreter) => unsafe { detach(set, interpreter) },
            None => remove(set),
        }
    }
    // SAFETY: no preconditions.
    if !unsafe { ffi::_mi_is_main_thread() } {
        let _registry = registry::lock();
        // SAFETY: (1) no theap of ours is left on this thread. The lock keeps a fork out of mimalloc's own locks.
        unsafe { ffi::mi_thread_done() };
        ffi::leave_thread_to_us();
    }
    idle::count();
}
