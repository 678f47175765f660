//! Owns taking the native frames of the calling thread, and the guard against doing so while doing so.

use core::cell::Cell;
use core::ffi::{c_int, c_void};

thread_local! {
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// This thread takes or shows a backtrace. Allocations that this causes are not traced.
pub(crate) struct Alone(());

impl Alone {
    /// `None` if the thread is at it already, or past its end.
    pub(crate) fn enter() -> Option<Self> {
        // Made only if entered: its drop clears the mark.
        let entered = BUSY.try_with(|busy| !busy.replace(true)).unwrap_or(false);
        entered.then(|| Self(()))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // The thread is not past its end: it was not when this value was made.
        let _ = BUSY.try_with(|busy| busy.set(false));
    }
}

// The unwinder that every Rust program links: no lock of ours is held here, and it allocates nothing.
unsafe extern "C-unwind" {
    fn _Unwind_Backtrace(
        step: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        state: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn _Unwind_GetCFA(context: *mut c_void) -> usize;
}

/// `_URC_NO_REASON`: go on.
const GO_ON: c_int = 0;
/// `_URC_END_OF_STACK`: enough.
const STOP: c_int = 5;

/// Where the hooks were entered: a place in the stack, below which every frame is theirs.
#[derive(Clone, Copy)]
pub(crate) struct Outermost(usize);

impl Outermost {
    /// The calling function as the outermost one of the hooks.
    #[inline(always)]
    pub(crate) fn here() -> Self {
        let mark = 0_u8;
        // What is there is of no interest; its address is that of a variable of the caller's, into which this is inlined.
        Self(core::hint::black_box(&raw const mark).addr())
    }
}

struct Progress<'a> {
    frames: &'a mut [usize],
    count: usize,
    entry: Outermost,
}

extern "C" fn step(context: *mut c_void, state: *mut c_void) -> c_int {
    // SAFETY: `native_frames` passed it, and waits.
    let progress = unsafe { &mut *state.cast::<Progress<'_>>() };
    // SAFETY: the unwinder's own context, in its own callback.
    let at = unsafe { _Unwind_GetIP(context) };
    if at == 0 {
        return STOP;
    }
    // SAFETY: as above. It is the stack pointer of the frame at its call, which of the hooks' frames, and of no other, is
    // below what the outermost of them keeps on its stack.
    let bottom = unsafe { _Unwind_GetCFA(context) };
    if bottom <= progress.entry.0 {
        return GO_ON;
    }
    let Some(place) = progress.frames.get_mut(progress.count) else {
        return STOP;
    };
    *place = at;
    progress.count += 1;
    GO_ON
}

/// Fills `frames` with return addresses, those of the hooks left out, most recent call first; gives how many.
#[inline(never)]
pub(crate) fn native_frames(frames: &mut [usize], entry: Outermost) -> usize {
    let mut progress = Progress { frames, count: 0, entry };
    // SAFETY: `step` keeps to the unwinder's rules and never unwinds; `progress` outlives the call.
    unsafe { _Unwind_Backtrace(step, (&raw mut progress).cast()) };
    progress.count
}
