//! Owns the native frames of the calling thread up to the newest Python frame, and their names.

use core::ffi::c_void;
use core::ops::ControlFlow;
use core::ptr;

use heap_profile::Location;
use memdebug::{NativePlace, native_stack};

use crate::host::capi::symbol;

/// Tells native frames: those that the interpreter's evaluator has called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NativeFrames {
    /// Where the function begins that runs Python frames.
    evaluator: usize,
}

/// Most bytes of the evaluator; an interpreter's has some ten thousand.
const EVALUATOR_BYTES: usize = 1 << 20;

// The unwinder that every Rust program links: it knows each function's first address, and allocates nothing.
unsafe extern "C" {
    fn _Unwind_FindEnclosingFunction(at: *mut c_void) -> *mut c_void;
}

impl NativeFrames {
    /// `None` where the interpreter does not name its evaluator.
    pub(crate) fn find() -> Option<Self> {
        // SAFETY: 1: a function of every CPython since 3.6, of which the address alone is taken.
        let evaluator: unsafe extern "C" fn() = unsafe { symbol(c"_PyEval_EvalFrameDefault") }?;
        Some(Self { evaluator: (evaluator as *const ()).addr() })
    }

    /// Calls `visit` with each native frame that is newer than every Python frame, newest first: its place in the stack, and the
    /// address that it goes on at.
    ///
    /// `entry` is an address in the stack of the newest call of the evaluator, where that is known: optimised interpreters have most of
    /// the evaluator in a second piece of code, which no symbol names.
    pub(crate) fn walk(
        &self,
        entry: Option<usize>,
        mut visit: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) {
        // How far a frame reaches is known at the next one.
        let mut last = None;
        native_stack(&mut |call, at| {
            if let Some((place, before)) = last.replace((call, at)) {
                let is_evaluator = entry.is_some_and(|entry| (place..call).contains(&entry));
                if is_evaluator || visit(place, before).is_break() {
                    last = None;
                    return ControlFlow::Break(());
                }
            }
            if self.runs_python(at) {
                last = None;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        if let Some((place, at)) = last {
            let _ = visit(place, at);
        }
    }

    fn runs_python(&self, at: usize) -> bool {
        at.wrapping_sub(self.evaluator) < EVALUATOR_BYTES && function_start(at) == self.evaluator
    }

    /// The place of a frame: where its function begins, so that the calls of one function are one.
    pub(crate) fn place(at: usize) -> usize {
        match function_start(at) {
            // One before the return address lies in the call.
            0 => at - 1,
            start => start,
        }
    }

    /// What a place is called: its function, or where it lies in the file of its code, and that file.
    pub(crate) fn locate(place: usize) -> Location {
        // SAFETY: 1: the texts are copied at once; an interpreter closes no module, and a program that closes a library while its
        // profile is written is beyond this.
        let named = unsafe { NativePlace::of(place) };
        let Some(NativePlace { function, library, offset }) = named else {
            return Location { function: format!("{place:#x}").into(), ..Location::default() };
        };
        let file = library.to_string_lossy();
        let name = file.rsplit('/').next().unwrap_or_default();
        let function = match function {
            Some(function) => function.to_string_lossy().into(),
            None => format!("{name}+{offset:#x}").into(),
        };
        Location { function, file: file.into(), line: 0 }
    }
}

/// Where the function begins that goes on at `at`; 0 where the unwinder does not know.
fn function_start(at: usize) -> usize {
    // SAFETY: any address may be asked for.
    unsafe { _Unwind_FindEnclosingFunction(ptr::without_provenance_mut(at)) }.addr()
}
