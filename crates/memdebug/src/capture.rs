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
}

/// `_URC_NO_REASON`: go on.
const GO_ON: c_int = 0;
/// `_URC_END_OF_STACK`: enough.
const STOP: c_int = 5;

struct Progress<'a> {
    frames: &'a mut [usize],
    count: usize,
}

extern "C" fn step(context: *mut c_void, state: *mut c_void) -> c_int {
    // SAFETY: `native_frames` passed it, and waits.
    let progress = unsafe { &mut *state.cast::<Progress<'_>>() };
    // SAFETY: the unwinder's own context, in its own callback.
    let at = unsafe { _Unwind_GetIP(context) };
    // Our own frames say nothing about the block.
    if at == 0 || progress.count == 0 && is_ours(at) {
        return if at == 0 { STOP } else { GO_ON };
    }
    let Some(place) = progress.frames.get_mut(progress.count) else {
        return STOP;
    };
    *place = at;
    progress.count += 1;
    GO_ON
}

/// Whether the frame is this function's or its caller's: what is inlined decides how many more there are, so names are
/// looked at only when shown.
fn is_ours(at: usize) -> bool {
    let start = (native_frames as *const ()).addr();
    (start..start + 256).contains(&at)
}

/// Fills `frames` with return addresses, most recent call first; gives how many.
#[inline(never)]
pub(crate) fn native_frames(frames: &mut [usize]) -> usize {
    let mut progress = Progress { frames, count: 0 };
    // SAFETY: `step` keeps to the unwinder's rules and never unwinds; `progress` outlives the call.
    unsafe { _Unwind_Backtrace(step, (&raw mut progress).cast()) };
    progress.count
}
