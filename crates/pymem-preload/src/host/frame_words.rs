//! Owns reading the calling thread's Python frames as words, for a profiler that reads them at every allocation: which code
//! runs in a frame, and where in it. Leaves finding the words from 3.11 on to `python_frames.rs`, and what they are called to `describe`, which is
//! asked once for each pair of words.

use core::ops::ControlFlow;
use core::ptr::{self, NonNull};

use memdebug::{FrameSink, ThreadWord};

use crate::host::capi::{PyObject, symbol};
use crate::host::gil;
use crate::host::python::Host;
use crate::host::python_frames::{self, Reader, WordLayout};

type AddressToLine = unsafe extern "C" fn(*mut PyObject, core::ffi::c_int) -> core::ffi::c_int;

/// The layout of frame objects in 3.9 and 3.10, whose instruction is a number of four bytes.
fn of_objects(minor: u32) -> Option<WordLayout> {
    let instruction = match minor {
        9 => 104,
        10 => 96,
        _ => return None,
    };
    Some(WordLayout { newest: [Some(24), None], code: 32, previous: 24, owner: None, instruction })
}

/// Reads frames as words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameWords {
    reader: &'static Reader,
    layout: WordLayout,
    /// Where the calling thread's state is found without a call.
    state: Option<ThreadWord>,
    minor: u32,
    line: AddressToLine,
    keep: unsafe extern "C" fn(*mut PyObject),
}

/// The first minor version whose frames are records.
const FIRST_WITH_RECORDS: u32 = 11;
/// The newest minor version of which it is known where a code object has its first instruction that belongs to a line.
const NEWEST_KNOWN: u32 = 15;

impl FrameWords {
    /// How to read the frames of `host`; `None` where they cannot be read.
    pub(crate) fn find(host: &Host) -> Option<Self> {
        let reader = python_frames::reader(host)?;
        let layout = match reader.word_layout() {
            Some(layout) => layout,
            None => of_objects(host.minor)?,
        };
        // SAFETY: 1: a function of CPython with this signature, in every version that exports it.
        let line = unsafe { symbol(c"PyCode_Addr2Line") }?;
        // SAFETY: 1: as above.
        let keep = unsafe { symbol(c"Py_IncRef") }?;
        Some(Self { reader, layout, state: gil::own_word(host), minor: host.minor, line, keep })
    }

    /// Calls `visit` with each frame of the calling thread that has code, newest first: its address, its code, and the
    /// instruction. Shows nothing for a thread that does not hold the GIL.
    #[inline]
    pub(crate) fn walk(&self, visit: impl FnMut(usize, usize, usize) -> ControlFlow<()>) {
        let state = match self.state {
            Some(word) => NonNull::new(ptr::with_exposed_provenance_mut(word.get())),
            None => gil::own_state(),
        };
        let Some(state) = state else { return };
        if self.reader.is_trusted(state.as_ptr()) {
            // SAFETY: 1: the thread's own and current state; the layout is that of its version.
            unsafe { self.layout.walk(state.as_ptr(), visit) };
        }
    }

    /// Gives `sink` file, line and function of the instruction `at` in `code`, and keeps the code for ever, so that its address
    /// stands for nothing else later. Gives nothing for a frame that is still being set up, or runs no code object.
    ///
    /// # Safety
    ///
    /// 1. The calling thread has just been shown both by [`walk`](Self::walk).
    pub(crate) unsafe fn describe(&self, code: usize, at: usize, sink: &mut dyn FrameSink) {
        let object: *mut PyObject = ptr::with_exposed_provenance_mut(code);
        // SAFETY: 1: an object that a frame of this thread has (duty 1).
        if !unsafe { self.reader.is_code(object) } {
            return;
        }
        let Some(place) = self.place(code, at) else { return };
        // SAFETY: a code object (duty 1); the function reads its table of lines, and takes any place.
        let line = unsafe { (self.line)(object, place) };
        // SAFETY: a live object (duty 1), while this thread holds the GIL.
        unsafe { (self.keep)(object) };
        // SAFETY: 1: a live code object; the thread holds the GIL (duty 1).
        unsafe { self.reader.show_code(object, line, sink) };
    }

    /// The bytes from the code's first instruction to `at`; `None` before the first one that belongs to a line.
    fn place(&self, code: usize, at: usize) -> Option<core::ffi::c_int> {
        /// Bytes of an instruction.
        const UNIT: usize = 2;
        if self.minor < FIRST_WITH_RECORDS {
            #[expect(clippy::cast_possible_truncation, reason = "four bytes were read")]
            let last = at as u32 as core::ffi::c_int;
            return Some(if self.minor < 10 { last } else { last * UNIT as core::ffi::c_int });
        }
        let first = code + self.reader.instructions();
        let place = at.wrapping_sub(first);
        if self.minor <= NEWEST_KNOWN {
            // SAFETY: 1: of a code object, two words before its instructions.
            let belongs_to_line = unsafe { python_frames::word_at(first - 2 * size_of::<usize>()) };
            #[expect(clippy::cast_possible_truncation, reason = "the number has four bytes")]
            let belongs_to_line = belongs_to_line as u32 as usize;
            if (place as isize) < (belongs_to_line * UNIT) as isize {
                return None;
            }
        }
        core::ffi::c_int::try_from(place as isize).ok()
    }
}
