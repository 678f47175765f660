//! Owns what recorders know of the calling thread: its number, and whether the thread is in a recorded call already.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Caller {
    /// Whether the thread is in a recorded call, or in what records one.
    inside: Cell<bool>,
    /// The number of the thread, one more than in events; 0 if it has none yet.
    number: Cell<u16>,
}

thread_local! {
    // Without a destructor and an initialiser, the value works at any time in a thread's life, and allocates nothing.
    static CALLER: Caller = const { Caller { inside: Cell::new(false), number: Cell::new(0) } };
}

/// Threads of the process that were numbered so far.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// The outermost recorded call of a thread, until dropped.
pub(crate) struct Outermost(());

impl Outermost {
    /// `None` within a recorded call: a call that an allocator or the recording itself makes is no call of the program.
    #[inline]
    pub(crate) fn enter() -> Option<Self> {
        CALLER.with(|caller| (!caller.inside.replace(true)).then(|| Self(())))
    }
}

impl Drop for Outermost {
    #[inline]
    fn drop(&mut self) {
        CALLER.with(|caller| caller.inside.set(false));
    }
}

/// The number of the calling thread, in the order in which threads were first seen; all after the 65,535th share one.
#[inline]
pub(crate) fn thread_number() -> u16 {
    CALLER.with(|caller| match caller.number.get() {
        0 => first_number(caller),
        number => number - 1,
    })
}

#[cold]
fn first_number(caller: &Caller) -> u16 {
    let next = THREADS.fetch_add(1, Relaxed).saturating_add(1);
    let number = u16::try_from(next).unwrap_or(u16::MAX);
    caller.number.set(number);
    number - 1
}
